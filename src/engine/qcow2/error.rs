//! Reasons not to open an image, and mistakes in the images below.

use std::io;
use std::path::{Path, PathBuf};

use super::cache_options::CacheError;
use crate::qcow2::{Corruption, HeaderError};
use crate::storage;

/// The reason why a qcow2 image cannot be opened.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
#[non_exhaustive]
pub enum OpenError {
    #[error("{} cannot be opened as qcow2: {source}", path.display())]
    Header { path: PathBuf, source: HeaderError },
    #[error("cannot read the tables of {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{} cannot be part of a qcow2 image: a file or a block device is needed", path.display())]
    NoFile { path: PathBuf },
    #[error(
        "{} names the backing file '{name}', and names in images are not followed unless follow-names=on (--follow-names) \
         allows it; or name a node (backing=NODE)",
        path.display()
    )]
    Backing { path: PathBuf, name: String },
    #[error(
        "{} names the data file '{name}', and names in images are not followed unless follow-names=on (--follow-names) \
         allows it; or name a node (data-file=NODE)",
        path.display()
    )]
    DataFile { path: PathBuf, name: String },
    #[error("{} has no external data file", path.display())]
    NoDataFile { path: PathBuf },
    #[error(
        "{} does not tell the format of its backing file '{name}': name a node (backing=NODE), or write the format with \
         qemu-img rebase -u -F",
        path.display()
    )]
    NoFormat { path: PathBuf, name: String },
    #[error("the backing file '{name}' of {} has the format '{format}', which is not supported", path.display())]
    Format {
        path: PathBuf,
        name: String,
        format: String,
    },
    #[error("{} names '{name}', which is not the path of a file: name a node", path.display())]
    Protocol { path: PathBuf, name: String },
    #[error("the external data file of {} is read-only", path.display())]
    ReadOnlyData { path: PathBuf },
    #[error(
        "{} cannot be written with direct I/O: its clusters and its disk size must be multiples of {block} bytes",
        path.display()
    )]
    DirectBlocks { path: PathBuf, block: u64 },
    #[error("{} is its own backing file", path.display())]
    Loop { path: PathBuf },
    #[error("{} has more than {max} backing files", path.display())]
    Depth { path: PathBuf, max: usize },
    #[error("the old process has not passed {}, which an image names", path.display())]
    NotPassed { path: PathBuf },
    #[error(transparent)]
    Cache(#[from] CacheError),
    #[error("{} names '{name}'", path.display())]
    Named {
        path: PathBuf,
        name: String,
        source: storage::Error,
    },
}

/// A mistake in a backing file. The images above are not corrupt.
#[derive(Debug, thiserror::Error)]
#[error("the backing file {}: {corruption}", path.display())]
pub(super) struct CorruptBelow {
    path: PathBuf,
    corruption: Corruption,
}

impl CorruptBelow {
    /// Names the backing file at `path` if `error` is a mistake in it.
    pub(super) fn wrap(error: io::Error, path: &Path) -> io::Error {
        match error.downcast::<Corruption>() {
            Ok(corruption) => io::Error::other(Self {
                path: path.to_owned(),
                corruption,
            }),
            Err(error) => error,
        }
    }
}

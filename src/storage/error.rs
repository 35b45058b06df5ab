//! Why a disk cannot be opened.

use std::io;
use std::path::PathBuf;

/// Why [`RawFile::open`](super::RawFile::open) refuses. Each text says what is wrong and where;
/// the cause, where there is one, is the error's source.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the fields say nothing that the text does not")]
#[non_exhaustive]
pub enum Error {
    /// The path leads to nothing.
    #[error("cannot open {}: {why}", path.display())]
    Missing { path: PathBuf, why: String },

    /// The permissions of the image, or of a directory on the way to it, do not let this process read it.
    #[error(
        "cannot open {}: {why}; change that (chmod, chgrp, setfacl) or start the daemon as another user",
        path.display()
    )]
    Denied {
        path: PathBuf,
        why: String,
        source: io::Error,
    },

    /// Any other failure to open it.
    #[error("cannot open {}", path.display())]
    Open { path: PathBuf, source: io::Error },

    /// It can be read but not written.
    #[error("cannot open {} for writing: {why}", path.display())]
    NotWritable {
        path: PathBuf,
        why: String,
        source: io::Error,
    },

    /// A directory, a socket, ...
    #[error("{} is a {kind}; a disk is a regular file or a block device", path.display())]
    Kind { path: PathBuf, kind: &'static str },

    /// Size, block size or alignment could not be found out.
    #[error("cannot find out the {what} of {}", path.display())]
    Query {
        path: PathBuf,
        what: &'static str,
        source: io::Error,
    },

    /// A disk without a single block: a forgotten `truncate`, a drive without a medium.
    #[error("{} is empty; give it a size first, e.g. 'truncate -s 10G {}'", path.display(), path.display())]
    EmptyFile { path: PathBuf },

    /// The same of a block device.
    #[error("block device {} has no size; is its medium or backing file attached?", path.display())]
    EmptyDevice { path: PathBuf },

    /// A file that ends within a logical block.
    #[error(
        "the size of {}, {size} bytes, is not a multiple of its logical block size, {block} bytes; \
         'truncate -s %{block} {}' extends it",
        path.display(), path.display()
    )]
    FileSize { path: PathBuf, size: u64, block: u32 },

    /// The same of a block device.
    #[error(
        "the size of {}, {size} bytes, is not a multiple of its logical block size, {block} bytes",
        path.display()
    )]
    DeviceSize { path: PathBuf, size: u64, block: u32 },

    /// Not a block size at all.
    #[error("logical block size {size} is not a power of two from 512 to 32768")]
    BlockSize { size: u32 },

    /// Smaller than what the storage below can address.
    #[error(
        "logical block size {size} is too small for {}: {reason} of {least} bytes",
        path.display()
    )]
    BlockSizeTooSmall {
        path: PathBuf,
        size: u32,
        least: u32,
        reason: &'static str,
    },

    /// O_DIRECT is refused here.
    #[error(
        "{} does not support direct I/O (O_DIRECT) on its file system",
        path.display()
    )]
    Direct { path: PathBuf, source: io::Error },
}

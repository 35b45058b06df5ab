//! Errors of opening a disk.

use std::io;
use std::path::PathBuf;

/// The reason why [`RawFile::open`](super::RawFile::open) failed. The text names the image and the defect. The error's
/// source is the cause, if there is one.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the fields say nothing that the text does not")]
#[non_exhaustive]
pub enum Error {
    /// Nothing exists at the path.
    #[error("cannot open {}: {why}", path.display())]
    Missing { path: PathBuf, why: String },

    /// The permissions of the image, or of a directory in its path, do not allow this process to read it.
    #[error("cannot open {}: {why}", path.display())]
    Denied {
        path: PathBuf,
        why: String,
        source: io::Error,
    },

    /// The image cannot be opened for another reason.
    #[error("cannot open {}", path.display())]
    Open { path: PathBuf, source: io::Error },

    /// The image can be opened for reading, but not for writing.
    #[error("cannot open {} for writing: {why}", path.display())]
    NotWritable {
        path: PathBuf,
        why: String,
        source: io::Error,
    },

    /// The path leads to a directory, a socket, or something else that cannot be a disk.
    #[error("{} is a {kind}; a disk is a regular file or a block device", path.display())]
    Kind { path: PathBuf, kind: &'static str },

    /// The size, block size or alignment cannot be determined.
    #[error("cannot determine the {what} of {}", path.display())]
    Query {
        path: PathBuf,
        what: &'static str,
        source: io::Error,
    },

    /// The image may have any format, because it cannot be read.
    #[error("the format of {} is not given, and cannot be looked for", path.display())]
    Unread { path: PathBuf, source: io::Error },

    /// The file is empty: a `truncate` was forgotten.
    #[error("{} is empty; give it a size first, e.g. 'truncate -s 10G {}'", path.display(), path.display())]
    EmptyFile { path: PathBuf },

    /// The block device has no size, because it has no medium or backing file.
    #[error("block device {} has no size; is its medium or backing file attached?", path.display())]
    EmptyDevice { path: PathBuf },

    /// The file's size is not a multiple of the logical block size.
    #[error(
        "the size of {}, {size} bytes, is not a multiple of its logical block size, {block} bytes; \
         'truncate -s %{block} {}' extends it",
        path.display(), path.display()
    )]
    FileSize { path: PathBuf, size: u64, block: u32 },

    /// The block device's size is not a multiple of the logical block size.
    #[error(
        "the size of {}, {size} bytes, is not a multiple of its logical block size, {block} bytes",
        path.display()
    )]
    DeviceSize { path: PathBuf, size: u64, block: u32 },

    /// The logical block size is not a valid number.
    #[error("logical block size {size} is not a power of two from 512 to 32768")]
    BlockSize { size: u32 },

    /// The logical block size is smaller than the unit that the storage can address.
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

    /// The file does not support O_DIRECT.
    #[error(
        "{} does not support direct I/O (O_DIRECT) on its file system",
        path.display()
    )]
    Direct { path: PathBuf, source: io::Error },
}

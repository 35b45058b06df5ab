//! The kinds of files that can be disks.

use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use super::error::Error;

/// The kind of a disk's file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Regular,
    BlockDevice,
}

impl Kind {
    /// Determines the kind of the file at `path`.
    ///
    /// # Errors
    /// The file is neither a regular file nor a block device.
    pub(super) fn of(meta: &fs::Metadata, path: &Path) -> Result<Self, Error> {
        let ty = meta.file_type();
        let kind = match () {
            () if ty.is_file() => return Ok(Self::Regular),
            () if ty.is_block_device() => return Ok(Self::BlockDevice),
            () if ty.is_dir() => "directory",
            () if ty.is_fifo() => "FIFO",
            () if ty.is_socket() => "socket",
            () if ty.is_char_device() => "character device",
            () => "file of an unknown type",
        };
        let path = path.to_owned();
        Err(Error::Kind { path, kind })
    }
}

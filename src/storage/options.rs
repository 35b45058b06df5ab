//! The options to open an image with.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use super::error::Error;
use crate::advice;

/// The image to open, and the mode of access.
#[derive(Clone, Debug)]
pub struct OpenOptions {
    /// A regular file or a block device.
    pub path: PathBuf,
    /// Open the image for reading only, and refuse writes.
    pub read_only: bool,
    /// Bypass the page cache (O_DIRECT).
    pub direct: bool,
    /// Logical block size in bytes: a power of two from 512 to 32768, and at least the unit that the storage can
    /// address. The default is the smallest possible size: 512 for a file, the device's own for a block device, and
    /// with `direct` at least the alignment that O_DIRECT requires. Most guests accept at most their page size (4096).
    pub logical_block_size: Option<u32>,
    /// Ignore flushes: after a crash of the host, anything may be lost.
    pub no_flush: bool,
    /// Let discards free space, and write zeroes as holes where that is allowed; without it, discards have no effect.
    pub unmap: bool,
    /// Lock the image while it is in use.
    pub locking: bool,
    /// Map a file in memory (tmpfs), and access it without system calls where that is possible.
    pub map: bool,
    /// The kind of content.
    pub content: Content,
}

/// The content of a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Content {
    /// A raw disk. Its size is a multiple of the block size, unless it looks like a qcow2 image.
    #[default]
    Disk,
    /// An image in a format.
    Image,
    /// A part of an image in a format, which names it: a backing file or a data file. It may even be empty.
    Part,
}

impl Content {
    /// Returns whether the file may have any size. The rest after the last whole block is not part of a raw disk.
    pub(super) fn may_end_anywhere(self) -> bool {
        self != Self::Disk
    }

    /// Returns the command that makes such a file. An empty part would not have the data that is missing.
    fn command(self, path: &Path) -> Option<String> {
        let path = path.display();
        match self {
            Self::Disk => Some(format!("truncate -s 10G {path}")),
            Self::Image => Some(format!("qemu-img create -f qcow2 {path} 10G")),
            Self::Part => None,
        }
    }
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self {
            path: PathBuf::new(),
            read_only: false,
            direct: false,
            logical_block_size: None,
            no_flush: false,
            unmap: true,
            locking: true,
            map: true,
            content: Content::Disk,
        }
    }
}

impl OpenOptions {
    pub(super) fn open_error(&self, source: io::Error) -> Error {
        let path = self.path.clone();
        match source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Error::Missing {
                why: advice::missing(&path, self.content.command(&path)),
                path,
            },
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem
                if !self.read_only && File::open(&path).is_ok() =>
            {
                Error::NotWritable {
                    why: advice::not_writable(&path, &source),
                    path,
                    source,
                }
            }
            io::ErrorKind::PermissionDenied => Error::Denied {
                why: advice::denied(&path),
                path,
                source,
            },
            _ => Error::Open { path, source },
        }
    }

    pub(super) fn query_error(&self, what: &'static str, source: io::Error) -> Error {
        let path = self.path.clone();
        Error::Query { path, what, source }
    }

    pub(super) fn direct_error(&self, source: io::Error) -> Error {
        let path = self.path.clone();
        Error::Direct { path, source }
    }
}

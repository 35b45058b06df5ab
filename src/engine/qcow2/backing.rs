//! The layer below an image: another image, a raw file, or nothing. Any thread.

use std::io;
use std::sync::Arc;

use super::disk::Qcow2Disk;
use crate::io::IoVecs;
use crate::storage::RawFile;

/// The place of the data that an image does not have.
#[derive(Clone, Debug)]
pub(super) enum Backing {
    /// It reads as zeroes.
    None,
    Raw(Arc<RawFile>),
    Qcow2(Arc<Qcow2Disk>),
}

impl Backing {
    /// Fills `len` bytes of `iov` from byte `at` on, with the data from `guest` on. What is past the end is zero.
    pub(super) fn read(&self, iov: &IoVecs, at: usize, len: usize, guest: u64) -> io::Result<()> {
        match self {
            Self::None => {
                iov.zero_at(at, len);
                Ok(())
            }
            Self::Raw(file) => file.read_part(iov, at, len, guest),
            Self::Qcow2(disk) => disk.read_part(iov, at, len, guest),
        }
    }

    /// Returns the number of files below each other.
    pub(super) fn depth(&self) -> usize {
        match self {
            Self::None => 0,
            Self::Raw(_) => 1,
            Self::Qcow2(disk) => disk.depth(),
        }
    }

    /// Returns all files.
    pub(super) fn files(&self) -> Vec<&Arc<RawFile>> {
        match self {
            Self::None => Vec::new(),
            Self::Raw(file) => vec![file],
            Self::Qcow2(disk) => disk.files(),
        }
    }

    /// Reads everything again, because other processes have used the files.
    pub(super) fn look_anew(&self) -> io::Result<()> {
        match self {
            Self::None => Ok(()),
            Self::Raw(file) => file.look_anew().map(drop),
            Self::Qcow2(disk) => disk.look_anew(),
        }
    }
}

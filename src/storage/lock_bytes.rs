//! The bytes of an image that stand for QEMU's permissions, and the locks on them.
//!
//! QEMU's permissions on an image are bits: CONSISTENT_READ 0, WRITE 1, WRITE_UNCHANGED 2, RESIZE 3. A program that
//! *uses* permission `n` holds a shared lock on byte 100 + n of the file. A program that does not let others use it
//! (does not *share* it) holds a shared lock on byte 200 + n. A program first takes its own locks. Then it checks for
//! conflicts: whether the "unshared" byte of a permission that it uses is locked by another program, or the "used" byte
//! of one that it does not share. If two programs start at the same time, both may be refused, but never do both
//! succeed.
//!
//! We take the same permissions as QEMU's virtio-blk device: we use CONSISTENT_READ, and WRITE unless the disk is
//! read-only. We do not share WRITE, unless a reader is told to (`force-share`). The files of an image format must
//! keep their size as well, so RESIZE is not shared there.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError, Weak};

use crate::succession;
use crate::sys::ofd_lock;

/// First of the bytes that stand for used permissions.
const USED: i64 = 100;
/// First of the bytes that stand for permissions that are not shared.
const UNSHARED: i64 = 200;
/// Permission bits. WRITE_UNCHANGED is not needed.
const CONSISTENT_READ: i64 = 0;
const WRITE: i64 = 1;
const RESIZE: i64 = 3;

/// The use of an image that conflicts with a writer, but not with a reader.
pub(super) const READER: &str = "another process reads it and does not let others write to it";

/// The conflicting use is by another disk of this process.
pub(super) const OURSELVES: &str = "another disk of this process uses it";

/// The files that this process has locked, for messages. A file may occur several times.
static LOCKED: Mutex<Vec<FileId>> = Mutex::new(Vec::new());

/// A file, by device and inode number.
type FileId = (u64, u64);

pub(super) fn file_id(fd: BorrowedFd<'_>) -> Option<FileId> {
    let found = rustix::fs::fstat(fd).ok()?;
    Some((found.st_dev, found.st_ino))
}

/// The place in an open file that refers to its lock, if it has one.
#[derive(Debug, Default)]
pub(super) struct LockPlace(Mutex<Weak<Held>>);

impl LockPlace {
    pub(super) fn lock(&self) -> MutexGuard<'_, Weak<Held>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The use of an image that a lock is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockMode {
    /// Reads and writes.
    Write,
    /// Only reads, and nobody may write.
    Read,
    /// Only reads, and others may write meanwhile (QEMU's `force-share`).
    ReadForceShare,
    /// Only reads a file of an image format, and nobody may write to it or resize it.
    ReadFormat,
    /// Reads and writes a file of an image format, and nobody else may write to it or resize it.
    WriteFormat,
}

/// The locks of one open file description, released on drop.
#[derive(Debug)]
pub(super) struct Held {
    /// A duplicate that refers to the storage's open file description, and may outlive the storage.
    fd: OwnedFd,
    mode: Mutex<LockMode>,
    /// The entry in `LOCKED`.
    listed: Option<FileId>,
}

impl Held {
    /// `fd` belongs to the image's open file description. Takes no locks yet.
    pub(super) fn new(fd: OwnedFd, mode: LockMode) -> Self {
        Self {
            fd,
            mode: Mutex::new(mode),
            listed: None,
        }
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    pub(super) fn mode(&self) -> LockMode {
        *self.mode.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps only the locks of [`LockMode::ReadFormat`]. There is no moment without a lock.
    pub(super) fn only_read(&self) -> io::Result<()> {
        let mut mode = self.mode.lock().unwrap_or_else(PoisonError::into_inner);
        let fd = self.fd.as_fd();
        ofd_lock::set(fd, libc::F_RDLCK, UNSHARED + RESIZE, 1)?;
        for byte in [USED + WRITE, USED + RESIZE] {
            ofd_lock::set(fd, libc::F_UNLCK, byte, 1)?;
        }
        *mode = LockMode::ReadFormat;
        Ok(())
    }

    /// The locked file. `None` if no lock was taken.
    pub(super) fn file(&self) -> Option<FileId> {
        self.listed
    }

    /// Returns whether the same locks serve another disk on this file. Two disks never write to one file.
    pub(super) fn covers(&self, mode: LockMode) -> bool {
        match self.mode() {
            LockMode::Write | LockMode::WriteFormat => false,
            LockMode::Read => matches!(mode, LockMode::Read | LockMode::ReadForceShare),
            LockMode::ReadForceShare => mode == LockMode::ReadForceShare,
            LockMode::ReadFormat => !matches!(mode, LockMode::Write | LockMode::WriteFormat),
        }
    }

    /// Takes the locks. Returns a description of the conflict, if there is one.
    pub(super) fn apply(&mut self) -> io::Result<Option<&'static str>> {
        let file = file_id(self.fd.as_fd());
        let conflict = self.take()?;
        if conflict.is_none() {
            self.listed = file;
            locked().extend(file);
        } else if file.is_some_and(|file| locked().contains(&file)) {
            return Ok(Some(OURSELVES));
        }
        Ok(conflict)
    }

    /// Takes the locks, then checks for conflicting ones.
    fn take(&self) -> io::Result<Option<&'static str>> {
        let (fd, mode) = (self.fd.as_fd(), self.mode());
        let mine: &[i64] = match mode {
            LockMode::Write => &[USED + CONSISTENT_READ, USED + WRITE, UNSHARED + WRITE],
            LockMode::Read => &[USED + CONSISTENT_READ, UNSHARED + WRITE],
            LockMode::ReadForceShare => &[USED + CONSISTENT_READ],
            LockMode::ReadFormat => &[USED + CONSISTENT_READ, UNSHARED + WRITE, UNSHARED + RESIZE],
            LockMode::WriteFormat => &[
                USED + CONSISTENT_READ,
                USED + WRITE,
                USED + RESIZE,
                UNSHARED + WRITE,
                UNSHARED + RESIZE,
            ],
        };
        for &byte in mine {
            match ofd_lock::set(fd, libc::F_RDLCK, byte, 1) {
                // Shared locks do not conflict with each other, so this is not one of QEMU's programs.
                Err(e) if matches!(e.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) => {
                    return Ok(Some("another process has locked it"));
                }
                result => result?,
            }
        }

        // Locks of our own open file description are not reported.
        let other_has = |byte| ofd_lock::is_locked(fd, byte);
        if mode != LockMode::ReadForceShare && other_has(USED + WRITE)? {
            return Ok(Some("another process has it open for writing"));
        }
        if matches!(mode, LockMode::ReadFormat | LockMode::WriteFormat) && other_has(USED + RESIZE)? {
            return Ok(Some("another process may resize it"));
        }
        if other_has(UNSHARED + CONSISTENT_READ)? {
            return Ok(Some("another process does not let others read it"));
        }
        if matches!(mode, LockMode::Write | LockMode::WriteFormat) && other_has(UNSHARED + WRITE)? {
            return Ok(Some(READER));
        }
        if mode == LockMode::WriteFormat && other_has(UNSHARED + RESIZE)? {
            return Ok(Some("another process does not let others resize it"));
        }
        Ok(None)
    }
}

fn locked() -> MutexGuard<'static, Vec<FileId>> {
    LOCKED.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(file) = self.listed {
            let mut locked = locked();
            let place = locked.iter().position(|&known| known == file);
            place.map(|place| locked.swap_remove(place));
        }
        if !succession::may_clean_up() {
            // The predecessor has the same lock.
            return;
        }
        // Both groups of bytes and all between them. If this fails, closing the file still unlocks it.
        let _ = ofd_lock::set(self.fd.as_fd(), libc::F_UNLCK, USED, 2 * (UNSHARED - USED));
    }
}

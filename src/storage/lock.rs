//! Image locks that are compatible with QEMU, qemu-storage-daemon, qemu-img and qemu-nbd.
//!
//! QEMU's permissions on an image are bits: CONSISTENT_READ 0, WRITE 1, WRITE_UNCHANGED 2, RESIZE 3. A program that
//! *uses* permission `n` holds a shared lock on byte 100 + n of the file. A program that does not let others use it
//! (does not *share* it) holds a shared lock on byte 200 + n. A program first takes its own locks. Then it checks for
//! conflicts: whether the "unshared" byte of a permission that it uses is locked by another program, or the "used" byte
//! of one that it does not share. If two programs start at the same time, both may be refused, but never do both
//! succeed.
//!
//! We take the same permissions as QEMU's virtio-blk device: we use CONSISTENT_READ, and WRITE unless the disk is
//! read-only. We do not share WRITE. So a disk has either one writer and no readers, or any number of readers.
//!
//! The locks belong to the open file description (OFD), not to the process. So two disks of one process exclude each
//! other as well.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

use super::RawFile;
use crate::log_limit::LogLimit;
use crate::sys::ofd_lock;

/// Limits the warning about missing locks, because a disk takes its lock again whenever its driver resets it.
static UNLOCKED: LogLimit = LogLimit::new();

/// First of the bytes that stand for used permissions.
const USED: i64 = 100;
/// First of the bytes that stand for permissions that are not shared.
const UNSHARED: i64 = 200;
/// Permission bits. A disk does not need the other two.
const CONSISTENT_READ: i64 = 0;
const WRITE: i64 = 1;

/// Pause between attempts to take a lock that is about to be released.
const PAUSE: Duration = Duration::from_millis(10);

/// The reason why an image cannot be locked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LockError {
    /// Another disk or program (QEMU, `qemu-img`, ...) uses the image in a conflicting way.
    #[error("{} is in use: {how}", path.display())]
    InUse {
        /// The image.
        path: PathBuf,
        /// A description of the other use.
        how: &'static str,
    },

    /// The lock of this [`RawFile`] is held already, and at least one of the two uses is for writing.
    #[error("this disk has locked {} already", path.display())]
    Held {
        /// The image.
        path: PathBuf,
    },

    /// The lock server of the file system does not answer, or has no resources left.
    #[error(
        "cannot lock {}: the lock server of its file system does not work; start it (NFS: rpc.statd), or mount with \
         locks of this host only (NFS: nolock) if no other host uses the image",
        path.display()
    )]
    NoServer {
        /// The image.
        path: PathBuf,
        /// The error of `fcntl`.
        source: io::Error,
    },

    /// The image cannot be locked for another reason.
    #[error("cannot lock {}", path.display())]
    Lock {
        /// The image.
        path: PathBuf,
        /// The error of `fcntl`.
        source: io::Error,
    },
}

impl LockError {
    /// The use of an image that conflicts with a writer, but not with a reader.
    pub const READER: &str = "another process reads it and does not let others write to it";
}

/// A lock on an image, held until this is dropped.
///
/// It is separate from [`RawFile`], so that a disk can be open without being locked. During a migration, both sides
/// have the image open, and the lock passes from one to the other. Disks that only read share a lock.
#[derive(Debug)]
pub struct ImageLock {
    held: Option<Arc<Held>>,
    place: Arc<LockPlace>,
}

/// The place in a [`RawFile`] that refers to its lock, if it has one.
#[derive(Debug, Default)]
pub(super) struct LockPlace(Mutex<Weak<Held>>);

impl LockPlace {
    fn lock(&self) -> MutexGuard<'_, Weak<Held>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ImageLock {
    /// Locks the image, for writing if the file is writable. Never waits. Any thread.
    ///
    /// # Errors
    /// See [`LockError`]. No lock is kept then.
    pub fn acquire(file: &RawFile) -> Result<Self, LockError> {
        Self::acquire_for(file, !file.limits().read_only)
    }

    /// Locks the image, for reading or for writing. Never waits. Any thread.
    ///
    /// If the file system does not support such locks, this logs a warning, and the image is served without a lock.
    ///
    /// # Errors
    /// See [`LockError`]. No lock is kept then.
    pub fn acquire_for(file: &RawFile, writes: bool) -> Result<Self, LockError> {
        let path = || file.path().to_owned();
        let failed = |source| LockError::Lock { path: path(), source };
        let place = Arc::clone(file.lock_place());
        let lock = |held| Self {
            held,
            place: Arc::clone(file.lock_place()),
        };
        let mut present = place.lock();
        match present.upgrade() {
            Some(held) if !held.writes && !writes => return Ok(lock(Some(held))),
            Some(_) => return Err(LockError::Held { path: path() }),
            None => {}
        }
        let fd = file.as_fd().try_clone_to_owned().map_err(failed)?;
        let held = Arc::new(Held { fd, writes });
        match apply(held.fd.as_fd(), writes) {
            Ok(None) => {
                *present = Arc::downgrade(&held);
                Ok(lock(Some(held)))
            }
            Ok(Some(how)) => Err(LockError::InUse { path: path(), how }),
            Err(e) if is_unsupported(&e) => {
                if let Some(suppressed) = UNLOCKED.pass("unlocked", path().display()) {
                    tracing::warn!(
                        disk = path().display().to_string(),
                        suppressed,
                        "the file system does not support image locks: nothing prevents other programs from using the \
                         image: {e}"
                    );
                }
                Ok(lock(None))
            }
            Err(source) if source.raw_os_error() == Some(libc::ENOLCK) => {
                let path = path();
                Err(LockError::NoServer { path, source })
            }
            Err(e) => Err(failed(e)),
        }
    }

    /// Time that [`acquire_soon`](Self::acquire_soon) waits: the kernel releases the locks of a killed process after
    /// its I/O.
    pub const PATIENCE: Duration = Duration::from_millis(500);

    /// Like [`acquire_for`](Self::acquire_for), but waits a moment for a predecessor to release the image.
    ///
    /// # Errors
    /// Those of [`acquire_for`](Self::acquire_for).
    pub fn acquire_soon(file: &RawFile, writes: bool) -> Result<Self, LockError> {
        let deadline = Instant::now() + Self::PATIENCE;
        loop {
            match Self::acquire_for(file, writes) {
                Err(LockError::InUse { .. }) if Instant::now() < deadline => thread::sleep(PAUSE),
                result => return result,
            }
        }
    }

    /// Returns false if the file system does not support locks.
    pub fn is_held(&self) -> bool {
        self.held.is_some()
    }
}

impl Drop for ImageLock {
    fn drop(&mut self) {
        // Not while another thread takes the lock, because unlocking would also release its new locks.
        let _present = self.place.lock();
        self.held = None;
    }
}

/// The locks of one open file description, released on drop.
#[derive(Debug)]
struct Held {
    /// A duplicate that refers to the storage's open file description, and may outlive the storage.
    fd: OwnedFd,
    writes: bool,
}

impl Drop for Held {
    fn drop(&mut self) {
        // Both groups of bytes and all between them. If this fails, closing the file still unlocks it.
        let _ = ofd_lock::set(self.fd.as_fd(), libc::F_UNLCK, USED, 2 * (UNSHARED - USED));
    }
}

/// Takes the locks, then checks for conflicting ones. Returns a description of the conflict, if there is one.
fn apply(fd: BorrowedFd<'_>, writes: bool) -> io::Result<Option<&'static str>> {
    let mine: &[i64] = match writes {
        true => &[USED + CONSISTENT_READ, USED + WRITE, UNSHARED + WRITE],
        false => &[USED + CONSISTENT_READ, UNSHARED + WRITE],
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
    if other_has(USED + WRITE)? {
        return Ok(Some("another process has it open for writing"));
    }
    if other_has(UNSHARED + CONSISTENT_READ)? {
        return Ok(Some("another process does not let others read it"));
    }
    if writes && other_has(UNSHARED + WRITE)? {
        return Ok(Some(LockError::READER));
    }
    Ok(None)
}

fn is_unsupported(e: &io::Error) -> bool {
    matches!(
        e.raw_os_error(),
        Some(libc::EINVAL | libc::ENOSYS | libc::EOPNOTSUPP)
    )
}

//! Image locks that QEMU, qemu-storage-daemon, qemu-img and qemu-nbd understand.
//!
//! QEMU's permissions on an image are bits: CONSISTENT_READ 0, WRITE 1, WRITE_UNCHANGED 2, RESIZE 3. Who *uses*
//! permission `n` holds a shared lock on byte 100 + n of the file, who does not let others use it (does not *share* it)
//! a shared lock on byte 200 + n. First one takes one's own locks, then one looks whether anybody's contradict: is
//! the "unshared" byte of what I use locked, or the "used" byte of what I do not share? Two who start at the same moment
//! may both be refused, but never both succeed.
//!
//! We ask for what QEMU's own virtio-blk device does: use CONSISTENT_READ, and WRITE unless read-only; do not share
//! WRITE. So a disk has one writer and no readers beside it, or any number of readers.
//!
//! The locks are those of the open file description (OFD): they follow the open file, not the process, and two
//! devices of one process exclude each other as well.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::RawFile;
use crate::log_limit::LogLimit;
use crate::sys::ofd_lock;

/// A disk takes its lock again as often as its driver resets it.
static UNLOCKED: LogLimit = LogLimit::new();

/// Base of the bytes that say what is used.
const USED: i64 = 100;
/// Base of the bytes that say what is not shared.
const UNSHARED: i64 = 200;
/// Permission bits (of four; the others are of no interest to a device).
const CONSISTENT_READ: i64 = 0;
const WRITE: i64 = 1;

/// Between two tries of a lock that somebody is about to let go of.
const PAUSE: Duration = Duration::from_millis(10);

/// Why an image cannot be locked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LockError {
    /// Somebody else uses it in a way that excludes ours: another device, QEMU, `qemu-img`, ...
    #[error("{} is in use: {how}", path.display())]
    InUse {
        /// The image.
        path: PathBuf,
        /// What the other one does.
        how: &'static str,
    },

    /// This very [`RawFile`] is locked already.
    #[error("{} is locked by this device already", path.display())]
    Held {
        /// The image.
        path: PathBuf,
    },

    /// Locks are kept by a server, which has none to give or cannot be asked.
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

    /// The lock call failed, for other reasons than the above.
    #[error("cannot lock {}", path.display())]
    Lock {
        /// The image.
        path: PathBuf,
        /// The error of `fcntl`.
        source: io::Error,
    },
}

impl LockError {
    /// How an image is used that could be read at the same time.
    pub const READER: &str = "another process reads it and lets nobody write to it";
}

/// A lock on an image, held until dropped.
///
/// Apart from [`RawFile`], so that a device can open its disk, and lock it only while it really serves it (a migration
/// hands an image that both sides have open over from one to the other).
#[derive(Debug)]
pub struct ImageLock {
    held: Option<Held>,
}

impl ImageLock {
    /// Locks the image. Never waits. Any thread.
    ///
    /// A file system without such locks is served unlocked, after a warning; storage without a file needs no lock.
    ///
    /// # Errors
    /// See [`LockError`]. Nothing stays locked.
    pub fn acquire(file: &RawFile) -> Result<Self, LockError> {
        let path = || file.path().to_owned();
        let failed = |source| LockError::Lock { path: path(), source };

        let fd = file.as_fd().try_clone_to_owned().map_err(failed)?;
        let held = Held::new(fd, file.lock_flag()).ok_or_else(|| LockError::Held { path: path() })?;
        let writes = !file.limits().read_only;
        match apply(held.fd.as_fd(), writes) {
            Ok(None) => Ok(Self { held: Some(held) }),
            Ok(Some(how)) => Err(LockError::InUse { path: path(), how }),
            Err(e) if is_unsupported(&e) => {
                if let Some(suppressed) = UNLOCKED.pass("unlocked", path().display()) {
                    tracing::warn!(
                        disk = path().display().to_string(),
                        suppressed,
                        "no image locks on this file system: {e}"
                    );
                }
                Ok(Self { held: None })
            }
            Err(source) if source.raw_os_error() == Some(libc::ENOLCK) => {
                let path = path();
                Err(LockError::NoServer { path, source })
            }
            Err(e) => Err(failed(e)),
        }
    }

    /// How long [`acquire_soon`](Self::acquire_soon) waits: one that was killed has its last I/O to wait for.
    pub const PATIENCE: Duration = Duration::from_millis(500);

    /// As [`acquire`](Self::acquire), but gives a predecessor a moment to let go of the image.
    ///
    /// # Errors
    /// As [`acquire`](Self::acquire).
    pub fn acquire_soon(file: &RawFile) -> Result<Self, LockError> {
        let deadline = Instant::now() + Self::PATIENCE;
        loop {
            match Self::acquire(file) {
                Err(LockError::InUse { .. }) if Instant::now() < deadline => thread::sleep(PAUSE),
                result => return result,
            }
        }
    }

    /// False if the file system has no locks.
    pub fn is_held(&self) -> bool {
        self.held.is_some()
    }
}

/// The locks of one open file description; dropped, they are gone.
#[derive(Debug)]
struct Held {
    /// A duplicate: the same open file description as the storage's, whatever becomes of that.
    fd: OwnedFd,
    flag: Arc<AtomicBool>,
}

impl Held {
    /// `None` if these locks are held already: they would not exclude each other, and the first to go would take them
    /// from the other.
    fn new(fd: OwnedFd, flag: Arc<AtomicBool>) -> Option<Self> {
        // Acquire: pairs with the Release in `drop`; the former holder's unlocking is over.
        if flag.swap(true, Ordering::Acquire) {
            return None;
        }
        Some(Self { fd, flag })
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // Both groups of bytes and what is between. Nothing to be done about a failure; closing the file unlocks too.
        let _ = ofd_lock::set(self.fd.as_fd(), libc::F_UNLCK, USED, 2 * (UNSHARED - USED));
        // Release: pairs with the Acquire in `new`.
        self.flag.store(false, Ordering::Release);
    }
}

/// Takes the locks, then looks for somebody's that contradict, and says what that one does.
fn apply(fd: BorrowedFd<'_>, writes: bool) -> io::Result<Option<&'static str>> {
    let mine: &[i64] = match writes {
        true => &[USED + CONSISTENT_READ, USED + WRITE, UNSHARED + WRITE],
        false => &[USED + CONSISTENT_READ, UNSHARED + WRITE],
    };
    for &byte in mine {
        match ofd_lock::set(fd, libc::F_RDLCK, byte, 1) {
            // Shared locks get along with each other, so this is no program of QEMU's.
            Err(e) if matches!(e.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) => {
                return Ok(Some("another process has locked it"));
            }
            result => result?,
        }
    }

    // Ours are of the same open file description and do not count.
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

//! The lock on an image: a disk has either one writer and no readers, or any number of readers.
//!
//! The locks are compatible with QEMU, qemu-storage-daemon, qemu-img and qemu-nbd (`lock_bytes`). They belong to the
//! open file description (OFD), not to the process. So two disks of one process exclude each other as well.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::file::RawFile;
use super::lock_bytes::{self, Held, LockMode, LockPlace, file_id};
use crate::interrupt;
use crate::log_limit::LogLimit;

/// Limits the warning about missing locks, because a disk takes its lock again whenever its driver resets it.
static UNLOCKED: LogLimit = LogLimit::new();

/// Pause between attempts to take a lock that is about to be released.
const PAUSE: Duration = Duration::from_millis(10);

/// The reason why an image cannot be locked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LockError {
    /// Another disk or program (QEMU, `qemu-img`, ...) uses the image in a conflicting way.
    #[error("{}{} is in use: {how}", path.display(), below(image.as_deref().filter(|image| *image != path)))]
    InUse {
        /// The file that is locked.
        path: PathBuf,
        /// A description of the other use.
        how: &'static str,
        /// The image in a format that the file belongs to.
        image: Option<PathBuf>,
    },

    /// The lock of this [`RawFile`] is held already, and at least one of the two uses is for writing.
    #[error("another disk of this process has locked {}, and one of the two writes to it", path.display())]
    Held {
        /// The image.
        path: PathBuf,
    },

    /// A disk could not make its writes stable before it released the image.
    #[error(
        "{} stays locked until this process ends: a flush failed when its last user released it, so it may lack writes",
        path.display()
    )]
    Kept {
        /// The image.
        path: PathBuf,
    },

    /// A signal has ended the wait for a process that has ended, but whose I/O is not over.
    #[error("{} is still in use by a process that has ended: {}", path.display(), interrupt::TOLD)]
    Interrupted {
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

    /// A cluster does not give us the image's lock.
    #[error("cannot use {}: {why}", path.display())]
    Remote {
        /// The image.
        path: PathBuf,
        /// The cluster's reason.
        why: String,
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
    pub const READER: &str = lock_bytes::READER;

    /// The conflicting use is by another disk of this process.
    pub const OURSELVES: &str = lock_bytes::OURSELVES;

    /// Names the image in a format that the file belongs to.
    pub(crate) fn of_image(self, image: &Path) -> Self {
        match self {
            Self::InUse { path, how, .. } => Self::InUse {
                path,
                how,
                image: Some(image.to_owned()),
            },
            other => other,
        }
    }
}

/// Describes a file that is not the image itself.
fn below(image: Option<&Path>) -> String {
    image.map_or_else(String::new, |image| {
        format!(", a file that {} needs,", image.display())
    })
}

/// Locks that stay until the process ends.
static KEPT: Mutex<Vec<Arc<Held>>> = Mutex::new(Vec::new());

fn kept() -> MutexGuard<'static, Vec<Arc<Held>>> {
    // Consistent even after a panic: the list only grows.
    KEPT.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A lock on an image, held until this is dropped.
///
/// It is separate from [`RawFile`], so that a disk can be open without being locked. During a migration, both sides
/// have the image open, and the lock passes from one to the other. Disks that only read share a lock.
#[derive(Debug)]
pub struct ImageLock {
    held: Option<Arc<Held>>,
    place: Arc<LockPlace>,
    /// The locks of the other files of an image: its backing files and its data file.
    others: Vec<ImageLock>,
}

impl ImageLock {
    /// Locks the image, for writing if the file is writable. Never waits. Any thread.
    ///
    /// # Errors
    /// See [`LockError`]. No lock is kept then.
    pub fn acquire(file: &RawFile) -> Result<Self, LockError> {
        Self::acquire_for(
            file,
            match file.limits().read_only {
                true => LockMode::Read,
                false => LockMode::Write,
            },
        )
    }

    /// Locks the image. Never waits. Any thread.
    ///
    /// If the file system does not support such locks, this logs a warning, and the image is served without a lock.
    ///
    /// # Errors
    /// See [`LockError`]. No lock is kept then.
    pub fn acquire_for(file: &RawFile, mode: LockMode) -> Result<Self, LockError> {
        Self::acquire_through(file, mode, || file.as_fd().try_clone_to_owned())
    }

    /// Uses the lock that another process has taken and passed with `fd`, which belongs to the locked open file. Both
    /// processes have the lock then. Without `fd`, the file system does not support locks.
    ///
    /// # Errors
    /// That process has lost the lock.
    pub fn inherit(file: &RawFile, mode: LockMode, fd: Option<OwnedFd>) -> Result<Self, LockError> {
        match fd {
            Some(fd) => Self::acquire_through(file, mode, || Ok(fd)),
            None => Ok(Self {
                held: None,
                place: Arc::clone(file.lock_place()),
                others: Vec::new(),
            }),
        }
    }

    /// Returns the open files that hold this lock and the locks [added](Self::add) to it, in order. `None` stands for a
    /// file without a lock.
    pub fn files(&self) -> Vec<Option<BorrowedFd<'_>>> {
        let mut files = vec![self.held.as_ref().map(|held| held.fd())];
        files.extend(self.others.iter().flat_map(Self::files));
        files
    }

    fn acquire_through(
        file: &RawFile,
        mode: LockMode,
        fd: impl FnOnce() -> io::Result<OwnedFd>,
    ) -> Result<Self, LockError> {
        let path = || file.path().to_owned();
        let failed = |source| LockError::Lock { path: path(), source };
        let place = Arc::clone(file.lock_place());
        let lock = |held| Self {
            held,
            place: Arc::clone(file.lock_place()),
            others: Vec::new(),
        };
        let mut present = place.lock();
        match present.upgrade() {
            Some(held) if held.covers(mode) => return Ok(lock(Some(held))),
            Some(_) if is_kept(file) => return Err(LockError::Kept { path: path() }),
            Some(_) => return Err(LockError::Held { path: path() }),
            None => {}
        }
        let fd = fd().map_err(failed)?;
        let mut held = Held::new(fd, mode);
        match held.apply() {
            Ok(None) => {
                let held = Arc::new(held);
                *present = Arc::downgrade(&held);
                Ok(lock(Some(held)))
            }
            Ok(Some(_)) if is_kept(file) => Err(LockError::Kept { path: path() }),
            Ok(Some(how)) => Err(LockError::InUse {
                path: path(),
                how,
                image: None,
            }),
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
    pub fn acquire_soon(file: &RawFile, mode: LockMode) -> Result<Self, LockError> {
        let deadline = Instant::now() + Self::PATIENCE;
        loop {
            match Self::acquire_for(file, mode) {
                Err(LockError::InUse { .. }) if Instant::now() < deadline => thread::sleep(PAUSE),
                result => return result,
            }
        }
    }

    /// Makes this lock serve another open file of the same image too, until both are dropped: nobody can take the image
    /// in between. Returns `None` if the lock is for another use of the image than `mode`.
    pub fn share_with(&self, file: &RawFile, mode: LockMode) -> Option<Self> {
        if self.held.as_ref().is_some_and(|held| held.mode() != mode) {
            return None;
        }
        let place = Arc::clone(file.lock_place());
        if let Some(held) = &self.held {
            *place.lock() = Arc::downgrade(held);
        }
        Some(Self {
            held: self.held.clone(),
            place,
            others: Vec::new(),
        })
    }

    /// Holds `other`, the lock of another file of the same image, as long as this lock.
    pub fn add(&mut self, other: Self) {
        self.others.push(other);
    }

    /// Keeps only what a backing file needs: others may read it, but not write to it nor resize it.
    ///
    /// # Errors
    /// The locks cannot be changed. All of them stay.
    pub(crate) fn only_read(&self) -> io::Result<()> {
        self.held.as_ref().map_or(Ok(()), |held| held.only_read())?;
        self.others.iter().try_for_each(Self::only_read)
    }

    /// Keeps the image locked until the process ends: it may lack writes, and nobody should use it as if it were
    /// complete.
    pub(crate) fn keep(mut self) {
        kept().extend(self.held.take());
        self.others.drain(..).for_each(Self::keep);
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

/// Returns whether the process keeps a lock on this image.
fn is_kept(file: &RawFile) -> bool {
    let file = file_id(file.as_fd());
    file.is_some() && kept().iter().any(|held| held.file() == file)
}

fn is_unsupported(e: &io::Error) -> bool {
    matches!(
        e.raw_os_error(),
        Some(libc::EINVAL | libc::ENOSYS | libc::EOPNOTSUPP)
    )
}

//! Whose turn it is to use the image.
//!
//! A disk that runs holds the image's lock. It gives it up when its last ring stops, everything flushed, so that the
//! destination of a migration, which has opened the image before, can take over. Whoever takes the image over forgets
//! what this host knew of it. Control thread only.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use crate::log_limit::LogLimit;
use crate::storage::{ImageLock, LockError, Storage};

/// Why an image cannot be used now.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TakeError {
    /// It cannot be locked.
    #[error(transparent)]
    Lock(#[from] LockError),

    /// It is locked, but what others have done with it is not known.
    #[error("cannot find out what {} has become while others had it: {error}", path.display())]
    Look {
        /// The image.
        path: PathBuf,
        /// Of the call that failed.
        error: io::Error,
    },
}

/// The right to use an image.
#[derive(Debug)]
pub(super) struct Turn {
    storage: Arc<Storage>,
    lock: Option<ImageLock>,
    /// The lock goes with the process.
    ending: bool,
    log: LogLimit,
}

impl Turn {
    pub(super) fn new(storage: Arc<Storage>) -> Self {
        Self {
            storage,
            lock: None,
            ending: false,
            log: LogLimit::new(),
        }
    }

    /// Takes the lock, if it is not held, and looks at the image anew. Returns whether its size has changed.
    pub(super) fn take(&mut self) -> Result<bool, TakeError> {
        if self.lock.is_some() {
            return Ok(false);
        }
        let lock = ImageLock::acquire_soon(&self.storage)?;
        let resized = self.storage.look_anew().map_err(|error| TakeError::Look {
            path: self.storage.path().to_owned(),
            error,
        })?;
        self.lock = Some(lock);
        tracing::debug!(disk = self.disk(), resized, "image locked");
        Ok(resized)
    }

    /// Makes everything stable and lets go of the lock.
    ///
    /// # Errors
    /// Not everything is stable, and the image stays locked: nobody is to take it for complete.
    pub(super) fn hand_over(&mut self) -> io::Result<()> {
        if self.ending || self.lock.is_none() {
            return Ok(());
        }
        if let Err(error) = self.storage.flush_at_rest() {
            if let Some(suppressed) = self.log.pass("unflushed", "") {
                tracing::error!(
                    disk = self.disk(), %error, suppressed,
                    "flush failed before releasing the image: writes may be lost; the image stays locked until this \
                     process ends"
                );
            }
            return Err(error);
        }
        self.lock = None;
        tracing::debug!(disk = self.disk(), "image handed over");
        Ok(())
    }

    /// The process ends: the lock goes with it, and no flush takes the kernel's report of a failed write, which is the
    /// successor's to see.
    pub(super) fn end(&mut self) {
        self.ending = true;
    }

    fn disk(&self) -> String {
        self.storage.path().display().to_string()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::storage::OpenOptions;

    fn open(path: &std::path::Path) -> Turn {
        let options = OpenOptions {
            path: path.to_owned(),
            ..OpenOptions::default()
        };
        Turn::new(Arc::new(Storage::open(&options).unwrap()))
    }

    fn in_use(turn: &mut Turn) -> bool {
        matches!(turn.take(), Err(TakeError::Lock(LockError::InUse { .. })))
    }

    #[test]
    fn two_disks_use_an_image_in_turns() {
        let image = tempfile::NamedTempFile::new().unwrap();
        image.as_file().set_len(4096).unwrap();
        let [mut source, mut destination] = [open(image.path()), open(image.path())];
        source.take().unwrap();
        source.take().unwrap();
        assert!(in_use(&mut destination));
        source.hand_over().unwrap();
        destination.take().unwrap();
        assert!(in_use(&mut source));
        source.hand_over().unwrap();
        assert!(in_use(&mut source));
        drop(destination);
        source.take().unwrap();
    }

    #[test]
    fn a_predecessor_has_some_time_to_let_go_of_the_image() {
        let image = tempfile::NamedTempFile::new().unwrap();
        image.as_file().set_len(4096).unwrap();
        let [mut old, mut new] = [open(image.path()), open(image.path())];
        old.take().unwrap();
        let start = Instant::now();
        assert!(new.take().is_err());
        assert!(start.elapsed() >= ImageLock::PATIENCE);
    }
}

//! Whose turn it is to use the image.
//!
//! A disk that runs holds the image's lock. It gives it up when its last ring stops, everything flushed, so that the
//! destination of a migration, which has opened the image before, can take over. Control thread only.

use std::sync::Arc;

use crate::log_limit::LogLimit;
use crate::storage::{ImageLock, LockError, Storage};

/// The right to use an image.
#[derive(Debug)]
pub(super) struct Turn {
    storage: Arc<Storage>,
    lock: Option<ImageLock>,
    log: LogLimit,
}

impl Turn {
    pub(super) fn new(storage: Arc<Storage>) -> Self {
        Self {
            storage,
            lock: None,
            log: LogLimit::new(),
        }
    }

    /// Takes the lock, if it is not held.
    pub(super) fn take(&mut self) -> Result<(), LockError> {
        if self.lock.is_none() {
            self.lock = Some(ImageLock::acquire_soon(&self.storage)?);
            tracing::debug!(disk = self.storage.path().display().to_string(), "image locked");
        }
        Ok(())
    }

    /// Makes everything stable and lets go of the lock.
    pub(super) fn hand_over(&mut self) {
        let Some(lock) = self.lock.take() else { return };
        if let Err(error) = self.storage.flush()
            && let Some(suppressed) = self.log.pass("unflushed", "")
        {
            let disk = self.storage.path().display().to_string();
            tracing::error!(disk, %error, suppressed, "flush before the image is handed over");
        }
        drop(lock);
        tracing::debug!(
            disk = self.storage.path().display().to_string(),
            "image handed over"
        );
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

    #[test]
    fn two_disks_use_an_image_in_turns() {
        let image = tempfile::NamedTempFile::new().unwrap();
        image.as_file().set_len(4096).unwrap();
        let [mut source, mut destination] = [open(image.path()), open(image.path())];
        source.take().unwrap();
        source.take().unwrap();
        assert!(matches!(destination.take(), Err(LockError::InUse { .. })));
        source.hand_over();
        destination.take().unwrap();
        assert!(matches!(source.take(), Err(LockError::InUse { .. })));
        source.hand_over();
        assert!(matches!(source.take(), Err(LockError::InUse { .. })));
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

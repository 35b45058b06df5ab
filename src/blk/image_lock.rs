//! The lock of an image, which several processes use in turns.
//!
//! A disk that runs holds the lock. When its last ring has stopped and everything is flushed, it releases the lock.
//! Then the destination of a migration, which has opened the image earlier, can take over. It drops what its host has
//! cached of the image. Control thread only.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use crate::engine::BlockNode;
use crate::io::IoOp;
use crate::log_limit::LogLimit;
use crate::storage::{ImageLock, LockError};

/// The reason why an image cannot be used now.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TakeError {
    /// The image cannot be locked.
    #[error(transparent)]
    Lock(#[from] LockError),

    /// The image is locked, but the state in which others have left it cannot be found out.
    #[error("cannot read the state of {} again after others have used it: {error}", path.display())]
    Look {
        /// The image's path.
        path: PathBuf,
        /// The error of the call that failed.
        error: io::Error,
    },
}

/// The right to use an image.
#[derive(Debug)]
pub(super) struct Turn {
    node: Arc<BlockNode>,
    writes: bool,
    taken: bool,
    lock: Option<ImageLock>,
    /// The process ends, and the lock with it.
    ending: bool,
    /// The last flush before a release of the lock failed.
    unflushed: bool,
    log: LogLimit,
}

impl Turn {
    /// Creates the right to use an image. `writes`: also to write to it.
    pub(super) fn new(node: Arc<BlockNode>, writes: bool) -> Self {
        Self {
            node,
            writes,
            taken: false,
            lock: None,
            ending: false,
            unflushed: false,
            log: LogLimit::new(),
        }
    }

    /// Takes the lock, unless it is held. `run` then drops what this host has cached of the image. Returns whether the
    /// size of the image has changed.
    pub(super) fn take(&mut self, run: impl FnOnce(IoOp) -> io::Result<()>) -> Result<bool, TakeError> {
        if self.taken {
            return Ok(false);
        }
        let (lock, before) = (self.node.lock(self.writes)?, self.node.size());
        run(IoOp::LookAnew).map_err(|error| TakeError::Look {
            path: self.node.path().to_owned(),
            error,
        })?;
        (self.lock, self.taken) = (lock, true);
        let resized = self.node.size() != before;
        tracing::debug!(disk = self.disk(), resized, "image locked");
        Ok(resized)
    }

    /// Returns whether the image may be in use.
    pub(super) fn is_taken(&self) -> bool {
        self.taken
    }

    /// Makes everything stable with `run`, and releases the lock.
    ///
    /// # Errors
    /// Not everything is stable. The image stays locked, because nobody should use it as if it were complete.
    pub(super) fn hand_over(&mut self, run: impl FnOnce(IoOp) -> io::Result<()>) -> io::Result<()> {
        if self.ending || !self.taken {
            return Ok(());
        }
        let flushed = run(IoOp::FlushAtRest);
        self.unflushed = flushed.is_err();
        if let Err(error) = flushed {
            if let Some(suppressed) = self.log.pass("unflushed", "") {
                tracing::error!(
                    disk = self.disk(), %error, suppressed,
                    "flush failed before releasing the image: writes may be lost; the image stays locked until this \
                     process ends"
                );
            }
            return Err(error);
        }
        (self.lock, self.taken) = (None, false);
        tracing::debug!(disk = self.disk(), "image handed over");
        Ok(())
    }

    /// The process ends, and the lock with it. There is no flush: it would take the kernel's report of a failed write,
    /// which the next process has to see.
    pub(super) fn end(&mut self) {
        self.ending = true;
    }

    fn disk(&self) -> String {
        self.node.path().display().to_string()
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if self.unflushed {
            // The process keeps the lock, also after it has removed the disk: nobody should use the image as if it were
            // complete.
            std::mem::forget(self.lock.take());
        }
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
        Turn::new(Arc::new(BlockNode::open(&options).unwrap()), true)
    }

    /// Succeeds without doing anything.
    fn ready(_op: IoOp) -> io::Result<()> {
        Ok(())
    }

    fn in_use(turn: &mut Turn) -> bool {
        matches!(turn.take(ready), Err(TakeError::Lock(LockError::InUse { .. })))
    }

    #[test]
    fn two_disks_use_an_image_in_turns() {
        let image = tempfile::NamedTempFile::new().unwrap();
        image.as_file().set_len(4096).unwrap();
        let [mut source, mut destination] = [open(image.path()), open(image.path())];
        source.take(ready).unwrap();
        source.take(ready).unwrap();
        assert!(in_use(&mut destination));
        source.hand_over(ready).unwrap();
        destination.take(ready).unwrap();
        assert!(in_use(&mut source));
        source.hand_over(ready).unwrap();
        assert!(in_use(&mut source));
        drop(destination);
        source.take(ready).unwrap();
    }

    #[test]
    fn a_predecessor_has_time_to_unlock_the_image() {
        let image = tempfile::NamedTempFile::new().unwrap();
        image.as_file().set_len(4096).unwrap();
        let [mut old, mut new] = [open(image.path()), open(image.path())];
        old.take(ready).unwrap();
        let start = Instant::now();
        assert!(new.take(ready).is_err());
        assert!(start.elapsed() >= ImageLock::PATIENCE);
    }

    #[test]
    fn an_unflushed_image_outlives_its_disk_locked() {
        let image = tempfile::NamedTempFile::new().unwrap();
        image.as_file().set_len(4096).unwrap();
        let [mut old, mut new] = [open(image.path()), open(image.path())];
        old.take(ready).unwrap();
        old.hand_over(|_| Err(io::ErrorKind::Other.into())).unwrap_err();
        drop(old);
        assert!(in_use(&mut new));
    }

    #[test]
    fn a_second_flush_that_succeeds_releases_the_image() {
        let image = tempfile::NamedTempFile::new().unwrap();
        image.as_file().set_len(4096).unwrap();
        let [mut old, mut new] = [open(image.path()), open(image.path())];
        old.take(ready).unwrap();
        old.hand_over(|_| Err(io::ErrorKind::Other.into())).unwrap_err();
        old.hand_over(ready).unwrap();
        drop(old);
        new.take(ready).unwrap();
    }
}

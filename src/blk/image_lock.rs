//! Whose turn it is to use the image.
//!
//! A disk that runs holds the image's lock. It gives it up when its last ring stops, everything flushed, so that the
//! destination of a migration, which has opened the image before, can take over. Whoever takes the image over forgets
//! what this host knew of it. Control thread only.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use crate::engine::BlockNode;
use crate::io::IoOp;
use crate::log_limit::LogLimit;
use crate::storage::{ImageLock, LockError};

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
    node: Arc<BlockNode>,
    writes: bool,
    taken: bool,
    lock: Option<ImageLock>,
    /// The lock goes with the process.
    ending: bool,
    /// The last flush before a hand-over failed.
    unflushed: bool,
    log: LogLimit,
}

impl Turn {
    /// Makes the right to use an image, and to write to it if `writes`.
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

    /// Takes the lock, if it is not held, and has `run` look at the image anew. Returns whether its size has changed.
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

    /// Has `run` make everything stable, and lets go of the lock.
    ///
    /// # Errors
    /// Not everything is stable, and the image stays locked: nobody is to take it for complete.
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

    /// The process ends: the lock goes with it, and no flush takes the kernel's report of a failed write, which is the
    /// successor's to see.
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
            // The process keeps the lock, also if it removes the disk: nobody is to take the image for complete.
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

    /// Nothing has changed, and nothing is to be flushed.
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
    fn a_predecessor_has_some_time_to_let_go_of_the_image() {
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

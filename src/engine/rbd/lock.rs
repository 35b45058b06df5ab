//! The exclusive lock of an image. One client of the cluster has it, and nobody else can write.
//!
//! A process that was killed leaves its lock behind. Its successor takes the lock away from it, and the cluster executes
//! no operation of the old client any more. Any thread but an IOThread.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::disk::RbdDisk;
use super::owner;
use crate::ceph::Image;
use crate::interrupt;
use crate::storage::{LockError, LockMode};

/// The longest wait for an answer of the cluster.
const ANSWER_TIME: Duration = Duration::from_secs(10);
/// The longest wait for the lock: the cluster thinks a client dead after 30 s.
const LOCK_TIME: Duration = Duration::from_secs(45);
/// The longest wait for a release. The process may be ending.
const RELEASE_TIME: Duration = Duration::from_millis(500);

/// The lock, held until its last part is dropped.
#[derive(Debug)]
pub struct RbdLock(Arc<Held>);

/// The lock of an open image.
#[derive(Debug)]
struct Held {
    disk: Arc<RbdDisk>,
}

impl RbdDisk {
    /// Locks the image for writing. Readers need no lock. Reads the size again, because others may have changed it.
    pub(in crate::engine) fn lock(self: &Arc<Self>, mode: LockMode) -> Result<Option<RbdLock>, LockError> {
        let lock = match (mode, self.options().read_only) {
            (LockMode::Write, false) => Some(RbdLock::acquire(self)?),
            _ => None,
        };
        self.look_anew().map_err(|source| LockError::Lock {
            path: path(self),
            source,
        })?;
        Ok(lock)
    }
}

impl RbdLock {
    /// Takes the lock of a writable disk.
    fn acquire(disk: &Arc<RbdDisk>) -> Result<Self, LockError> {
        if disk.locked.swap(true, Ordering::AcqRel) {
            return Err(LockError::Held { path: path(disk) });
        }
        // Released again if this fails.
        let lock = Self(Arc::new(Held {
            disk: Arc::clone(disk),
        }));
        let failed = |why: String| LockError::Remote {
            path: path(disk),
            why,
        };
        if !disk.image().has_lock {
            return Err(failed(format!(
                "it has no exclusive lock: 'rbd feature enable {} exclusive-lock'",
                disk.image().name()
            )));
        }
        let silent = || failed(why_no_answer().to_owned());
        let known = disk.image().run_unless_interrupted(ANSWER_TIME, |image| {
            let note = image.metadata(owner::KEY).unwrap_or_default();
            image.owner().map(|owner| (owner, note))
        });
        let (holder, note) = known
            .ok_or_else(silent)?
            .map_err(|code| failed(format!("cannot read its lock: {}", text(code))))?;
        if let Some(holder) = holder.clone().filter(|holder| owner::has_ended(&note, holder)) {
            tracing::info!(
                disk = disk.image().name(),
                holder,
                "the process that had the lock has ended: taking it over"
            );
            let broken = disk
                .image()
                .run_unless_interrupted(ANSWER_TIME, move |image| image.break_lock(&holder));
            broken
                .ok_or_else(silent)?
                .map_err(|code| failed(format!("cannot take the lock over: {}", text(code))))?;
        } else if let Some(holder) = &holder {
            tracing::info!(
                disk = disk.image().name(),
                holder,
                "the image is locked: asking for the lock"
            );
        }
        match take(disk.image()) {
            Ok(()) => Ok(lock),
            Err(code) if code == -libc::EROFS => {
                let holder = holder.unwrap_or_default();
                Err(failed(format!("it is in use: client {holder} holds its lock")))
            }
            Err(code) if code == -libc::ETIMEDOUT => Err(silent()),
            Err(code) => Err(failed(format!("cannot lock it: {}", text(code)))),
        }
    }
}

impl RbdLock {
    /// Returns the same lock for a disk with other options, if it uses the same open image.
    pub(in crate::engine) fn share_with(&self, disk: &Arc<RbdDisk>) -> Option<Self> {
        Arc::ptr_eq(self.0.disk.image(), disk.image()).then(|| Self(Arc::clone(&self.0)))
    }
}

fn path(disk: &RbdDisk) -> PathBuf {
    disk.path().to_owned()
}

fn text(code: i32) -> String {
    std::io::Error::from_raw_os_error(-code).to_string()
}

/// Returns the reason why the wait for an answer has ended.
fn why_no_answer() -> &'static str {
    match interrupt::is_requested() {
        true => interrupt::TOLD,
        false => "the cluster does not answer",
    }
}

/// Takes the lock, and notes who has it. A lock that comes too late is released.
fn take(image: &Arc<Image>) -> Result<(), i32> {
    let settled = Arc::new(AtomicBool::new(false));
    let late = Arc::clone(&settled);
    let taken = image.run_unless_interrupted(LOCK_TIME, move |image| {
        image.lock()?;
        // AcqRel: pairs with the swap below. The second one knows what the first one has decided.
        if late.swap(true, Ordering::AcqRel) {
            let _ = image.unlock();
            return Err(-libc::ETIMEDOUT);
        }
        let client = image.owner().ok().flatten().unwrap_or_default();
        if let Some(note) = owner::note(&client)
            && let Err(code) = image.set_metadata(owner::KEY, &note)
        {
            tracing::warn!(
                disk = image.name(),
                error = text(code),
                "cannot note who has the lock"
            );
        }
        Ok(())
    });
    match taken {
        Some(taken) => taken,
        None if settled.swap(true, Ordering::AcqRel) => Ok(()),
        None => Err(-libc::ETIMEDOUT),
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let released = self.disk.image().run(RELEASE_TIME, |image| image.unlock());
        match released {
            Some(Ok(())) => {}
            // It was not held.
            Some(Err(code)) if code == -libc::EINVAL || code == -libc::ENOENT => {}
            Some(Err(code)) => {
                let disk = self.disk.image().name();
                tracing::warn!(disk, error = text(code), "cannot release the lock of the image");
            }
            None => {
                let disk = self.disk.image().name();
                tracing::warn!(
                    disk,
                    "the cluster does not answer: the lock of the image is released later"
                );
            }
        }
        self.disk.locked.store(false, Ordering::Release);
    }
}

//! The dirty log of a session, which can be switched on and off while the rings run.

use std::fs::File;
use std::sync::Arc;

use super::{LOG_ALL, Result, Session};
use crate::memory::{DirtyLog, GuestMemory, LogError, RingLog, kept};
use crate::vhost_user::SessionError;
use crate::virtqueue::MAX_QUEUE_SIZE;

/// Maximum size of a used ring in bytes.
const MAX_USED_RING: u64 = 6 + 8 * MAX_QUEUE_SIZE as u64;

/// Checks the guest address of a used ring.
pub(super) fn check_log_address(addr: u64) -> Result<()> {
    match addr.checked_add(MAX_USED_RING) {
        Some(_) => Ok(()),
        None => Err(SessionError::BadLogAddress(addr)),
    }
}

impl Session<'_> {
    /// Sets the log for dirty pages, which is used while LOG_ALL is set.
    pub(in crate::vhost_user) fn set_log(&mut self, file: &File, offset: u64, size: u64) -> Result<()> {
        let log = DirtyLog::map(file, offset, size)?;
        log.check_covers(self.memory.end())?;
        self.log = Some(Arc::new(log));
        self.log_file = kept(file)
            .map_err(LogError::from)?
            .map(|file| (file, offset, size));
        self.apply_log()
    }

    /// Checks that the log can be used with these features, before anything is changed.
    pub(super) fn check_log_switch(&self, acked: u64) -> Result<()> {
        match &self.log {
            Some(log) if acked & LOG_ALL != 0 => Ok(log.check_covers(self.memory.end())?),
            _ => Ok(()),
        }
    }

    /// Applies a change of LOG_ALL.
    pub(super) fn switch_log(&mut self, before: bool, now: bool) -> Result<()> {
        if before != now {
            self.apply_log()?;
        }
        if before && !now {
            self.log = None;
            self.log_file = None;
        }
        Ok(())
    }

    /// Checks that a log in use covers all of the memory. QEMU enlarges the log before the memory.
    pub(super) fn check_log_covers(&self, memory: &GuestMemory) -> Result<()> {
        match self.active_log() {
            Some(log) => Ok(log.check_covers(memory.end())?),
            None => Ok(()),
        }
    }

    fn active_log(&self) -> Option<&Arc<DirtyLog>> {
        self.log.as_ref().filter(|_| self.acked & LOG_ALL != 0)
    }

    /// Returns what a ring must log now.
    pub(super) fn ring_log(&self, index: usize) -> Option<RingLog> {
        let log = Arc::clone(self.active_log()?);
        let used = self.vrings[index].log;
        Some(RingLog { log, used })
    }

    /// Makes a running ring log what it must log now. Returns once the ring does so.
    pub(super) fn apply_ring_log(&self, index: usize) -> Result<()> {
        let log = self.ring_log(index);
        self.call(index, move |queue| queue.set_log(log))
    }

    fn apply_log(&self) -> Result<()> {
        (0..self.vrings.len())
            .filter(|&index| self.vrings[index].running)
            .try_for_each(|index| self.apply_ring_log(index))
    }
}

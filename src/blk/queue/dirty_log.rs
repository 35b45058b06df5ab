//! Marks the guest pages that answers write to, while the VM migrates. The ring marks its own pages (`virtqueue`).

use super::ownership::Slot;
use super::ring::Ring;
use crate::io::IoVecs;
use crate::memory::{DirtyLog, RingLog};

impl Ring {
    /// Logs writes from now on, or stops logging.
    pub(super) fn set_log(&mut self, log: Option<RingLog>) {
        self.split.set_log(log.as_ref());
        self.log = log.map(|ring| ring.log);
    }
}

impl Slot {
    /// Marks the status byte and the data of an answered request. `data` is the memory that it may have written to.
    #[cold]
    pub(super) fn mark_dirty(&self, log: &DirtyLog, data: Option<&IoVecs>) {
        let mark = |host: *const u8, len: usize| {
            if let Some(guest) = self.memory.guest_address(host) {
                log.mark(guest, len as u64);
            }
        };
        mark(self.status, 1);
        for range in data.into_iter().flat_map(IoVecs::as_slice) {
            mark(range.iov_base.cast(), range.iov_len);
        }
    }
}

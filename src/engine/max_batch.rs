//! The limit of submissions to the kernel. IOThread only.

use std::cell::Cell;
use std::rc::Rc;

/// `aio-max-batch`: the most requests in one submission to the kernel. That of the IOThread may change. 0 is no limit.
#[derive(Clone, Debug, Default)]
pub(super) struct MaxBatch {
    pub(super) of_disk: u64,
    pub(super) of_iothread: Rc<Cell<u64>>,
}

impl MaxBatch {
    /// Returns the smaller one of the two limits.
    pub(super) fn get(&self) -> usize {
        let limits = [self.of_disk, self.of_iothread.get()];
        let least = limits.into_iter().filter(|limit| *limit > 0).min();
        least
            .and_then(|limit| usize::try_from(limit).ok())
            .unwrap_or(usize::MAX)
    }
}

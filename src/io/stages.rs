//! The times of a request between its way down and its way back, for tracers of a disk (docs/operations.md).

use crate::sys::clock::monotonic_nanos;

/// The times of a traced request, in nanoseconds of the monotonic clock. 0: the request was not seen there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stages {
    /// Its queue has taken it from the ring.
    pub taken: u64,
    /// Its throttle group has admitted it, after it had to wait.
    pub admitted: u64,
    /// A worker has begun to execute it, or the kernel has got it.
    pub begun: u64,
    /// The worker or the kernel has done it.
    pub ended: u64,
}

impl Stages {
    /// Keeps the first time, because a worker may repeat what the kernel has not done.
    #[cold]
    pub(super) fn begin(&mut self) {
        if self.begun == 0 {
            self.begun = monotonic_nanos();
        }
    }

    /// Keeps the last time.
    #[cold]
    pub(super) fn end(&mut self) {
        self.ended = monotonic_nanos();
    }
}

//! The stages of a request between its way down and its way back: times for tracers of a disk, and static probes for
//! tracers of the system (docs/operations.md).

use probe::probe_lazy;

use super::IoRequest;
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

impl IoRequest {
    /// The throttle group of a request that had to wait has admitted it.
    pub(crate) fn admitted(&mut self) {
        if let Some(stages) = &mut self.stages {
            stages.admitted = monotonic_nanos();
        }
    }

    /// A worker begins to execute the request, or the kernel gets it. Any thread.
    #[inline]
    pub(crate) fn begins(&mut self) {
        probe_lazy!(vhost_user_blk, begin, std::ptr::from_ref(self));
        if let Some(stages) = &mut self.stages {
            stages.begin();
        }
    }

    /// The worker or the kernel has done the request. Any thread.
    #[inline]
    pub(crate) fn ends(&mut self) {
        probe_lazy!(vhost_user_blk, end, std::ptr::from_ref(self));
        if let Some(stages) = &mut self.stages {
            stages.end();
        }
    }
}

impl Stages {
    /// Keeps the first time, because a worker may repeat what the kernel has not done.
    #[cold]
    fn begin(&mut self) {
        if self.begun == 0 {
            self.begun = monotonic_nanos();
        }
    }

    /// Keeps the last time.
    #[cold]
    fn end(&mut self) {
        self.ended = monotonic_nanos();
    }
}

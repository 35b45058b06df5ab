//! Reports the slow requests of a disk that is traced, with where their time went. IOThread only.
//!
//! A visit looks whether the disk is traced. Requests that are not traced only test a flag.

use std::sync::Arc;

use super::latencies::Nanos;
use crate::blk::notice::{Notice, SlowRequest};
use crate::blk::state::DeviceState;
use crate::io::{IoRequest, Requests, Stages};

/// Shortest time between two reports of a queue.
const PAUSE: Nanos = 20_000_000;

/// The traced requests of a queue whose answers are not published yet.
#[derive(Debug)]
pub(super) struct Slow {
    index: u16,
    device: Arc<DeviceState>,
    answered: Vec<Answered>,
    /// When a request was reported last.
    reported: Nanos,
    /// Slow requests since then.
    passed_over: u64,
}

#[derive(Debug)]
struct Answered {
    op: &'static str,
    /// First byte in the node below.
    offset: Option<u64>,
    bytes: u64,
    stages: Stages,
    at: Nanos,
}

/// Traces requests that a visit has taken at this time.
#[cold]
pub(super) fn begin(batch: &mut Requests, taken: Nanos) {
    for request in batch {
        request.stages = Some(Box::new(Stages {
            taken,
            ..Stages::default()
        }));
    }
}

impl Slow {
    pub(super) fn new(index: u16, device: Arc<DeviceState>) -> Self {
        Self {
            index,
            device,
            answered: Vec::new(),
            reported: 0,
            passed_over: 0,
        }
    }

    /// Returns whether a traced request was answered since the last publication.
    #[inline]
    pub(super) fn is_waiting(&self) -> bool {
        !self.answered.is_empty()
    }

    /// A traced request is answered at this time.
    #[cold]
    pub(super) fn answered(&mut self, request: &IoRequest, stages: Stages, at: Nanos) {
        let ranges = request.ranges.iter().map(|range| range.len);
        self.answered.push(Answered {
            op: request.op.name(),
            offset: request.first_byte(),
            bytes: match request.op.is_transfer() {
                true => request.iov.len() as u64,
                false => ranges.sum(),
            },
            stages,
            at,
        });
    }

    /// The answers are published at this time. Reports the slowest request, if it is slow. The disk begins at byte `start`
    /// of the node below.
    #[cold]
    pub(super) fn published(&mut self, now: Nanos, start: u64) {
        let limit = self.device.trace.limit();
        let time = |answered: &Answered| now.saturating_sub(answered.stages.taken);
        let slow = self.answered.iter().filter(|answered| time(answered) >= limit);
        self.passed_over += slow.clone().count() as u64;
        if let Some(slowest) = slow.max_by_key(|answered| time(answered))
            && now.saturating_sub(self.reported) >= PAUSE
        {
            let others = std::mem::take(&mut self.passed_over).saturating_sub(1);
            let report = report(self.index, slowest, now, start, others);
            self.device.notices().tell(|| Notice::Slow(report));
            self.reported = now;
        }
        self.answered.clear();
    }
}

/// Describes a request that is published at this time. A stage that was not seen took no time.
fn report(queue: u16, request: &Answered, now: Nanos, start: u64, others: u64) -> SlowRequest {
    let Stages {
        taken,
        admitted,
        begun,
        ended,
    } = request.stages;
    let admitted = admitted.max(taken);
    // Without a worker and the kernel's queue, the storage has the request at once, and until it is answered.
    let begun = begun.max(admitted);
    let ended = match ended {
        0 => request.at,
        ended => ended.max(begun),
    };
    SlowRequest {
        queue,
        op: request.op,
        offset: request.offset.map(|offset| offset.saturating_sub(start)),
        bytes: request.bytes,
        throttled: admitted - taken,
        waited: begun - admitted,
        storage: ended.saturating_sub(begun),
        returned: request.at.saturating_sub(ended),
        published: now.saturating_sub(request.at),
        others,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn times(stages: Stages) -> [Nanos; 5] {
        let request = Answered {
            op: "read",
            offset: Some(4096),
            bytes: 512,
            stages,
            at: 190,
        };
        let report = report(0, &request, 200, 4096, 0);
        assert_eq!(report.offset, Some(0));
        [
            report.throttled,
            report.waited,
            report.storage,
            report.returned,
            report.published,
        ]
    }

    #[test]
    fn stages_add_up_to_the_whole_time() {
        let all = Stages {
            taken: 100,
            admitted: 110,
            begun: 130,
            ended: 170,
        };
        assert_eq!(times(all), [10, 20, 40, 20, 10]);
        let none = Stages {
            taken: 100,
            ..Stages::default()
        };
        assert_eq!(times(none), [0, 0, 90, 0, 10]);
        // A request that was tried again after its throttle group had admitted it.
        let backwards = Stages { admitted: 150, ..all };
        assert_eq!(times(backwards).iter().sum::<Nanos>(), 100);
    }
}

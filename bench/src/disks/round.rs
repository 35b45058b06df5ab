//! The figures of one round.

use std::collections::BTreeMap;
use std::time::Duration;

use super::footprint::{Activity, Footprint};
use crate::control::Outcome;

/// The places of the requests in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Spread {
    /// All on the only queue of the only disk.
    Alone,
    /// All on one disk of many; the others are connected and idle.
    OneBusy,
    /// One on each queue of the only disk.
    Queues,
    /// One on each disk.
    Disks,
}

/// The figures of one load.
#[derive(Clone, Copy, Debug)]
pub(super) struct Speed {
    pub(super) iops: f64,
    pub(super) cpu_us: f64,
    pub(super) p99_us: f64,
    pub(super) per_notification: f64,
}

impl From<&Outcome> for Speed {
    fn from(outcome: &Outcome) -> Self {
        let counts = &outcome.counts;
        let completions = counts.completions.max(1) as f64;
        Self {
            iops: outcome.iops,
            cpu_us: outcome.cpu.as_secs_f64() * 1e6 / completions,
            p99_us: counts.latency.value_at_quantile(0.99) as f64 / 1e3,
            per_notification: completions / counts.notifications.max(1) as f64,
        }
    }
}

/// What a process costs from its start until its frontends are connected.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Life {
    /// From the start of the program until all sockets listen.
    pub(super) listen: Duration,
    /// Until every frontend has an answer to its first request.
    pub(super) connect: Duration,
    pub(super) before: Footprint,
    pub(super) after: Footprint,
    /// While idle, before and after the frontends have connected; in the first round only.
    pub(super) idle: Option<[Activity; 2]>,
}

/// What one backend did in one round.
#[derive(Debug)]
pub(super) struct Round {
    pub(super) disks: u16,
    pub(super) many: Life,
    pub(super) one: Life,
    pub(super) speeds: BTreeMap<Spread, Speed>,
}

/// The rounds of one backend.
pub(super) type Row = (String, Vec<Round>);

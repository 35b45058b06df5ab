//! Counters of a queue: written by its IOThread, read by any thread.

use std::fmt;
use std::ops::AddAssign;
use std::sync::Arc;

use serde::{Serialize, Serializer};

use super::latency::{LatencyFigures, LatencyHistograms, Operation};
pub(crate) use super::parked_stats::ParkedQueueStats;
use super::position::{Positions, RingPosition};
pub use super::ring_state::{RingState, RingStateCell};
pub use crate::counter::Counter;
use crate::engine::Plan;
use crate::throttle::Waits;

/// Buckets of the histogram: 1, 2-3, 4-7 and so on. The last one has all larger numbers.
const BUCKETS: usize = 11;

macro_rules! counters {
    ($($(#[doc = $doc:literal])+ $name:ident,)*) => {
        /// Counts what one queue did since the process started.
        #[derive(Debug, Default)]
        pub struct QueueStats {
            $($(#[doc = $doc])+ pub $name: Counter,)*
            /// The state of the ring.
            pub state: RingStateCell,
            /// Notifications by the number of completions each covered.
            pub(super) histogram: [Counter; BUCKETS],
            /// Time from the visit that takes a request to the publication of its answer, if that is OK.
            pub latency: LatencyHistograms,
            /// Requests that wait for their throttle group.
            pub throttle: Arc<Waits>,
        }

        /// The figures of a queue, or of several queues added up.
        #[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
        #[serde(rename_all = "kebab-case")]
        pub struct Figures {
            $($(#[doc = $doc])+ pub $name: u64,)*
            /// Notifications by the number of completions each covered.
            pub completions_per_notification: Histogram,
            /// Latencies of requests that succeeded.
            pub latency: LatencyFigures,
            /// Requests that currently wait for their throttle group.
            pub throttled: u64,
            /// Requests that have waited for their throttle group.
            pub throttled_ever: u64,
        }

        impl QueueStats {
            /// Reads all counters. Any thread.
            pub fn figures(&self) -> Figures {
                Figures {
                    $($name: self.$name.get(),)*
                    completions_per_notification: Histogram(self.histogram.each_ref().map(Counter::get)),
                    latency: self.latency.snapshot(),
                    throttled: self.throttle.now(),
                    throttled_ever: self.throttle.ever(),
                }
            }
        }

        impl QueueStats {
            /// Returns all counters with their names, among them those that go up and down.
            pub(super) fn counters(&self) -> impl Iterator<Item = (&'static str, &Counter)> {
                [$((stringify!($name), &self.$name),)*].into_iter()
            }
        }

        impl AddAssign<&Figures> for Figures {
            fn add_assign(&mut self, other: &Self) {
                $(self.$name += other.$name;)*
                self.completions_per_notification += &other.completions_per_notification;
                self.latency += &other.latency;
                self.throttled += other.throttled;
                self.throttled_ever += other.throttled_ever;
            }
        }
    };
}

counters! {
    /// IN requests that an engine has executed, with or without success.
    reads,
    /// OUT requests that an engine has executed, with or without success.
    writes,
    /// FLUSH requests that an engine has executed, with or without success.
    flushes,
    /// DISCARD and WRITE_ZEROES requests that an engine has executed, with or without success.
    unmaps,
    /// All other requests: GET_ID, and requests of any type that were refused as soon as they were read.
    others,
    /// Bytes of completed reads.
    read_bytes,
    /// Bytes of completed writes.
    written_bytes,
    /// Bytes of completed discards and write zeroes.
    unmapped_bytes,
    /// Requests answered with a status other than OK.
    errors,
    /// Reads among the errors.
    read_errors,
    /// Writes among the errors.
    write_errors,
    /// Flushes among the errors.
    flush_errors,
    /// Discards and write zeroes among the errors.
    unmap_errors,
    /// Reads among the errors that were refused because the disk has no such blocks.
    invalid_reads,
    /// Writes among the errors that were refused because the disk has no such blocks.
    invalid_writes,
    /// Discards and write zeroes among the errors that were refused because the disk has no such blocks.
    invalid_unmaps,
    /// Reads and writes that were executed as one with the request before them.
    merged,
    /// Requests that were taken from the ring and are not answered yet.
    in_flight,
    /// Wakeups by the driver's kick eventfd.
    kicks,
    /// Times that requests were found whose kick had not come in time.
    missed_kicks,
    /// Times that polling found requests in the ring.
    poll_hits,
    /// Answers that were published.
    completions,
    /// Writes to the call eventfd.
    notifications,
    /// Times the ring had to be stopped because it was broken.
    broken,
    /// Requests that currently wait for room on the disk.
    held,
    /// Requests that have waited for room on the disk.
    held_ever,
    /// Requests that failed although the guest was told that they succeeded.
    ignored,
    /// Requests that took longer than the I/O timeout.
    late,
}

impl QueueStats {
    /// Counts a request for blocks that the disk does not have.
    #[cold]
    pub(super) fn invalid(&self, operation: Operation) {
        match operation {
            Operation::Read => self.invalid_reads.add(1),
            Operation::Write => self.invalid_writes.add(1),
            Operation::Unmap => self.invalid_unmaps.add(1),
            Operation::Flush => {}
        }
    }

    /// Counts one notification that covers `completions`; 0 if it was sent in case an earlier one was lost.
    #[inline]
    pub fn notified(&self, completions: u64) {
        self.notifications.add(1);
        if completions > 0 {
            self.histogram[bucket(completions)].add(1);
        }
    }
}

fn bucket(completions: u64) -> usize {
    (completions.max(1).ilog2() as usize).min(BUCKETS - 1)
}

fn bucket_name(bucket: usize) -> String {
    let low = 1u64 << bucket;
    match bucket {
        0 => "1".to_owned(),
        _ if bucket == BUCKETS - 1 => format!("{low}+"),
        _ => format!("{low}-{}", 2 * low - 1),
    }
}

/// Counts by number of completions: 1, 2-3, 4-7, and so on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Histogram([u64; BUCKETS]);

impl Histogram {
    /// Returns the buckets that are not empty, with their names.
    fn counts(&self) -> impl Iterator<Item = (String, u64)> {
        let counts = self.0.iter().copied().enumerate();
        counts
            .filter(|(_, count)| *count > 0)
            .map(|(bucket, count)| (bucket_name(bucket), count))
    }
}

impl Histogram {
    /// Returns each bucket's last number of completions (`None` for the last bucket), and its count.
    pub fn bounds(&self) -> impl Iterator<Item = (Option<u64>, u64)> {
        let last = |bucket| (bucket < BUCKETS - 1).then(|| (2_u64 << bucket) - 1);
        self.0
            .iter()
            .enumerate()
            .map(move |(bucket, count)| (last(bucket), *count))
    }
}

impl AddAssign<&Histogram> for Histogram {
    fn add_assign(&mut self, other: &Self) {
        self.0.iter_mut().zip(other.0).for_each(|(a, b)| *a += b);
    }
}

impl Serialize for Histogram {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.counts())
    }
}

impl Figures {
    /// Returns the number of requests of all kinds.
    pub fn requests(&self) -> u64 {
        self.reads + self.writes + self.flushes + self.unmaps + self.others
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            reads,
            writes,
            flushes,
            unmaps,
            others,
            ..
        } = self;
        #[allow(clippy::cast_precision_loss, reason = "a ratio for people")]
        let ratio = match self.notifications {
            0 => 0.0,
            notifications => self.completions as f64 / notifications as f64,
        };
        write!(
            f,
            "requests={} (read={reads} write={writes} flush={flushes} unmap={unmaps} other={others}) merged={} \
             bytes_read={} bytes_written={} bytes_unmapped={} errors={} held={} held_ever={} throttled={} \
             throttled_ever={} ignored={} late={} in_flight={} kicks={} missed_kicks={} poll_hits={} completions={} \
             notifications={} completions_per_notification={ratio:.2}",
            self.requests(),
            self.merged,
            self.read_bytes,
            self.written_bytes,
            self.unmapped_bytes,
            self.errors,
            self.held,
            self.held_ever,
            self.throttled,
            self.throttled_ever,
            self.ignored,
            self.late,
            self.in_flight,
            self.kicks,
            self.missed_kicks,
            self.poll_hits,
            self.completions,
            self.notifications,
        )
    }
}

/// The statistics of a queue at one moment.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct QueueReport {
    /// The state of the ring: `stopped`, `running`, `broken` or `paused`.
    pub ring: &'static str,
    /// Where the ring stands. `None` if there is no ring, or if its IOThread was not asked or has not answered.
    pub position: Option<RingPosition>,
    /// The queue's figures.
    #[serde(flatten)]
    pub figures: Figures,
}

/// The statistics of a disk at one moment, as text and as JSON (`Serialize`).
///
/// The text has a line about the disk, two lines per queue, a line with the totals, the latencies, and the histogram.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct DiskReport {
    /// The disk's name.
    pub disk: String,
    /// How I/O is executed.
    pub engine: String,
    /// The queues, in order of their index.
    pub queues: Vec<QueueReport>,
    /// The figures of all queues.
    pub total: Figures,
}

impl DiskReport {
    /// Reads the counters of a disk. Any thread.
    pub fn new(disk: &str, engine: Plan, queues: &[Arc<QueueStats>]) -> Self {
        let report = |queue: &Arc<QueueStats>| QueueReport {
            ring: queue.state.name(),
            position: None,
            figures: queue.figures(),
        };
        let queues: Vec<QueueReport> = queues.iter().map(report).collect();
        let mut total = Figures::default();
        queues.iter().for_each(|queue| total += &queue.figures);
        Self {
            disk: disk.to_owned(),
            engine: engine.to_string(),
            queues,
            total,
        }
    }

    /// Adds the positions of the rings.
    #[must_use]
    pub fn with_positions(mut self, positions: &Positions) -> Self {
        for (index, queue) in (0..).zip(&mut self.queues) {
            queue.position = positions.get(&index).copied();
        }
        self
    }
}

impl fmt::Display for DiskReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "stats: disk={} engine={}", self.disk, self.engine)?;
        for (index, queue) in self.queues.iter().enumerate() {
            let QueueReport {
                ring,
                position,
                figures,
            } = queue;
            writeln!(f, "stats: queue {index}: {figures}")?;
            write!(
                f,
                "stats: queue {index} ring: state={ring} broken={}",
                figures.broken
            )?;
            match position {
                Some(position) => writeln!(f, " {position}")?,
                None => writeln!(f)?,
            }
        }
        writeln!(f, "stats: total: {}", self.total)?;
        for (operation, latencies) in self.total.latency.operations() {
            writeln!(f, "stats: latency of {operation}: {latencies}")?;
        }
        write!(f, "stats: completions per notification, histogram:")?;
        for (name, count) in self.total.completions_per_notification.counts() {
            write!(f, " {name}:{count}")?;
        }
        writeln!(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{BlockNode, Choice};

    #[test]
    fn every_number_of_completions_has_one_bucket() {
        let names: Vec<String> = [0, 1, 2, 3, 4, 7, 8, 1023, 1024, u64::MAX]
            .into_iter()
            .map(|n| bucket_name(bucket(n)))
            .collect();
        assert_eq!(
            names,
            [
                "1", "1", "2-3", "2-3", "4-7", "4-7", "8-15", "512-1023", "1024+", "1024+"
            ]
        );
    }

    #[test]
    fn the_total_adds_up_the_queues() {
        let queues: Vec<Arc<QueueStats>> = (0..2).map(|_| Arc::default()).collect();
        let engine = BlockNode::null(512).plan(Choice::Auto).unwrap();
        for queue in &queues {
            queue.reads.add(8);
            queue.completions.add(8);
            queue.notified(8);
        }
        let report = DiskReport::new("disk.img", engine, &queues);
        let text = report.to_string();
        assert!(text.starts_with("stats: disk=disk.img engine=inline\n"), "{text}");
        assert!(text.contains("stats: total: requests=16 "), "{text}");
        assert!(
            text.contains("completions=16 notifications=2 completions_per_notification=8.00"),
            "{text}"
        );
        assert!(text.ends_with("histogram: 8-15:2\n"), "{text}");
    }

    #[test]
    fn json_has_the_figures_of_the_text() {
        let queues = [Arc::new(QueueStats::default())];
        let engine = BlockNode::null(512).plan(Choice::Auto).unwrap();
        queues[0].writes.add(3);
        queues[0].notified(2);
        queues[0].state.set(RingState::Running);
        let json = serde_json::to_value(DiskReport::new("d", engine, &queues)).unwrap();
        assert_eq!(json["disk"], "d");
        assert_eq!(json["queues"][0]["ring"], "running");
        assert_eq!(json["queues"][0]["writes"], 3);
        assert_eq!(json["total"]["writes"], 3);
        assert_eq!(json["total"]["held-ever"], 0);
        assert_eq!(json["total"]["completions-per-notification"]["2-3"], 1);
    }
}

//! Counters of a queue: written by its IOThread, read by anybody.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use crate::engine::Plan;

/// Buckets of the histogram: 1, 2-3, 4-7, ... and the last one for all above.
const BUCKETS: usize = 11;

/// A counter with one writer; cheaper than a read-modify-write.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `n`. One thread only.
    #[inline]
    pub fn add(&self, n: u64) {
        // Relaxed: a figure that orders nothing.
        self.0
            .store(self.0.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
    }

    /// Takes `n` off. One thread only, the one that adds.
    pub fn sub(&self, n: u64) {
        self.add(n.wrapping_neg());
    }

    /// The figure, from any thread.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What a queue's ring is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RingState {
    /// Nothing: it is not set up.
    Stopped,
    /// It is set up.
    Running,
    /// Nothing until it is set up anew: it broke the rules.
    Broken,
}

/// The state of a ring: written by its IOThread, read by anybody.
#[derive(Debug, Default)]
pub struct RingStateCell(AtomicU8);

impl RingStateCell {
    /// From here on it is this one.
    pub fn set(&self, state: RingState) {
        // Relaxed: a figure that orders nothing.
        self.0.store(state as u8, Ordering::Relaxed);
    }

    /// Its name.
    pub fn name(&self) -> &'static str {
        match self.0.load(Ordering::Relaxed) {
            0 => "stopped",
            1 => "running",
            _ => "broken",
        }
    }
}

/// What one queue did since the process started.
#[derive(Debug, Default)]
pub struct QueueStats {
    /// IN requests that an engine has executed, with or without success.
    pub reads: Counter,
    /// OUT requests, likewise.
    pub writes: Counter,
    /// FLUSH requests, likewise.
    pub flushes: Counter,
    /// All others: GET_ID, DISCARD, WRITE_ZEROES, and those of any type that were refused as soon as they were read.
    pub others: Counter,
    /// Bytes of completed reads.
    pub read_bytes: Counter,
    /// Bytes of completed writes.
    pub written_bytes: Counter,
    /// Requests answered with a status other than OK.
    pub errors: Counter,
    /// Reads and writes that were executed together with one before them.
    pub merged: Counter,
    /// Wakeups by the driver's kick eventfd.
    pub kicks: Counter,
    /// Completed requests that were shown to the driver.
    pub completions: Counter,
    /// Writes to the call eventfd.
    pub notifications: Counter,
    /// Times the ring had to be stopped because it was broken.
    pub broken: Counter,
    /// What the ring is doing now.
    pub state: RingStateCell,
    /// Requests that wait now for room on the disk.
    pub held: Counter,
    /// Requests that had to.
    pub held_ever: Counter,
    /// Requests that failed, and of which the guest was told that all is well.
    pub ignored: Counter,
    /// Requests that took longer than the I/O timeout.
    pub late: Counter,
    /// Notifications by the number of completions each covered.
    histogram: [Counter; BUCKETS],
}

impl QueueStats {
    /// Counts one notification that covers `completions`.
    #[inline]
    pub fn notified(&self, completions: u64) {
        self.notifications.add(1);
        self.histogram[bucket(completions)].add(1);
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

/// The statistics of a device as text: a line per queue, a line in all, the histogram.
#[derive(Debug)]
pub struct Report<'a> {
    /// How I/O is executed.
    pub engine: Plan,
    /// Queues in order.
    pub queues: &'a [Arc<QueueStats>],
}

#[derive(Default)]
struct Sums {
    figures: [u64; 15],
    histogram: [u64; BUCKETS],
}

impl Sums {
    fn of(q: &QueueStats) -> Self {
        let figures = [
            &q.reads,
            &q.writes,
            &q.flushes,
            &q.others,
            &q.read_bytes,
            &q.written_bytes,
            &q.errors,
            &q.kicks,
            &q.notifications,
            &q.completions,
            &q.held,
            &q.held_ever,
            &q.ignored,
            &q.late,
            &q.merged,
        ];
        Self {
            figures: figures.map(Counter::get),
            histogram: q.histogram.each_ref().map(Counter::get),
        }
    }

    fn add(mut self, other: &Self) -> Self {
        let pairs = self.figures.iter_mut().zip(&other.figures);
        pairs
            .chain(self.histogram.iter_mut().zip(&other.histogram))
            .for_each(|(a, b)| *a += b);
        self
    }

    fn write(&self, f: &mut fmt::Formatter<'_>, name: &str) -> fmt::Result {
        let [
            reads,
            writes,
            flushes,
            others,
            read,
            written,
            errors,
            kicks,
            notifications,
            completions,
            held,
            held_ever,
            ignored,
            late,
            merged,
        ] = self.figures;
        #[allow(clippy::cast_precision_loss, reason = "a ratio for people")]
        let ratio = if notifications == 0 {
            0.0
        } else {
            completions as f64 / notifications as f64
        };
        writeln!(
            f,
            "{name}: requests={} (read={reads} write={writes} flush={flushes} other={others}) merged={merged} \
             bytes_read={read} bytes_written={written} errors={errors} held={held} held_ever={held_ever} ignored={ignored} late={late} \
             kicks={kicks} completions={completions} notifications={notifications} completions_per_notification={ratio:.2}",
            reads + writes + flushes + others,
        )
    }
}

impl fmt::Display for Report<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "stats: engine={}", self.engine)?;
        let sums: Vec<Sums> = self.queues.iter().map(|q| Sums::of(q)).collect();
        for (index, (queue, sums)) in self.queues.iter().zip(&sums).enumerate() {
            sums.write(f, &format!("stats: queue {index}"))?;
            let (state, broken) = (queue.state.name(), queue.broken.get());
            writeln!(f, "stats: queue {index} ring: state={state} broken={broken}")?;
        }
        let total = sums.iter().fold(Sums::default(), Sums::add);
        total.write(f, "stats: total")?;
        write!(f, "stats: completions per notification, histogram:")?;
        for (bucket, count) in total
            .histogram
            .iter()
            .enumerate()
            .filter(|(_, count)| **count > 0)
        {
            write!(f, " {}:{count}", bucket_name(bucket))?;
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
        let text = Report {
            engine,
            queues: &queues,
        }
        .to_string();
        assert!(text.contains("stats: total: requests=16 "), "{text}");
        assert!(
            text.contains("completions=16 notifications=2 completions_per_notification=8.00"),
            "{text}"
        );
        assert!(text.ends_with("histogram: 8-15:2\n"), "{text}");
    }
}

//! Histograms of latencies. One IOThread writes them, any thread reads them.
//!
//! Buckets are logarithmic with linear steps in each octave, so the error of a latency of up to 18 hours is at most a
//! sixteenth. Recording takes two additions and no lock.

use std::fmt;
use std::ops::AddAssign;
use std::sync::OnceLock;

use serde::ser::{SerializeMap, Serializer};
use serde::{Deserialize, Serialize};

use crate::counter::Counter;
use crate::io::IoOp;

/// Buckets in each octave.
const STEPS: usize = 16;
/// Number of octaves after the first, which has steps of 1 ns. The last bucket also holds all longer latencies.
const OCTAVES: usize = 43;
const BUCKETS: usize = STEPS * OCTAVES;

/// Boundaries for [`Latencies::by_bounds`] in nanoseconds: 1, 2 and 5 of each decade from 10 us to 10 s.
pub const BOUNDARIES: [u64; 19] = {
    let (mut boundaries, mut decade, mut n) = ([0; 19], 10_000, 0);
    while n < boundaries.len() {
        boundaries[n] = decade * [1, 2, 5][n % 3];
        if n % 3 == 2 {
            decade *= 10;
        }
        n += 1;
    }
    boundaries
};

/// The latencies of one operation on one queue, with one writer and any number of readers. Memory is only allocated
/// when the first request is counted.
#[derive(Debug, Default)]
pub struct LatencyHistogram {
    counts: OnceLock<Box<[Counter]>>,
    /// Nanoseconds.
    sum: Counter,
}

impl LatencyHistogram {
    /// Counts requests with the same latency in nanoseconds. One thread only.
    #[inline]
    pub fn record(&self, nanos: u64, requests: u64) {
        self.counts()[bucket(nanos)].add(requests);
        self.sum.add(nanos.wrapping_mul(requests));
    }

    /// Adds the requests of a process that was taken over. One thread only.
    fn restore(&self, parked: &ParkedLatencies) {
        for &(bucket, count) in &parked.counts {
            let counts = self.counts();
            if let Some(counter) = counts.get(bucket) {
                counter.add(count);
            }
        }
        self.sum.add(parked.sum);
    }

    #[inline]
    fn counts(&self) -> &[Counter] {
        self.counts
            .get_or_init(|| (0..BUCKETS).map(|_| Counter::default()).collect())
    }

    /// Reads all counters. The result may lack requests that are being counted meanwhile.
    pub fn snapshot(&self) -> Latencies {
        let counts = self.counts.get().map_or(&[][..], |counts| counts);
        Latencies {
            counts: counts.iter().map(Counter::get).collect(),
            sum: self.sum.get(),
        }
    }
}

/// A snapshot of one histogram, or the sum of several.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Latencies {
    /// Number of requests by bucket. Empty buckets at the end may be missing.
    counts: Vec<u64>,
    sum: u64,
}

impl Latencies {
    /// Returns the number of requests.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Returns the total time of all requests in nanoseconds.
    pub fn total_nanos(&self) -> u64 {
        self.sum
    }

    /// Adds the requests of another histogram.
    pub fn merge(&mut self, other: &Self) {
        self.counts.resize(self.counts.len().max(other.counts.len()), 0);
        for (mine, others) in self.counts.iter_mut().zip(&other.counts) {
            *mine += others;
        }
        self.sum += other.sum;
    }

    /// Returns the latency in nanoseconds that the fraction `part` (0 to 1) of the requests did not exceed: the upper
    /// end of its bucket. Returns 0 if there are no requests.
    pub fn quantile(&self, part: f64) -> u64 {
        #[allow(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a count"
        )]
        let wanted = ((self.count() as f64 * part).ceil() as u64).max(1);
        let mut seen = 0;
        let found = self.counts.iter().position(|count| {
            seen += count;
            seen >= wanted
        });
        found.map_or(0, |bucket| upper(bucket) - 1)
    }

    /// Returns the buckets that are not empty: the longest latency in nanoseconds, and the number of requests.
    fn bins(&self) -> impl Iterator<Item = (u64, u64)> {
        let counts = self.counts.iter().copied().enumerate();
        let filled = counts.filter(|(_, count)| *count > 0);
        filled.map(|(bucket, count)| (upper(bucket) - 1, count))
    }

    /// Returns the numbers of requests between `bounds` (nanoseconds, ascending). The first number counts the requests
    /// below the first bound, and the last number those from the last bound on. A bucket counts where its lower end
    /// lies.
    pub fn by_bounds(&self, bounds: &[u64]) -> Vec<u64> {
        let mut bins = vec![0; bounds.len() + 1];
        for (bucket, count) in self.counts.iter().enumerate() {
            bins[bounds.partition_point(|bound| *bound <= lower(bucket))] += count;
        }
        bins
    }
}

/// The operations with separate histograms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say it")]
#[repr(u8)]
pub enum Operation {
    Read,
    Write,
    Flush,
    /// Discard and write zeroes.
    Unmap,
}

const OPERATIONS: [&str; 4] = ["read", "write", "flush", "unmap"];

impl Operation {
    /// Returns the kind of a guest's operation.
    #[inline]
    pub fn of(op: IoOp) -> Option<Self> {
        match op {
            IoOp::Read | IoOp::Salvage => Some(Self::Read),
            IoOp::Write { .. } | IoOp::ZeroedWrite { .. } => Some(Self::Write),
            IoOp::Flush => Some(Self::Flush),
            IoOp::Discard | IoOp::WriteZeroes { .. } => Some(Self::Unmap),
            IoOp::FlushAtRest
            | IoOp::Leave
            | IoOp::Settle
            | IoOp::Inherit
            | IoOp::RefreshSize
            | IoOp::LookAnew => None,
        }
    }
}

/// The latencies of a queue, by operation.
#[derive(Debug, Default)]
pub struct LatencyHistograms([LatencyHistogram; OPERATIONS.len()]);

impl LatencyHistograms {
    /// Counts requests with the same latency in nanoseconds. One thread only.
    #[inline]
    pub fn record(&self, operation: Operation, nanos: u64, requests: u64) {
        self.0[operation as usize].record(nanos, requests);
    }

    /// Reads the figures of all operations.
    pub fn snapshot(&self) -> LatencyFigures {
        LatencyFigures(self.0.each_ref().map(LatencyHistogram::snapshot))
    }
}

/// The latencies of an operation, for another process.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", default)]
pub(super) struct ParkedLatencies {
    /// The buckets that are not empty, with their numbers.
    counts: Vec<(usize, u64)>,
    sum: u64,
}

impl LatencyHistograms {
    /// Describes the latencies for another process, by operation.
    pub(super) fn park(&self) -> Vec<ParkedLatencies> {
        let park = |latencies: &Latencies| {
            let counts = latencies.counts.iter().copied().enumerate();
            ParkedLatencies {
                counts: counts.filter(|(_, count)| *count > 0).collect(),
                sum: latencies.sum,
            }
        };
        self.snapshot().0.iter().map(park).collect()
    }

    /// Adds the latencies of a process that was taken over. One thread only.
    pub(super) fn restore(&self, parked: &[ParkedLatencies]) {
        for (histogram, parked) in self.0.iter().zip(parked) {
            histogram.restore(parked);
        }
    }
}

/// The latencies of a queue or of several queues, by operation. Serialised, operations without requests are left out,
/// and times are in nanoseconds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LatencyFigures([Latencies; OPERATIONS.len()]);

impl LatencyFigures {
    /// Returns the latencies of an operation.
    pub fn of(&self, operation: Operation) -> &Latencies {
        &self.0[operation as usize]
    }

    /// Returns the operations that had requests, by name.
    pub fn operations(&self) -> impl Iterator<Item = (&'static str, &Latencies)> {
        let all = OPERATIONS.into_iter().zip(&self.0);
        all.filter(|(_, latencies)| latencies.count() > 0)
    }
}

impl AddAssign<&Self> for LatencyFigures {
    fn add_assign(&mut self, other: &Self) {
        for (mine, others) in self.0.iter_mut().zip(&other.0) {
            mine.merge(others);
        }
    }
}

impl Serialize for LatencyFigures {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.operations())
    }
}

impl Serialize for Latencies {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("count", &self.count())?;
        map.serialize_entry("total", &self.total_nanos())?;
        for (name, part) in [("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999), ("max", 1.0)] {
            map.serialize_entry(name, &self.quantile(part))?;
        }
        map.serialize_entry("bins", &self.bins().collect::<Vec<_>>())?;
        map.end()
    }
}

/// Formats the figures for people, in microseconds.
impl fmt::Display for Latencies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        #[allow(clippy::cast_precision_loss, reason = "for people")]
        let micros = |nanos: u64| nanos as f64 / 1e3;
        let mean = self.total_nanos() / self.count().max(1);
        write!(f, "count={} mean={:.1}us", self.count(), micros(mean))?;
        for (name, part) in [("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999), ("max", 1.0)] {
            write!(f, " {name}={:.1}us", micros(self.quantile(part)))?;
        }
        Ok(())
    }
}

#[inline]
fn bucket(nanos: u64) -> usize {
    let octave = (nanos | 15).ilog2() as usize - 3;
    let step = if octave == 0 {
        nanos & 15
    } else {
        (nanos >> (octave - 1)) & 15
    };
    #[allow(clippy::cast_possible_truncation, reason = "below 16")]
    let step = step as usize;
    (octave * STEPS + step).min(BUCKETS - 1)
}

/// Returns the shortest latency in a bucket, in nanoseconds.
fn lower(bucket: usize) -> u64 {
    let (octave, step) = (bucket / STEPS, (bucket % STEPS) as u64);
    match octave {
        0 => step,
        _ => (16 + step) << (octave - 1),
    }
}

/// Returns the longest latency in a bucket plus one, in nanoseconds.
fn upper(bucket: usize) -> u64 {
    lower(bucket + 1)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn of(nanos: impl IntoIterator<Item = u64>) -> Latencies {
        let histogram = LatencyHistogram::default();
        nanos.into_iter().for_each(|n| histogram.record(n, 1));
        histogram.snapshot()
    }

    #[test]
    fn every_latency_lies_in_its_bucket() {
        let last = lower(BUCKETS - 1);
        assert!(Duration::from_nanos(last) > Duration::from_secs(18 * 3600));
        let nearby = |power: u32| [-1, 0, 1].map(|d: i64| (1_u64 << power).wrapping_add_signed(d));
        for nanos in (0..2000).chain((11..46).flat_map(nearby)) {
            let bucket = bucket(nanos);
            assert!((lower(bucket)..upper(bucket)).contains(&nanos), "{nanos}");
            assert!(upper(bucket) - lower(bucket) <= 1 + nanos / 16, "{nanos}");
        }
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn quantiles_are_exact_to_a_sixteenth() {
        let latencies = of((1..=10_000).map(|n| n * 1000));
        assert_eq!(latencies.count(), 10_000);
        for part in [0.001, 0.5, 0.9, 0.99, 0.999, 1.0] {
            let exact = part * 1e7;
            let found = latencies.quantile(part) as f64;
            assert!(
                found >= exact - 1.0 && found <= exact * 17.0 / 16.0 + 1.0,
                "{part}: {found}"
            );
        }
        assert_eq!(Latencies::default().quantile(0.5), 0);
    }

    #[test]
    fn operations_have_latencies_of_their_own() {
        let histograms = LatencyHistograms::default();
        let write = IoOp::Write { durable: true };
        for (op, micros, requests) in [(IoOp::Read, 100, 2), (write, 5, 1)] {
            histograms.record(Operation::of(op).unwrap(), micros * 1000, requests);
        }
        assert_eq!(Operation::of(IoOp::LookAnew), None);
        let mut figures = histograms.snapshot();
        figures += &histograms.snapshot();
        let json = serde_json::to_value(&figures).unwrap();
        assert_eq!(
            (&json["read"]["count"], &json["read"]["total"]),
            (&4.into(), &400_000.into())
        );
        assert_eq!((&json["write"]["count"], json.get("flush")), (&2.into(), None));
        assert_eq!(json["write"]["bins"], serde_json::json!([[5119, 2]]));
        let text = figures
            .operations()
            .map(|(name, l)| format!("{name}: {l}"))
            .next()
            .unwrap();
        assert!(text.starts_with("read: count=4 mean=100.0us p50=10"), "{text}");
    }

    #[test]
    fn histograms_add_up() {
        let mut sum = Latencies::default();
        sum.merge(&of([5, 100]));
        sum.merge(&of([1_000_000]));
        assert_eq!(sum, of([5, 100, 1_000_000]));
        assert_eq!(sum.total_nanos(), 1_000_105);
        assert_eq!(sum.by_bounds(&[10, 1000, 1 << 40]), [1, 1, 1, 0]);
        assert_eq!(sum.by_bounds(&[]), [3]);
    }
}

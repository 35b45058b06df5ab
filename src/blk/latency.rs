//! Histograms of latencies: written by one IOThread, read by any thread.
//!
//! Buckets are logarithmic with linear steps in each octave: the error of a latency of up to 18 hours is at most a
//! sixteenth. Recording takes two additions and no lock.

use std::time::Duration;

use super::stats::Counter;

/// Buckets in each octave.
const STEPS: usize = 16;
/// Octaves after the first, which has steps of 1 ns. The last bucket also holds everything longer.
const OCTAVES: usize = 43;
const BUCKETS: usize = STEPS * OCTAVES;

/// The latencies of one operation on one queue. It has one writer and any number of readers.
#[derive(Debug)]
pub struct LatencyHistogram {
    counts: Box<[Counter]>,
    /// Nanoseconds.
    sum: Counter,
}

impl Default for LatencyHistogram {
    fn default() -> Self {
        Self {
            counts: (0..BUCKETS).map(|_| Counter::default()).collect(),
            sum: Counter::default(),
        }
    }
}

impl LatencyHistogram {
    /// Counts one request. One thread only.
    #[inline]
    pub fn record(&self, latency: Duration) {
        let nanos = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
        self.counts[bucket(nanos)].add(1);
        self.sum.add(nanos);
    }

    /// Reads all counters. The result may lack requests that are counted meanwhile.
    pub fn snapshot(&self) -> Latencies {
        Latencies {
            counts: self.counts.iter().map(Counter::get).collect(),
            sum: self.sum.get(),
        }
    }
}

/// The latencies in a histogram at one moment, or in several histograms together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Latencies {
    /// Number of requests by bucket. Buckets at the end may be missing: they are empty.
    counts: Vec<u64>,
    sum: u64,
}

impl Latencies {
    /// Returns the number of requests.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Returns the time of all requests together, in nanoseconds.
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

    /// Returns the latency that the fraction `part` (0 to 1) of the requests did not exceed, in nanoseconds: the upper
    /// end of its bucket. 0 without requests.
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

    /// Returns the numbers of requests between `bounds` (nanoseconds, ascending). The first number counts the requests
    /// below the first bound, and the last one those from the last bound on. The lower end of a bucket decides where it
    /// counts.
    pub fn by_bounds(&self, bounds: &[u64]) -> Vec<u64> {
        let mut bins = vec![0; bounds.len() + 1];
        for (bucket, count) in self.counts.iter().enumerate() {
            bins[bounds.partition_point(|bound| *bound <= lower(bucket))] += count;
        }
        bins
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

/// The shortest latency in a bucket, in nanoseconds.
fn lower(bucket: usize) -> u64 {
    let (octave, step) = (bucket / STEPS, (bucket % STEPS) as u64);
    match octave {
        0 => step,
        _ => (16 + step) << (octave - 1),
    }
}

/// One more than the longest latency in a bucket.
fn upper(bucket: usize) -> u64 {
    lower(bucket + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(nanos: impl IntoIterator<Item = u64>) -> Latencies {
        let histogram = LatencyHistogram::default();
        nanos
            .into_iter()
            .for_each(|n| histogram.record(Duration::from_nanos(n)));
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

//! What happened between two moments.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::snapshot::Figures;

/// The rates of a queue or a disk over an interval.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Rates {
    pub(crate) iops: f64,
    pub(crate) mib_per_second: f64,
    /// Latencies of requests that completed in the interval, in nanoseconds, or `None` without such requests.
    pub(crate) p50: Option<u64>,
    pub(crate) p99: Option<u64>,
    pub(crate) p999: Option<u64>,
    /// Requests in flight at its end.
    pub(crate) depth: u64,
    /// Completions per interrupt, or `None` without an interrupt.
    pub(crate) per_interrupt: Option<f64>,
}

impl Rates {
    /// Returns the rates between two snapshots of the same counters.
    pub(crate) fn between(old: &Figures, new: &Figures, time: Duration) -> Self {
        // A disk that was removed and added again starts from 0.
        let since = |counter: fn(&Figures) -> u64| counter(new).saturating_sub(counter(old));
        let completions = since(|figures| figures.completions);
        let notifications = since(|figures| figures.notifications);
        let bytes = since(|figures| figures.read_bytes + figures.written_bytes);
        let latencies = Latencies::between(old, new);
        let seconds = time.as_secs_f64().max(1e-9);
        Self {
            iops: float(completions) / seconds,
            mib_per_second: float(bytes) / seconds / f64::from(1 << 20),
            p50: latencies.quantile(500),
            p99: latencies.quantile(990),
            p999: latencies.quantile(999),
            depth: new.in_flight,
            per_interrupt: (notifications > 0).then(|| float(completions) / float(notifications)),
        }
    }
}

/// The latencies of all operations in an interval: the longest latency of each bucket, and its number of requests.
struct Latencies(BTreeMap<u64, u64>);

impl Latencies {
    fn between(old: &Figures, new: &Figures) -> Self {
        let mut counts = BTreeMap::<u64, u64>::new();
        for latency in new.latency.values() {
            for (bound, count) in &latency.bins {
                *counts.entry(*bound).or_default() += count;
            }
        }
        for latency in old.latency.values() {
            for (bound, count) in &latency.bins {
                counts
                    .entry(*bound)
                    .and_modify(|now| *now = now.saturating_sub(*count));
            }
        }
        Self(counts)
    }

    /// Returns the latency that `part` thousandths of the requests do not exceed.
    fn quantile(&self, part: u64) -> Option<u64> {
        let total: u64 = self.0.values().sum();
        let wanted = (total * part).div_ceil(1000).max(1);
        let mut seen = 0;
        let found = self.0.iter().find(|(_, count)| {
            seen += *count;
            seen >= wanted
        });
        found.map(|(bound, _)| *bound)
    }
}

#[allow(clippy::cast_precision_loss, reason = "a figure for people")]
pub(crate) fn float(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::Latency;

    fn figures(completions: u64, bins: &[(u64, u64)]) -> Figures {
        let latency = Latency {
            bins: bins.to_vec(),
            ..Latency::default()
        };
        Figures {
            completions,
            notifications: completions / 4,
            read_bytes: completions << 12,
            latency: BTreeMap::from([("read".to_owned(), latency)]),
            ..Figures::default()
        }
    }

    #[test]
    fn rates_cover_the_interval_only() {
        let old = figures(1000, &[(10, 999), (500, 1)]);
        let new = figures(1512, &[(10, 999), (20, 500), (500, 13)]);
        let rates = Rates::between(&old, &new, Duration::from_secs(2));
        assert_eq!((rates.iops, rates.mib_per_second), (256.0, 1.0));
        assert_eq!(
            (rates.p50, rates.p99, rates.p999),
            (Some(20), Some(500), Some(500))
        );
        assert_eq!(rates.per_interrupt, Some(4.0));
    }

    #[test]
    fn idle_intervals_have_no_latencies() {
        let same = figures(7, &[(10, 7)]);
        let rates = Rates::between(&same, &same, Duration::from_secs(1));
        assert_eq!((rates.iops, rates.p50, rates.per_interrupt), (0.0, None, None));
    }

    #[test]
    fn counters_that_start_again_are_no_rates() {
        let rates = Rates::between(
            &figures(9, &[(10, 9)]),
            &figures(1, &[(10, 1)]),
            Duration::from_secs(1),
        );
        assert_eq!((rates.iops, rates.p50), (0.0, None));
    }
}

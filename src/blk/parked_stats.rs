//! Statistics on their way from one process to the next.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::latency::ParkedLatencies;
use super::stats::QueueStats;

/// Counters that go up and down. The next process counts anew what is in flight.
const LEVELS: [&str; 2] = ["in_flight", "held"];

/// The statistics of a queue, for another process. Counters that this version does not know are ignored.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case", default)]
pub(crate) struct ParkedQueueStats {
    counters: BTreeMap<String, u64>,
    /// Notifications by the number of completions each covered.
    histogram: Vec<u64>,
    latency: Vec<ParkedLatencies>,
    throttled_ever: u64,
}

impl QueueStats {
    /// Describes the counters for another process.
    pub(crate) fn park(&self) -> ParkedQueueStats {
        let counters = self.counters().filter(|(name, _)| !LEVELS.contains(name));
        ParkedQueueStats {
            counters: counters
                .map(|(name, counter)| (name.to_owned(), counter.get()))
                .collect(),
            histogram: self.histogram.iter().map(|counter| counter.get()).collect(),
            latency: self.latency.park(),
            throttled_ever: self.throttle.ever(),
        }
    }

    /// Goes on counting after these. The queue has no requests yet.
    pub(crate) fn restore(&self, parked: &ParkedQueueStats) {
        for (name, counter) in self.counters().filter(|(name, _)| !LEVELS.contains(name)) {
            counter.set(parked.counters.get(name).copied().unwrap_or_default());
        }
        for (counter, value) in self.histogram.iter().zip(&parked.histogram) {
            counter.set(*value);
        }
        self.latency.restore(&parked.latency);
        self.throttle.restore(parked.throttled_ever);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blk::latency::Operation;

    #[test]
    fn all_figures_but_levels_go_on() {
        let (old, new) = (QueueStats::default(), QueueStats::default());
        for (number, (_, counter)) in (1..).zip(old.counters()) {
            counter.set(number);
        }
        old.notified(5);
        old.latency.record(Operation::Write, 12_345, 1);
        old.throttle.begin();
        old.throttle.end(1);
        let text = serde_json::to_string(&old.park()).unwrap();
        new.restore(&serde_json::from_str(&text).unwrap());
        let mut before = old.figures();
        assert!(before.in_flight > 0 && before.held > 0 && before.throttled_ever == 1);
        (before.in_flight, before.held) = (0, 0);
        assert_eq!(new.figures(), before);
    }

    #[test]
    fn statistics_of_another_version_are_understood() {
        let text = r#"{"counters": {"reads": 7, "sighs": 1}, "histogram": [1], "latency": [{"counts": [[99999, 1]]}]}"#;
        let stats = QueueStats::default();
        stats.restore(&serde_json::from_str(text).unwrap());
        assert_eq!((stats.figures().reads, stats.figures().writes), (7, 0));
    }
}

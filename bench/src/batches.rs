//! A histogram of completions per notification.

/// Number of buckets: 0, 1, 2-3, 4-7, and so on. The last one has no upper end.
pub(crate) const BUCKETS: usize = 11;

/// Notifications, counted by the number of completions that each one covered.
///
/// A driver that looks late finds several notifications in one read of the eventfd. It cannot tell which completions
/// belong to which of them, so it spreads them evenly.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub(crate) struct Batches([u64; BUCKETS]);

impl Batches {
    /// Adds `notifications`, at least one, that covered `completions` together.
    pub(crate) fn record(&mut self, completions: u64, notifications: u64) {
        let (each, more) = (completions / notifications, completions % notifications);
        self.0[bucket(each)] += notifications - more;
        self.0[bucket(each.saturating_add(1))] += more;
    }

    pub(crate) fn add(&mut self, other: &Self) {
        for (sum, more) in self.0.iter_mut().zip(other.0) {
            *sum += more;
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0 == [0; BUCKETS]
    }

    /// Returns the name of each bucket (its lowest number of completions) and its share of all notifications.
    pub(crate) fn shares(&self) -> impl Iterator<Item = (String, f64)> {
        let all = self.0.iter().sum::<u64>().max(1) as f64;
        self.0
            .into_iter()
            .enumerate()
            .map(move |(i, count)| (name(i), count as f64 / all))
    }
}

fn bucket(completions: u64) -> usize {
    let bits = u64::BITS - completions.leading_zeros();
    usize::try_from(bits).map_or(BUCKETS - 1, |bits| bits.min(BUCKETS - 1))
}

fn name(bucket: usize) -> String {
    match bucket {
        0 | 1 => bucket.to_string(),
        bucket => format!("{}+", 1 << (bucket - 1)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn completions_are_spread_evenly_over_their_notifications() {
        let mut batches = Batches::default();
        batches.record(1, 1);
        batches.record(70, 1);
        batches.record(5, 3); // 1, 2, 2
        batches.record(0, 1);
        let filled: Vec<_> = batches.shares().filter(|&(_, share)| share > 0.0).collect();
        let sixth = 1.0 / 6.0;
        let expected = [
            ("0", sixth),
            ("1", 2.0 * sixth),
            ("2+", 2.0 * sixth),
            ("64+", sixth),
        ];
        assert_eq!(filled, expected.map(|(name, share)| (name.to_owned(), share)));
    }

    #[test]
    fn the_last_bucket_has_no_upper_end() {
        let mut batches = Batches::default();
        batches.record(u64::MAX, 1);
        assert_eq!(batches.shares().last(), Some(("512+".to_owned(), 1.0)));
    }
}

//! How many completions came with each notification.

/// Buckets: none, 1, 2-3, 4-7, and so on; the last has no upper end.
pub(crate) const BUCKETS: usize = 11;

/// Notifications by the completions that each stood for.
///
/// A driver that looks late finds several notifications as one count; their completions are then taken to
/// be spread evenly over them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub(crate) struct Batches([u64; BUCKETS]);

impl Batches {
    /// `notifications` (not 0) brought `completions` together.
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

    /// The share of all notifications that each bucket has, and its name: the first number of completions in it.
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
    fn completions_are_spread_over_the_notifications_that_brought_them() {
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
    fn the_last_bucket_has_no_end() {
        let mut batches = Batches::default();
        batches.record(u64::MAX, 1);
        assert_eq!(batches.shares().last(), Some(("512+".to_owned(), 1.0)));
    }
}

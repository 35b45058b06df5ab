//! A leaky bucket: tracks recent work, and tells how long to wait before the next.

use std::time::Duration;

/// Without a burst limit, the bucket holds the amount that the average rate allows in this fraction of a second. A
/// smaller bucket would delay every second request.
const SLACK: f64 = 0.1;

/// One limit. Amounts are requests or bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Bucket {
    /// Amount per second in the long run; 0 for no limit.
    avg: f64,
    /// Amount per second during a burst; 0 for no bursts.
    max: f64,
    /// Maximum length of a burst at `max`, in seconds.
    burst: f64,
    /// Amount done that has not leaked at the average rate yet.
    level: f64,
    /// Amount done that has not leaked at the burst rate yet. Only used if bursts may last longer than a second.
    burst_level: f64,
}

impl Bucket {
    pub(super) fn new(avg: u64, max: u64, burst_seconds: u64) -> Self {
        #[allow(clippy::cast_precision_loss, reason = "limits are below 2^50")]
        let [avg, max, burst] = [avg, max, burst_seconds].map(|value| value as f64);
        Self {
            avg,
            max,
            burst,
            ..Self::default()
        }
    }

    pub(super) fn is_limited(&self) -> bool {
        self.avg > 0.0
    }

    /// Leaks the amount for the time that passed.
    pub(super) fn leak(&mut self, time: Duration) {
        let seconds = time.as_secs_f64();
        self.level = (self.level - self.avg * seconds).max(0.0);
        self.burst_level = (self.burst_level - self.max * seconds).max(0.0);
    }

    /// Returns the time to wait before anything more may be done.
    pub(super) fn wait(&self) -> Duration {
        if !self.is_limited() {
            return Duration::ZERO;
        }
        let (size, burst_size) = match self.max > 0.0 {
            true => (self.max * self.burst, self.max * SLACK),
            false => (self.avg * SLACK, 0.0),
        };
        let mut wait = (self.level - size) / self.avg;
        if self.burst > 1.0 {
            wait = wait.max((self.burst_level - burst_size) / self.max);
        }
        if wait <= 0.0 {
            return Duration::ZERO;
        }
        // Rounded up: a timer that fires too early would only wait again.
        Duration::from_secs_f64(wait) + Duration::from_nanos(1)
    }

    /// Adds an amount that is being done. Returns the time in which it leaks at the average rate.
    pub(super) fn fill(&mut self, amount: f64) -> Duration {
        if !self.is_limited() {
            return Duration::ZERO;
        }
        self.level += amount;
        self.burst_level += if self.burst > 1.0 { amount } else { 0.0 };
        self.cost(amount)
    }

    /// Returns the time in which an amount leaks at the average rate.
    pub(super) fn cost(&self, amount: f64) -> Duration {
        if !self.is_limited() {
            return Duration::ZERO;
        }
        Duration::try_from_secs_f64(amount / self.avg).unwrap_or(Duration::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TICK: Duration = Duration::from_micros(50);

    /// Does pieces of `amount` as early as allowed for `seconds`, with a ticking clock, and returns the sum.
    fn done_in(mut bucket: Bucket, seconds: f64, amount: f64) -> f64 {
        let (mut now, mut done) = (0.0, 0.0);
        while now < seconds {
            while bucket.wait().is_zero() {
                bucket.fill(amount);
                done += amount;
            }
            let ticks = (bucket.wait().as_secs_f64() / TICK.as_secs_f64()).ceil();
            bucket.leak(TICK.mul_f64(ticks));
            now += TICK.as_secs_f64() * ticks;
        }
        done
    }

    #[test]
    fn the_average_rate_is_held() {
        for (avg, amount) in [(1_000, 1.0), (10_000, 1.0), (100_000, 1.0), (100 << 20, 65536.0)] {
            let done = done_in(Bucket::new(avg, 0, 1), 10.0, amount);
            let allowed = avg as f64 * (10.0 + SLACK);
            assert!((done / allowed - 1.0).abs() < 0.001, "{avg}: {done}");
        }
    }

    #[test]
    fn bursts_end_after_their_length() {
        // At least a second at the maximum rate, then the average rate.
        let bucket = Bucket::new(100, 2000, 10);
        let burst = done_in(bucket, 5.0, 1.0);
        assert!((burst / 10_200.0 - 1.0).abs() < 0.01, "{burst}");
        // The level reaches 20,000 when it grows at 2,000 - 100 a second.
        let all = done_in(bucket, 60.0, 1.0);
        assert!((all / 26_000.0 - 1.0).abs() < 0.01, "{all}");
    }

    #[test]
    fn a_burst_of_a_second_is_not_paced() {
        let bucket = Bucket::new(100, 2000, 1);
        let at_once = done_in(bucket, 0.000_01, 1.0);
        assert!((2000.0..=2002.0).contains(&at_once), "{at_once}");
    }

    #[test]
    fn an_unlimited_bucket_never_waits() {
        let mut bucket = Bucket::new(0, 0, 1);
        assert_eq!(bucket.fill(1e18), Duration::ZERO);
        assert_eq!(bucket.wait(), Duration::ZERO);
    }

    #[test]
    fn large_requests_pass_and_leave_a_debt() {
        let mut bucket = Bucket::new(1 << 20, 0, 1);
        assert_eq!(bucket.wait(), Duration::ZERO);
        bucket.fill(10.0 * 1_048_576.0);
        let wait = bucket.wait().as_secs_f64();
        assert!((wait - 9.9).abs() < 0.01, "{wait}");
    }
}

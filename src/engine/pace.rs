//! How long answers of a server may gather before an IOThread takes them. IOThread only; this module uses no clock.
//!
//! While many requests are out, each answer by itself costs a wakeup, several system calls and a notification of the guest,
//! and the server pays for waking this thread. If answers gather for a small part of the time that a request takes anyway,
//! several of them share that price. An answer never waits while few requests are out, because then it is the guest that
//! waits.

use std::time::Duration;

use crate::aio::clock::Nanos;

/// Answers gather only while at least this many requests are out.
const LEAST: usize = 16;
/// An answer may wait for one part in so many of the time that a request takes.
const SHARE: u64 = 8;
/// The longest wait, and the shortest one that is worth a timer.
const LONGEST: Nanos = 250_000;
const SHORTEST: Nanos = 20_000;

/// The speed of a server, as far as its answers have shown it.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// The average time between two answers.
    each: Nanos,
    /// The time when answers were last taken, if enough requests were out.
    last: Option<Nanos>,
}

impl Pace {
    /// Notes that `answers` were taken at the time `now`, and that `out` requests are out. Returns how long further answers
    /// may gather. `None`: they are taken at once.
    pub(super) fn taken(&mut self, now: Nanos, answers: usize, out: usize) -> Option<Duration> {
        let last = self.last.take();
        if out < LEAST {
            return None;
        }
        self.last = Some(now);
        let (last, answers) = (last?, u64::try_from(answers).ok().filter(|answers| *answers > 0)?);
        let each = now.saturating_sub(last) / answers;
        self.each = match self.each {
            0 => each,
            before => (3 * before + each) / 4,
        };
        // Little's law: a request takes as long as all that are out need to be answered.
        let takes = self.each.saturating_mul(out as u64);
        let time = (takes / SHARE).min(LONGEST);
        (time >= SHORTEST).then(|| Duration::from_nanos(time))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const US: Nanos = 1_000;

    /// Takes `answers` every `period` until the pace has settled. Returns the time that it allows.
    fn settled(period: Nanos, answers: usize, out: usize) -> Option<Duration> {
        let mut pace = Pace::default();
        let mut time = None;
        for round in 0..50 {
            time = pace.taken(round * period, answers, out);
        }
        time
    }

    #[test]
    fn answers_gather_for_a_small_part_of_a_requests_time() {
        // A request takes 64 * 20 us.
        assert_eq!(settled(20 * US, 1, 64), Some(Duration::from_micros(160)));
        assert_eq!(settled(160 * US, 8, 64), Some(Duration::from_micros(160)));
        assert_eq!(settled(20 * US, 1, 512), Some(Duration::from_nanos(LONGEST)));
    }

    #[test]
    fn answers_to_few_requests_are_taken_at_once() {
        assert_eq!(settled(20 * US, 1, LEAST - 1), None);
        // A timer would cost more than it brings.
        assert_eq!(settled(4 * US, 1, 32), None);
    }

    #[test]
    fn an_answer_that_does_not_come_ends_the_gathering() {
        let mut pace = Pace::default();
        assert_eq!(pace.taken(0, 1, 64), None, "the speed is not known yet");
        assert!(pace.taken(20 * US, 1, 64).is_some());
        assert_eq!(pace.taken(180 * US, 0, 64), None);
        assert!(pace.taken(200 * US, 1, 64).is_some());
        assert_eq!(pace.taken(220 * US, 1, 3), None);
        assert_eq!(pace.taken(9_000 * US, 1, 64), None, "the guest was idle");
    }
}

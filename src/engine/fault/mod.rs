//! Fault injection (`--inject`): the decision which requests fail.
//!
//! Each request is checked against all rules. The delays of all rules that strike add up, and the first other fault
//! counts.

use std::sync::{Mutex, PoisonError};

use crate::io::IoOp;

pub(super) mod channel;
mod effect;
mod rule;

use effect::Effect;
pub use rule::FaultRule;

/// The rules of a disk, and the progress of each. Any thread.
#[derive(Debug)]
pub struct Faults(Mutex<Vec<Progress>>);

#[derive(Debug)]
struct Progress {
    rule: FaultRule,
    seen: u64,
    struck: u64,
    random: u64,
}

impl Faults {
    /// Creates the faults that `rules` describe.
    pub fn new(rules: &[FaultRule]) -> Self {
        let progress = |rule: &FaultRule| Progress {
            rule: rule.clone(),
            seen: 0,
            struck: 0,
            random: rule.seed,
        };
        Self(Mutex::new(rules.iter().map(progress).collect()))
    }

    /// Returns the effect on this request, if any, and counts the request.
    pub(super) fn strike(&self, op: IoOp, range: Option<(u64, u64)>) -> Option<Effect> {
        let mut rules = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut effect = None::<Effect>;
        for progress in rules.iter_mut().filter(|p| p.rule.concerns(op, range)) {
            if progress.strikes() {
                let effect = effect.get_or_insert_default();
                effect.delay += progress.rule.effect.delay;
                effect.fault = effect.fault.or(progress.rule.effect.fault);
            }
        }
        effect
    }
}

impl Progress {
    fn strikes(&mut self) -> bool {
        self.seen += 1;
        let strikes = self.seen > self.rule.after
            && self.struck < self.rule.count
            && self.chance() < self.rule.probability;
        self.struck += u64::from(strikes);
        strikes
    }

    /// Returns a random number from 0 to 1 (splitmix64).
    #[allow(clippy::cast_precision_loss, reason = "53 bits fit")]
    fn chance(&mut self) -> f64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::effect::Fault;
    use super::*;
    use std::time::Duration;

    const WRITE: IoOp = IoOp::Write { durable: false };

    fn faults(rules: &[&str]) -> Faults {
        let rules: Vec<FaultRule> = rules.iter().map(|rule| rule.parse().unwrap()).collect();
        Faults::new(&rules)
    }

    fn error(errno: i32) -> Option<Effect> {
        Some(Effect {
            delay: Duration::ZERO,
            fault: Some(Fault::Error(errno)),
        })
    }

    #[test]
    fn after_and_count_limit_a_rule() {
        let faults = faults(&["write:enospc:after=2,count=3"]);
        let struck: Vec<bool> = (0..8)
            .map(|_| faults.strike(WRITE, Some((0, 512))).is_some())
            .collect();
        assert_eq!(struck, [false, false, true, true, true, false, false, false]);
        assert_eq!(faults.strike(IoOp::Read, Some((0, 512))), None);
    }

    #[test]
    fn sectors_are_inclusive_and_a_flush_has_none() {
        let faults = faults(&["any:eio:sector=8-15"]);
        for (offset, len, expected) in [
            (0, 4096, None),
            (0, 4097, error(libc::EIO)),
            (15 * 512, 512, error(libc::EIO)),
            (16 * 512, 512, None),
        ] {
            assert_eq!(
                faults.strike(IoOp::Read, Some((offset, len))),
                expected,
                "{offset}"
            );
        }
        assert_eq!(faults.strike(IoOp::Flush, None), None);
    }

    #[test]
    fn the_seed_determines_random_strikes() {
        let run = |rule: &str| {
            let faults = faults(&[rule]);
            (0..10_000)
                .map(|_| faults.strike(IoOp::Flush, None).is_some())
                .collect::<Vec<bool>>()
        };
        let seven = run("flush:eio:probability=0.1:seed=7");
        let hits = seven.iter().filter(|hit| **hit).count();
        assert!((800..1200).contains(&hits), "{hits}");
        assert_eq!(seven, run("flush:eio:probability=0.1:seed=7"));
        assert_ne!(seven, run("flush:eio:probability=0.1:seed=8"));
    }

    #[test]
    fn delays_add_up_and_the_first_fault_counts() {
        let faults = faults(&["write:delay=5ms", "write:torn:enospc,delay=2s", "any:eio"]);
        let expected = Effect {
            delay: Duration::from_millis(2005),
            fault: Some(Fault::Torn(libc::ENOSPC)),
        };
        assert_eq!(faults.strike(WRITE, Some((0, 512))), Some(expected));
    }
}

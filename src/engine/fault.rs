//! The language of `--inject`: which requests are to go wrong, and how.
//!
//! `OPERATION:WHAT[,WHERE AND WHEN...]`; colons and commas are the same. All rules look at each request; of those that
//! strike, the delays add up and the first other fault counts.

use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::IoOp;

/// Names of errors, as `errno` has them.
const ERRORS: [(&str, i32); 10] = [
    ("eio", libc::EIO),
    ("enospc", libc::ENOSPC),
    ("edquot", libc::EDQUOT),
    ("erofs", libc::EROFS),
    ("efbig", libc::EFBIG),
    ("enomem", libc::ENOMEM),
    ("etimedout", libc::ETIMEDOUT),
    ("enolink", libc::ENOLINK),
    ("estale", libc::ESTALE),
    ("eopnotsupp", libc::EOPNOTSUPP),
];

const OPERATIONS: [&str; 6] = ["read", "write", "flush", "discard", "write-zeroes", "any"];

/// What happens to a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Effect {
    /// It takes longer by this.
    pub(super) delay: Duration,
    pub(super) fault: Option<Fault>,
}

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// Nothing is done but to fail with this errno.
    Error(i32),
    /// Half of the data is written, then it fails with this errno.
    Torn(i32),
    /// The kernel moves less than it was asked to.
    Short,
}

/// One rule.
#[derive(Clone, Debug, PartialEq)]
pub struct FaultRule {
    text: String,
    operation: String,
    effect: Effect,
    sectors: Option<RangeInclusive<u64>>,
    after: u64,
    count: u64,
    /// Of 1.0.
    probability: f64,
    seed: u64,
}

impl fmt::Display for FaultRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl FromStr for FaultRule {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut words = text.split([':', ',']);
        let operation = words.next().unwrap_or_default().to_owned();
        if !OPERATIONS.contains(&operation.as_str()) {
            return Err(format!(
                "'{operation}' is no operation: use {}",
                OPERATIONS.join(", ")
            ));
        }
        let mut rule = Self {
            text: text.to_owned(),
            operation,
            effect: Effect::default(),
            sectors: None,
            after: 0,
            count: u64::MAX,
            probability: 1.0,
            seed: 1,
        };
        let mut errno = None;
        for word in words {
            match word.split_once('=') {
                None => rule.set_fault(word, &mut errno)?,
                Some((key, value)) => rule.set(key, value)?,
            }
        }
        rule.finish(errno)
    }
}

impl FaultRule {
    fn set_fault(&mut self, word: &str, errno: &mut Option<i32>) -> Result<(), String> {
        match word {
            "short" => self.effect.fault = Some(Fault::Short),
            "torn" => self.effect.fault = Some(Fault::Torn(libc::EIO)),
            _ => {
                let known = ERRORS.iter().find(|(name, _)| *name == word);
                *errno = Some(known.ok_or_else(|| unknown_fault(word))?.1);
            }
        }
        Ok(())
    }

    fn set(&mut self, key: &str, value: &str) -> Result<(), String> {
        let bad = |what: &str| format!("{key}={value}: {what}");
        let number = || value.parse::<u64>().map_err(|_| bad("not a number"));
        match key {
            "delay" => self.effect.delay = parse_time(value).ok_or(bad("use e.g. 500ms, 2s or 50us"))?,
            "sector" => self.sectors = Some(parse_sectors(value).ok_or(bad("use e.g. 8 or 2048-4095"))?),
            "after" => self.after = number()?,
            "count" => self.count = number()?,
            "seed" => self.seed = number()?,
            "probability" => {
                self.probability = value
                    .parse()
                    .ok()
                    .filter(|p| (0.0..=1.0).contains(p))
                    .ok_or(bad("use a number from 0 to 1"))?;
            }
            _ => return Err(bad("use delay, sector, after, count, probability or seed")),
        }
        Ok(())
    }

    fn finish(mut self, errno: Option<i32>) -> Result<Self, String> {
        let transfers = matches!(self.operation.as_str(), "read" | "write");
        self.effect.fault = match (self.effect.fault, errno) {
            (Some(Fault::Short), Some(_)) => {
                return Err("a short transfer has no error of its own".to_owned());
            }
            (Some(Fault::Short), None) if !transfers => {
                return Err("only reads and writes can be short".to_owned());
            }
            (Some(Fault::Torn(_)), _) if self.operation != "write" => {
                return Err("only writes can be torn".to_owned());
            }
            (Some(Fault::Torn(_)), Some(errno)) => Some(Fault::Torn(errno)),
            (None, Some(errno)) => Some(Fault::Error(errno)),
            (fault, None) => fault,
            (Some(Fault::Error(_)), Some(_)) => unreachable!("errors are kept apart until here"),
        };
        if self.effect == Effect::default() {
            return Err(unknown_fault("nothing"));
        }
        Ok(self)
    }

    fn concerns(&self, op: IoOp, range: Option<(u64, u64)>) -> bool {
        let place = match (&self.sectors, range) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(sectors), Some((offset, len))) => {
                offset < sectors.end().saturating_add(1).saturating_mul(512)
                    && offset.saturating_add(len) > sectors.start().saturating_mul(512)
            }
        };
        place && (self.operation == "any" || self.operation == op.name())
    }
}

fn unknown_fault(word: &str) -> String {
    let names: Vec<&str> = ERRORS.iter().map(|(name, _)| *name).collect();
    format!(
        "'{word}' is no fault: use {}, short, torn or delay=TIME",
        names.join(", ")
    )
}

fn parse_time(text: &str) -> Option<Duration> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let number: u64 = digits.parse().ok()?;
    match &text[digits.len()..] {
        "us" => Some(Duration::from_micros(number)),
        "ms" => Some(Duration::from_millis(number)),
        "s" => Some(Duration::from_secs(number)),
        _ => None,
    }
}

fn parse_sectors(text: &str) -> Option<RangeInclusive<u64>> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (first.parse().ok()?, last.parse().ok()?);
    (first <= last).then_some(first..=last)
}

/// The rules of a disk, and how often each has struck. Any thread.
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
    /// Faults as `rules` say.
    pub fn new(rules: &[FaultRule]) -> Self {
        let progress = |rule: &FaultRule| Progress {
            rule: rule.clone(),
            seen: 0,
            struck: 0,
            random: rule.seed,
        };
        Self(Mutex::new(rules.iter().map(progress).collect()))
    }

    /// What happens to this request. Counts it.
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

    /// From 0 to 1 (splitmix64).
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
    use super::*;

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
    fn a_rule_strikes_after_so_many_and_so_often() {
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
    fn probability_is_a_matter_of_the_seed() {
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

    #[test]
    fn nonsense_is_refused_with_what_would_be_right() {
        for (rule, hint) in [
            ("", "operation"),
            ("reads:eio", "operation"),
            ("read", "fault"),
            ("read:eoops", "enospc"),
            ("read:torn", "only writes"),
            ("flush:short", "only reads and writes"),
            ("write:short:eio", "no error"),
            ("read:delay=5", "500ms"),
            ("read:eio:sector=9-8", "2048-4095"),
            ("read:eio:count=many", "number"),
            ("read:eio:probability=1.5", "0 to 1"),
            ("read:eio:often=yes", "use delay"),
        ] {
            let error = rule.parse::<FaultRule>().unwrap_err();
            assert!(error.contains(hint), "{rule}: {error}");
        }
    }
}

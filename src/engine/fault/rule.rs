//! The syntax of `--inject`: `OPERATION:WORD[:WORD...]`. Colons and commas are the same.

use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::effect::{Effect, Fault};
use crate::io::IoOp;

/// Names and numbers of errors.
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

/// A rule of fault injection.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct FaultRule {
    text: String,
    operation: String,
    pub(super) effect: Effect,
    /// Sectors of 512 bytes. The rule applies to requests that touch one of them.
    sectors: Option<RangeInclusive<u64>>,
    /// Number of matching requests that are spared at first.
    pub(super) after: u64,
    /// Maximum number of requests that are struck.
    pub(super) count: u64,
    /// Probability of striking each of the other matching requests, from 0.0 to 1.0.
    pub(super) probability: f64,
    /// Seed of the random numbers.
    pub(super) seed: u64,
}

impl fmt::Display for FaultRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl From<FaultRule> for String {
    fn from(rule: FaultRule) -> Self {
        rule.text
    }
}

impl TryFrom<String> for FaultRule {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl FromStr for FaultRule {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut words = text.split([':', ',']);
        let operation = words.next().unwrap_or_default().to_owned();
        if !OPERATIONS.contains(&operation.as_str()) {
            return Err(format!(
                "'{operation}' is not an operation: use {}",
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
            "panic" => self.effect.fault = Some(Fault::Panic),
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
            (Some(Fault::Short | Fault::Panic), Some(_)) => {
                return Err("a short transfer or a panic has no error of its own".to_owned());
            }
            (Some(Fault::Panic), None) if !self.effect.delay.is_zero() => {
                return Err("a panic cannot be delayed".to_owned());
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

    /// Returns whether the rule applies to a request. `range` is the request's first byte and length, if it has any.
    pub(super) fn concerns(&self, op: IoOp, range: Option<(u64, u64)>) -> bool {
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
        "'{word}' is not a fault: use {}, short, torn, panic or delay=TIME",
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invalid_rules_are_refused_with_advice() {
        for (rule, hint) in [
            ("", "operation"),
            ("reads:eio", "operation"),
            ("read", "fault"),
            ("read:eoops", "enospc"),
            ("read:torn", "only writes"),
            ("flush:short", "only reads and writes"),
            ("write:short:eio", "no error"),
            ("write:panic:eio", "no error"),
            ("write:panic:delay=1s", "cannot be delayed"),
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

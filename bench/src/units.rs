//! Parses sizes and times on the command line; formats figures; a small random number generator.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

/// Parses a number of bytes: `4096`, `4k`, `64M`, `1G` (powers of 1024).
pub(crate) fn bytes(text: &str) -> Result<u64> {
    let shift = match text.as_bytes().last().map(u8::to_ascii_lowercase) {
        Some(b'k') => 10,
        Some(b'm') => 20,
        Some(b'g') => 30,
        _ => 0,
    };
    let digits = if shift == 0 { text } else { &text[..text.len() - 1] };
    let number: u64 = digits
        .parse()
        .with_context(|| format!("{text:?} is not a size like 4k or 256M"))?;
    number
        .checked_mul(1 << shift)
        .with_context(|| format!("{text} is too large"))
}

/// Formats a figure with about three digits.
pub(crate) fn short(value: f64) -> String {
    match value {
        v if v >= 1e6 => format!("{v:.1e}"),
        v if v >= 100.0 => format!("{v:.0}"),
        v if v >= 10.0 => format!("{v:.1}"),
        v => format!("{v:.2}"),
    }
}

/// Parses a time in seconds, with a fraction: `2`, `0.5`.
pub(crate) fn seconds(text: &str) -> Result<Duration> {
    let number: f64 = text
        .parse()
        .with_context(|| format!("{text:?} is not a number of seconds"))?;
    ensure!(
        (0.0..=86_400.0).contains(&number),
        "{text} is not between 0 and 86400 seconds"
    );
    Ok(Duration::from_secs_f64(number))
}

/// SplitMix64: a small and fast generator that repeats its sequence for the same seed.
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Returns a number in `0..bound`. The bias is too small to matter for a benchmark or a bootstrap.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        debug_assert!(bound > 0);
        self.next() % bound
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_take_binary_suffixes_and_refuse_the_rest() {
        assert_eq!(bytes("512").unwrap(), 512);
        assert_eq!(bytes("4k").unwrap(), 4096);
        assert_eq!(bytes("1G").unwrap(), 1 << 30);
        for bad in ["", "k", "-1", "4kb", "99999999999G"] {
            assert!(bytes(bad).is_err(), "{bad} was accepted");
        }
    }

    #[test]
    fn seconds_are_finite_and_not_negative() {
        assert_eq!(seconds("0.5").unwrap(), Duration::from_millis(500));
        for bad in ["-1", "nan", "inf", "x"] {
            assert!(seconds(bad).is_err(), "{bad} was accepted");
        }
    }
}

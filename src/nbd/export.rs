//! The properties of an export, as the server has announced them.

use serde::{Deserialize, Serialize};

/// The largest payload that a server takes if it announces nothing else.
const DEFAULT_MAX: u32 = 32 << 20;
/// The largest block that the protocol allows as a minimum, in bytes.
const MIN_BLOCK_MAX: u32 = 64 << 10;
/// The largest offset that a file can have.
const SIZE_MAX: u64 = i64::MAX as u64;

/// The form of replies that was negotiated.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
pub enum Replies {
    /// A header, and the data of a read.
    #[default]
    Simple,
    /// Chunks, at least for reads.
    Structured,
    /// Chunks with 64-bit lengths, for everything.
    Extended,
}

/// The disk that a server offers, and what can be done with it.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct Export {
    /// Size in bytes.
    pub size: u64,
    /// The transmission flags.
    pub flags: u16,
    /// Offsets and lengths must be multiples of this power of two.
    pub min_block: u32,
    /// Best size of requests, or 0.
    pub preferred_block: u32,
    /// Maximum length of the data of a request or reply.
    pub max_block: u32,
    /// The form of replies.
    pub replies: Replies,
}

impl Export {
    const READ_ONLY: u16 = 1 << 1;
    const FLUSH: u16 = 1 << 2;
    const FUA: u16 = 1 << 3;
    const TRIM: u16 = 1 << 5;
    const WRITE_ZEROES: u16 = 1 << 6;
    const DF: u16 = 1 << 7;
    const MULTI_CONN: u16 = 1 << 8;
    const FAST_ZERO: u16 = 1 << 11;

    /// Makes the properties of an export whose server has said nothing about block sizes.
    ///
    /// Returns `None` if the size is larger than any file.
    pub(super) fn new(size: u64, flags: u16, replies: Replies) -> Option<Self> {
        (size <= SIZE_MAX).then_some(Self {
            size,
            flags,
            min_block: 1,
            preferred_block: 0,
            max_block: DEFAULT_MAX,
            replies,
        })
    }

    /// Sets the block sizes. Returns `None` if they contradict the protocol.
    #[must_use]
    pub(super) fn with_blocks(self, min: u32, preferred: u32, max: u32) -> Option<Self> {
        let valid = min.is_power_of_two()
            && min <= MIN_BLOCK_MAX
            && preferred.is_power_of_two()
            && preferred >= min
            && (max == u32::MAX || max.is_multiple_of(min))
            && max >= preferred;
        // Longer requests would only make others wait.
        let max_block = max.min(DEFAULT_MAX) / min.max(1) * min;
        valid.then_some(Self {
            min_block: min,
            preferred_block: preferred,
            max_block,
            ..self
        })
    }

    fn has(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }

    /// Returns whether writes are refused.
    pub fn is_read_only(&self) -> bool {
        self.has(Self::READ_ONLY)
    }

    /// Returns whether the server has a cache that can be flushed.
    pub fn flushes(&self) -> bool {
        self.has(Self::FLUSH)
    }

    /// Returns whether a write can be made stable before it is answered.
    pub fn has_fua(&self) -> bool {
        self.has(Self::FUA)
    }

    /// Returns whether the server takes discards.
    pub fn trims(&self) -> bool {
        self.has(Self::TRIM)
    }

    /// Returns whether the server writes zeroes without their transfer.
    pub fn writes_zeroes(&self) -> bool {
        self.has(Self::WRITE_ZEROES)
    }

    /// Returns whether a read can be answered in one piece.
    pub fn has_df(&self) -> bool {
        self.has(Self::DF) && self.replies != Replies::Simple
    }

    /// Returns whether a flush covers what was written over other connections.
    pub fn is_multi_conn(&self) -> bool {
        self.has(Self::MULTI_CONN)
    }

    /// Returns whether the server can say that zeroes would take as long as their transfer.
    pub fn has_fast_zero(&self) -> bool {
        self.has(Self::FAST_ZERO) && self.writes_zeroes()
    }

    /// Returns the reason why this export cannot take the place of `before` while a guest uses it, if there is one.
    pub fn misses(&self, before: &Self) -> Option<&'static str> {
        let lost = |flag: u16| before.has(flag) && !self.has(flag);
        let reasons = [
            (self.size < before.size, "it is smaller"),
            (
                self.is_read_only() && !before.is_read_only(),
                "it is read-only now",
            ),
            (self.min_block > before.min_block, "it has larger blocks"),
            (
                self.max_block < before.max_block,
                "it takes shorter requests only",
            ),
            (
                before.has_df() && !self.has_df(),
                "it no longer answers in one piece",
            ),
            (lost(Self::FLUSH), "it no longer flushes"),
            (lost(Self::FUA), "it no longer has FUA"),
            (lost(Self::TRIM), "it no longer takes discards"),
            (
                lost(Self::WRITE_ZEROES),
                "it no longer takes requests to write zeroes",
            ),
            (
                lost(Self::MULTI_CONN),
                "its flushes no longer cover all connections",
            ),
        ];
        reasons
            .into_iter()
            .find_map(|(missing, why)| missing.then_some(why))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn block_sizes_follow_the_protocol() {
        let export = Export::new(1 << 20, 1, Replies::Simple).expect("a size");
        let blocks = |min, preferred, max| {
            let export = export.with_blocks(min, preferred, max)?;
            Some((export.min_block, export.max_block))
        };
        assert_eq!(blocks(1, 4096, 32 << 20), Some((1, 32 << 20)));
        assert_eq!(blocks(4096, 4096, u32::MAX), Some((4096, 32 << 20)));
        assert_eq!(blocks(512, 512, 512), Some((512, 512)));
        for (min, preferred, max) in [
            (0, 4096, 4096),
            (3, 4096, 4096),
            (128 << 10, 128 << 10, 32 << 20),
            (4096, 512, 32 << 20),
            (1, 768, 32 << 20),
            (4096, 4096, 4097),
            (1, 4096, 512),
        ] {
            assert_eq!(blocks(min, preferred, max), None, "{min} {preferred} {max}");
        }
        assert_eq!(Export::new(1 << 63, 1, Replies::Simple), None);
    }

    #[test]
    fn an_export_that_lost_abilities_is_no_substitute() {
        let all = Export::new(4096, !Export::READ_ONLY, Replies::Simple).expect("a size");
        assert_eq!(all.misses(&all), None);
        let larger = Export { size: 8192, ..all };
        assert_eq!(larger.misses(&all), None);
        assert_eq!(all.misses(&larger), Some("it is smaller"));
        for flag in [
            Export::FLUSH,
            Export::FUA,
            Export::TRIM,
            Export::WRITE_ZEROES,
            Export::MULTI_CONN,
        ] {
            let flags = all.flags & !flag;
            assert!(Export { flags, ..all }.misses(&all).is_some(), "{flag}");
        }
        let read_only = Export {
            flags: u16::MAX,
            ..all
        };
        assert_eq!(read_only.misses(&all), Some("it is read-only now"));
        assert_eq!(all.misses(&read_only), None);
    }
}

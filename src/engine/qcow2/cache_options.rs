//! The sizes of an image's caches. Names and rules are QEMU's.

use std::time::Duration;

use crate::qcow2::{Header, SliceLayout};

/// Largest cache of L2 tables unless the user chooses another size, in bytes.
const L2_DEFAULT: u64 = 32 << 20;
/// Number of refcount blocks for which QEMU keeps room in `cache-size`.
const REFCOUNT_BLOCKS: u64 = 4;
/// Largest number of slices.
const SLICES_MAX: u64 = i32::MAX as u64;
/// Default of `cache-clean-interval` in seconds.
const CLEAN_INTERVAL: u32 = 600;

/// The sizes that a user has chosen, in bytes. Refcounts are not kept in memory, so what is said about their cache only
/// leaves less for L2 tables.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheOptions {
    /// `cache-size`: both caches together.
    pub total: Option<u64>,
    /// `l2-cache-size`: the cache of L2 tables.
    pub l2: Option<u64>,
    /// `refcount-cache-size`: the cache of refcounts.
    pub refcounts: Option<u64>,
    /// `l2-cache-entry-size`: a slice of an L2 table.
    pub entry: Option<u64>,
    /// `cache-clean-interval` in seconds; 0: never.
    pub clean_interval: Option<u32>,
}

/// The sizes for an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct CacheSizes {
    pub(super) layout: SliceLayout,
    /// Largest number of bytes of L2 tables in memory.
    pub(super) budget: u64,
    /// The interval after which unused slices are given up.
    pub(super) clean_interval: Option<Duration>,
}

/// The reason why sizes are refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
#[non_exhaustive]
pub enum CacheError {
    #[error("cache-size, l2-cache-size and refcount-cache-size may not be set at the same time")]
    All,
    #[error("l2-cache-size may not exceed cache-size")]
    L2,
    #[error("refcount-cache-size may not exceed cache-size")]
    Refcounts,
    #[error("L2 cache entry size must be a power of two between 512 and the cluster size ({0})")]
    Entry(u64),
    #[error("L2 cache size too big")]
    TooBig,
}

impl CacheOptions {
    /// Returns the sizes for an image.
    ///
    /// # Errors
    /// They contradict each other, or do not suit the image.
    pub(super) fn sizes(&self, header: &Header) -> Result<CacheSizes, CacheError> {
        let layout = header.slices();
        let cluster = layout.cluster_bytes();
        let layout = match self.entry {
            None => layout,
            Some(bytes) => layout.with_slice_bytes(bytes).ok_or(CacheError::Entry(cluster))?,
        };
        let needed = header
            .size
            .div_ceil(layout.bytes_per_table())
            .saturating_mul(cluster);
        let budget = self.budget(needed, cluster)?;
        if budget / layout.slice_bytes() as u64 > SLICES_MAX {
            return Err(CacheError::TooBig);
        }
        let seconds = self.clean_interval.unwrap_or(CLEAN_INTERVAL);
        Ok(CacheSizes {
            layout,
            budget,
            clean_interval: (seconds > 0).then(|| Duration::from_secs(seconds.into())),
        })
    }

    /// Returns the number of bytes for L2 tables, all of which have `needed` bytes.
    fn budget(&self, needed: u64, cluster: u64) -> Result<u64, CacheError> {
        let own = self.l2.unwrap_or(L2_DEFAULT);
        let Some(total) = self.total else {
            return Ok(own.min(needed));
        };
        match (self.l2, self.refcounts) {
            (Some(_), Some(_)) => Err(CacheError::All),
            (Some(l2), None) if l2 > total => Err(CacheError::L2),
            (None, Some(refcounts)) if refcounts > total => Err(CacheError::Refcounts),
            (Some(l2), None) => Ok(l2.min(needed)),
            (None, Some(refcounts)) => Ok(total - refcounts),
            (None, None) => {
                let refcounts = total.min(REFCOUNT_BLOCKS * cluster);
                Ok((total - refcounts).min(needed))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn budget(total: Option<u64>, l2: Option<u64>, refcounts: Option<u64>) -> Result<u64, CacheError> {
        let options = CacheOptions {
            total,
            l2,
            refcounts,
            ..CacheOptions::default()
        };
        options.budget(128 * MIB, 1 << 16)
    }

    #[test]
    fn sizes_are_divided_as_in_qemu() {
        assert_eq!(budget(None, None, None), Ok(32 * MIB));
        assert_eq!(budget(None, Some(MIB), Some(MIB)), Ok(MIB));
        assert_eq!(budget(None, Some(500 * MIB), None), Ok(128 * MIB));
        assert_eq!(budget(Some(8 * MIB), None, None), Ok(8 * MIB - (4 << 16)));
        assert_eq!(budget(Some(8 * MIB), Some(MIB), None), Ok(MIB));
        assert_eq!(budget(Some(8 * MIB), None, Some(MIB)), Ok(7 * MIB));
    }

    #[test]
    fn contradictions_are_refused() {
        let all = budget(Some(MIB), Some(MIB), Some(MIB));
        assert_eq!(all, Err(CacheError::All));
        assert_eq!(budget(Some(MIB), Some(2 * MIB), None), Err(CacheError::L2));
        assert_eq!(budget(Some(MIB), None, Some(2 * MIB)), Err(CacheError::Refcounts));
    }
}

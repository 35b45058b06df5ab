//! The properties of IOThreads that `qom-set` changes.

use std::ops::RangeInclusive;

use super::error::within;
use crate::daemon::options::{IoThreadOptions, ValueError};

/// A property of an IOThread that can change while it runs.
#[derive(Clone, Copy, Debug)]
pub enum IoThreadProperty {
    /// The longest time to poll before the thread sleeps, in nanoseconds. 0 turns polling off.
    PollMaxNs,
    /// No effect.
    PollGrow,
    /// No effect.
    PollShrink,
    /// The most requests in one submission to the kernel. 0 is no limit.
    AioMaxBatch,
    /// The workers that stay while they are idle.
    ThreadPoolMin,
    /// The most workers, from 1 to 1024.
    ThreadPoolMax,
}

/// The most workers of a pool.
pub(super) const MOST_THREADS: u16 = 1024;

impl IoThreadProperty {
    /// Returns the property of this name.
    pub fn named(name: &str) -> Option<Self> {
        Some(match name {
            "poll-max-ns" => Self::PollMaxNs,
            "poll-grow" => Self::PollGrow,
            "poll-shrink" => Self::PollShrink,
            "aio-max-batch" => Self::AioMaxBatch,
            "thread-pool-min" => Self::ThreadPoolMin,
            "thread-pool-max" => Self::ThreadPoolMax,
            _ => return None,
        })
    }

    /// Changes the property.
    pub(super) fn set(self, options: &mut IoThreadOptions, value: u64) -> Result<(), ValueError> {
        let integer = |name| within(name, value, 0..=i64::MAX.unsigned_abs());
        let threads = |name, range: RangeInclusive<u16>| {
            let range = u64::from(*range.start())..=u64::from(*range.end());
            // Never saturates: the range ends below.
            Ok::<_, ValueError>(u16::try_from(within(name, value, range)?).unwrap_or(u16::MAX))
        };
        let (min, max) = (options.thread_pool_min, options.thread_pool_max);
        match self {
            Self::PollMaxNs => options.poll_max_ns = integer("poll-max-ns")?,
            Self::PollGrow => options.poll_grow = integer("poll-grow")?,
            Self::PollShrink => options.poll_shrink = integer("poll-shrink")?,
            Self::AioMaxBatch => options.aio_max_batch = integer("aio-max-batch")?,
            Self::ThreadPoolMin => options.thread_pool_min = threads("thread-pool-min", 0..=max)?,
            Self::ThreadPoolMax => {
                options.thread_pool_max = threads("thread-pool-max", min.max(1)..=MOST_THREADS)?;
            }
        }
        Ok(())
    }
}

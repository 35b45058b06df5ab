//! Reasons for refusing a message of the frontend.

use std::io;

use crate::aio::Gone;
pub(super) use crate::error_chain::chain;

/// The reason why a message was refused.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The queue does not exist.
    #[error("queue {index} does not exist: the disk has {queues} queues")]
    BadQueue {
        /// Index of the queue.
        index: u32,
        /// Number of queues of the disk.
        queues: usize,
    },
    /// The frontend accepted features that were not offered.
    #[error("features {0:#x} were not offered")]
    BadFeatures(u64),
    /// The queue size is not supported.
    #[error("queue size {size} is not a power of two up to {max}, the disk's queue-size")]
    BadQueueSize {
        /// The refused size.
        size: u32,
        /// The largest size.
        max: u16,
    },
    /// The value does not fit an available index.
    #[error("available index {0} has more than 16 bits")]
    BadBase(u32),
    /// The setting cannot be changed while the ring runs.
    #[error("queue {0} is running and must be stopped first")]
    Running(usize),
    /// The number of files differs from the number of regions.
    #[error("message has {files} files for {regions} memory regions")]
    BadFiles {
        /// Number of files.
        files: usize,
        /// Number of regions.
        regions: usize,
    },
    /// The ring is invalid.
    #[error("queue {index}")]
    Ring {
        /// Index of the queue.
        index: usize,
        /// The defect that was found.
        source: crate::virtqueue::RingError,
    },
    /// The kick eventfd cannot be watched.
    #[error("queue {index}: kick eventfd")]
    Kick {
        /// Index of the queue.
        index: usize,
        /// The event loop's error.
        source: crate::aio::Error,
    },
    /// The file descriptor is not an eventfd.
    #[error("the file descriptor is not an eventfd")]
    NoEventFd,
    /// The type of the file descriptor cannot be determined.
    #[error("cannot determine whether the file descriptor is an eventfd")]
    EventFd(#[source] io::Error),
    /// The dirty log cannot be used.
    #[error(transparent)]
    Log(#[from] crate::memory::LogError),
    /// The used ring's guest address wraps around.
    #[error("guest address {0:#x} of the used ring wraps around")]
    BadLogAddress(u64),
    /// The image cannot be taken over.
    #[error("queue {index}")]
    Lock {
        /// Index of the queue that was to start.
        index: usize,
        /// The reason, such as another user of the image.
        source: crate::blk::device::TakeError,
    },
    /// Lost writes would appear stable to the destination of a migration.
    #[error("flush failed before handing the image over")]
    HandOver(#[source] io::Error),
    /// The in-flight region cannot be used.
    #[error(transparent)]
    Inflight(#[from] crate::virtqueue::RegionError),
    /// Rings cannot start, because the requests that a predecessor left in flight are unknown.
    #[error("queue {0} is not started, because the in-flight region was refused")]
    InflightRefused(usize),
    /// The frontend asked for an in-flight region with more queues than the disk has.
    #[error("in-flight region for {asked} queues, but the disk has {queues} (its num-queues)")]
    InflightQueues {
        /// Number of queues that the frontend asked for.
        asked: u16,
        /// Number of queues of the disk.
        queues: usize,
    },
    /// The memory table is invalid or cannot be mapped.
    #[error(transparent)]
    Memory(#[from] crate::memory::Error),
    /// The configuration space access is invalid.
    #[error(transparent)]
    Config(#[from] crate::blk::config::ConfigError),
    /// The write cache could not be switched off.
    #[error("flush failed while switching the write cache off")]
    Flush(#[source] io::Error),
    /// The IOThread has ended.
    #[error(transparent)]
    Gone(#[from] Gone),
    /// The message is not supported.
    #[error("message is not supported")]
    Unsupported,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kick_errors_name_their_cause() {
        let source = crate::aio::Error::EventFd(io::Error::from_raw_os_error(libc::EMFILE));
        let error = SessionError::Kick { index: 3, source };
        assert_eq!(
            chain(&error),
            "queue 3: kick eventfd: cannot create an eventfd: Too many open files (os error 24)"
        );
    }
}

//! Why a message of the frontend was refused.

use crate::aio::Gone;

/// Why a message was refused.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// No such queue.
    #[error("queue {index} of {queues}")]
    BadQueue {
        /// The index.
        index: u32,
        /// How many there are.
        queues: usize,
    },
    /// Features that were not offered.
    #[error("features {0:#x} were not offered")]
    BadFeatures(u64),
    /// A queue size that is not served.
    #[error("queue size {size} is not a power of two up to {max} (--queue-size)")]
    BadQueueSize {
        /// The size.
        size: u32,
        /// The largest one.
        max: u16,
    },
    /// A value that does not fit an available index.
    #[error("available index {0} has more than 16 bits")]
    BadBase(u32),
    /// A change of a ring that may not be changed while it runs.
    #[error("queue {0} runs, and must be stopped first")]
    Running(usize),
    /// Fewer or more files than regions.
    #[error("{files} files for {regions} memory regions")]
    BadFiles {
        /// Number of files.
        files: usize,
        /// Number of regions.
        regions: usize,
    },
    /// The ring is impossible.
    #[error("queue {index}: {source}")]
    Ring {
        /// The queue.
        index: usize,
        /// What is wrong with it.
        source: crate::virtqueue::RingError,
    },
    /// The eventfd does not do.
    #[error("queue {index}: kick eventfd: {source}")]
    Kick {
        /// The queue.
        index: usize,
        /// What is wrong with it.
        source: crate::aio::Error,
    },
    /// Another kind of file.
    #[error("the file descriptor is no eventfd")]
    NoEventFd,
    /// The file descriptor cannot be looked at.
    #[error("eventfd: {0}")]
    EventFd(std::io::Error),
    /// The dirty log does not do.
    #[error(transparent)]
    Log(#[from] crate::memory::LogError),
    /// The used ring's guest address wraps around.
    #[error("guest address {0:#x} of a used ring")]
    BadLogAddress(u64),
    /// The image is not ours to use now.
    #[error("queue {index}: {source}")]
    Lock {
        /// The queue that was to start.
        index: usize,
        /// Who has the image.
        source: crate::blk::device::TakeError,
    },
    /// The migration would take for stable what is lost.
    #[error("flush before the image is handed over: {0}")]
    HandOver(std::io::Error),
    /// The in-flight region does not do.
    #[error(transparent)]
    Inflight(#[from] crate::virtqueue::RegionError),
    /// Rings cannot run, because what a predecessor left behind is not known.
    #[error("queue {0}: not started, because the in-flight region was refused")]
    InflightRefused(usize),
    /// More queues than there are.
    #[error("in-flight region for {asked} queues of {queues} (--num-queues)")]
    InflightQueues {
        /// As the frontend asked.
        asked: u16,
        /// How many there are.
        queues: usize,
    },
    /// The memory table does not do.
    #[error(transparent)]
    Memory(#[from] crate::memory::Error),
    /// The configuration space access does not do.
    #[error(transparent)]
    Config(#[from] crate::blk::config::ConfigError),
    /// The write cache could not be switched off.
    #[error("flush for switching the write cache off: {0}")]
    Flush(std::io::Error),
    /// The IOThread has ended.
    #[error(transparent)]
    Gone(#[from] Gone),
    /// A message that was not negotiated.
    #[error("message is not supported")]
    Unsupported,
}

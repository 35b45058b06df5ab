//! The choice of a disk's engine.

use std::fmt;

use super::error::Error;
use super::file::linux_aio::LinuxAio;
use super::file::uring::Uring;
use crate::storage::{Nowait, RawFile};

/// The user's choice of an engine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Choice {
    /// The best engine for the storage.
    #[default]
    Auto,
    /// Blocking calls in a thread pool.
    Threads,
    /// io_uring.
    IoUring,
    /// Linux AIO; O_DIRECT only.
    Native,
}

/// The engine that will be used. Its text is for logs and statistics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The IOThread executes requests that need not wait.
    pub(in crate::engine) inline: bool,
    /// Adjacent requests of a batch are merged.
    merging: bool,
    pub(in crate::engine) executor: Executor,
    /// The maximum number of requests in one submission to the kernel, or 0.
    pub(in crate::engine) max_batch: u64,
    /// The memory of guests is registered with io_uring.
    pub(in crate::engine) registers_memory: bool,
}

/// The executor of requests that the IOThread does not execute itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::engine) enum Executor {
    /// No request is left for an executor.
    Nobody,
    Threads,
    IoUring,
    Native,
    /// A connection to a server.
    Socket,
    /// librbd.
    Cluster,
}

impl Plan {
    /// Makes a plan for a file, and checks that the kernel supports it.
    ///
    /// With `Auto`, the IOThread transfers data that is in the page cache, and the thread pool does the rest. A file
    /// without a page cache gets io_uring if it is available.
    ///
    /// # Errors
    /// The engine was chosen by name, and is not available here.
    pub(in crate::engine) fn for_file(choice: Choice, file: &RawFile) -> Result<Self, Error> {
        let cached = file.nowait() != Nowait::No;
        let ring = || Uring::new().map(drop).map_err(Error::IoUring);
        match choice {
            Choice::Threads => Ok(Self::new(false, Executor::Threads)),
            Choice::Auto if cached => Ok(Self::new(true, Executor::Threads)),
            Choice::Auto => match ring() {
                Ok(()) => Ok(Self::new(false, Executor::IoUring)),
                Err(error) => {
                    let disk = file.path().display().to_string();
                    tracing::info!(disk, %error, "io_uring is not available: using the thread pool");
                    Ok(Self::new(false, Executor::Threads))
                }
            },
            Choice::IoUring => ring().map(|()| Self::new(false, Executor::IoUring)),
            Choice::Native if cached => Err(Error::NativeBuffered),
            Choice::Native => {
                LinuxAio::new().map_err(Error::Native)?;
                Ok(Self::new(false, Executor::Native))
            }
        }
    }

    /// Makes a plan for a disk that stores nothing.
    ///
    /// # Errors
    /// A kernel engine was chosen.
    pub(in crate::engine) fn for_null(choice: Choice) -> Result<Self, Error> {
        match choice {
            Choice::Auto => Ok(Self::new(true, Executor::Nobody)),
            Choice::Threads => Ok(Self::new(false, Executor::Threads)),
            Choice::IoUring | Choice::Native => Err(Error::NoFile),
        }
    }

    /// Makes a plan for a disk whose requests a timer completes.
    ///
    /// # Errors
    /// An engine was chosen by name.
    pub(in crate::engine) fn for_timer(choice: Choice) -> Result<Self, Error> {
        match choice {
            Choice::Auto => Ok(Self::new(false, Executor::Nobody)),
            Choice::Threads | Choice::IoUring | Choice::Native => Err(Error::Timer),
        }
    }

    /// Makes a plan for a disk on a server.
    ///
    /// # Errors
    /// An engine was chosen by name.
    pub(in crate::engine) fn for_server(choice: Choice) -> Result<Self, Error> {
        match choice {
            Choice::Auto => Ok(Self::new(false, Executor::Socket)),
            Choice::Threads | Choice::IoUring | Choice::Native => Err(Error::Network),
        }
    }

    /// Makes a plan for a disk in a Ceph cluster.
    ///
    /// # Errors
    /// An engine was chosen by name.
    pub(in crate::engine) fn for_cluster(choice: Choice) -> Result<Self, Error> {
        match choice {
            Choice::Auto => Ok(Self::new(false, Executor::Cluster)),
            Choice::Threads | Choice::IoUring | Choice::Native => Err(Error::Cluster),
        }
    }

    /// Makes a plan for a disk in an image format, whose data is in `file`.
    ///
    /// # Errors
    /// A kernel engine was chosen.
    pub(in crate::engine) fn for_format(choice: Choice, file: &RawFile) -> Result<Self, Error> {
        let cached = file.nowait() != Nowait::No;
        match choice {
            Choice::Auto => Ok(Self::new(cached, Executor::Threads)),
            Choice::Threads => Ok(Self::new(false, Executor::Threads)),
            Choice::IoUring | Choice::Native => Err(Error::Format),
        }
    }

    /// Returns the same plan with or without merging of adjacent requests. The default is with merging.
    #[must_use]
    pub fn with_merging(self, merging: bool) -> Self {
        Self { merging, ..self }
    }

    /// Returns the same plan with at most this many requests in one submission to the kernel, or without a maximum for 0.
    #[must_use]
    pub fn with_max_batch(self, max_batch: u64) -> Self {
        Self { max_batch, ..self }
    }

    /// Returns the same plan with or without registration of the guest's memory. The default is without.
    ///
    /// # Errors
    /// The engine is not io_uring, or the kernel's io_uring cannot do this.
    pub fn with_registered_memory(self, on: bool) -> Result<Self, Error> {
        if on {
            if self.executor != Executor::IoUring {
                return Err(Error::NothingRegistered);
            }
            if !Uring::new().map_err(Error::IoUring)?.has_memory_table() {
                return Err(Error::NoMemoryTable);
            }
        }
        Ok(Self {
            registers_memory: on,
            ..self
        })
    }

    /// Returns whether a worker may help with requests that the IOThread executes.
    pub(in crate::engine) fn shares(self) -> bool {
        self.inline && self.executor == Executor::Threads
    }

    pub(in crate::engine) fn merges(self) -> bool {
        // Without a file, merging saves nothing.
        self.merging && self.executor != Executor::Nobody
    }

    fn new(inline: bool, executor: Executor) -> Self {
        Self {
            inline,
            merging: true,
            executor,
            max_batch: 0,
            registers_memory: false,
        }
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inline = if self.inline { "inline+" } else { "" };
        match self.executor {
            Executor::Nobody if self.inline => f.write_str("inline"),
            Executor::Nobody => f.write_str("timer"),
            Executor::Threads => write!(f, "{inline}threads"),
            Executor::IoUring => write!(f, "{inline}io_uring"),
            Executor::Native => write!(f, "{inline}native"),
            Executor::Socket => f.write_str("nbd"),
            Executor::Cluster => f.write_str("rbd"),
        }
    }
}

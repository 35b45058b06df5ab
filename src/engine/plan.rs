//! Which engine a disk gets.

use std::fmt;

use super::error::Error;
use super::file::linux_aio::LinuxAio;
use super::file::uring::Uring;
use crate::storage::{Nowait, RawFile};

/// What the user asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Choice {
    /// What suits the storage best.
    #[default]
    Auto,
    /// Blocking calls in a thread pool.
    Threads,
    /// io_uring.
    IoUring,
    /// Linux AIO; O_DIRECT only.
    Native,
}

/// What is going to be used. Its text is for logs and statistics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The IOThread does by itself what takes no waiting.
    pub(in crate::engine) inline: bool,
    /// Adjacent requests of a batch become one.
    merging: bool,
    pub(in crate::engine) executor: Executor,
}

/// Who executes what the IOThread does not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::engine) enum Executor {
    /// Nothing is left to execute.
    Nobody,
    Threads,
    IoUring,
    Native,
}

impl Plan {
    /// Decides for a file, and has the kernel prove that it can.
    ///
    /// `Auto` takes what is in the page cache from there, in the IOThread, and leaves the rest to the thread pool; a file
    /// that no cache is in front of gets io_uring if there is one.
    ///
    /// # Errors
    /// An engine that was asked for by name is not available here.
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
                    tracing::info!(disk, %error, "io_uring cannot be used: using the thread pool");
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

    /// Decides for a disk that stores nothing.
    ///
    /// # Errors
    /// An engine of the kernel was asked for.
    pub(in crate::engine) fn for_null(choice: Choice) -> Result<Self, Error> {
        match choice {
            Choice::Auto => Ok(Self::new(true, Executor::Nobody)),
            Choice::Threads => Ok(Self::new(false, Executor::Threads)),
            Choice::IoUring | Choice::Native => Err(Error::NoFile),
        }
    }

    /// Decides for a disk that a timer completes.
    ///
    /// # Errors
    /// An engine was asked for by name.
    pub(in crate::engine) fn for_timer(choice: Choice) -> Result<Self, Error> {
        match choice {
            Choice::Auto => Ok(Self::new(false, Executor::Nobody)),
            Choice::Threads | Choice::IoUring | Choice::Native => Err(Error::Timer),
        }
    }

    /// The same, with or without merging adjacent requests of a batch. At first it is with.
    #[must_use]
    pub fn with_merging(self, merging: bool) -> Self {
        Self { merging, ..self }
    }

    /// The IOThread's pool may help with what the IOThread does by itself.
    pub(in crate::engine) fn shares(self) -> bool {
        self.inline && self.executor == Executor::Threads
    }

    pub(in crate::engine) fn merges(self) -> bool {
        // Without a file there is nothing to be saved.
        self.merging && self.executor != Executor::Nobody
    }

    fn new(inline: bool, executor: Executor) -> Self {
        Self {
            inline,
            merging: true,
            executor,
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
        }
    }
}

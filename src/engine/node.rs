//! Block nodes: the disks that requests can be about, each with its properties and its lock.
//!
//! A node is shared by all threads and does no I/O by itself. Every IOThread opens a [`Channel`] to it, which does.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::channel::Channel;
use super::error::Error;
use super::file::channel::FileShared;
use super::null::{NullAioChannel, NullCoChannel, NullDisk};
use super::plan::{Choice, Executor, Plan};
use super::resources::Resources;
use crate::storage::{self, FlushWitness, ImageLock, Limits, LockError, OpenOptions, RawFile};

/// A disk. The closed set of its kinds.
#[derive(Debug)]
pub enum BlockNode {
    /// A regular file or a block device.
    File(Arc<RawFile>),
    /// Stores nothing, and answers at once.
    NullCo(Arc<NullDisk>),
    /// Stores nothing, and answers later.
    NullAio(Arc<NullDisk>, Duration),
}

impl From<RawFile> for BlockNode {
    fn from(file: RawFile) -> Self {
        Self::File(Arc::new(file))
    }
}

impl BlockNode {
    /// Opens a regular file or a block device.
    ///
    /// On a writable regular file this asks for a hole behind its end, to see whether holes are supported; that changes
    /// no data.
    ///
    /// # Errors
    /// See [`enum@storage::Error`].
    pub fn open(options: &OpenOptions) -> Result<Self, storage::Error> {
        Ok(RawFile::open(options)?.into())
    }

    /// Makes a disk of `size` bytes (a positive multiple of 512) that stores nothing and answers at once.
    pub fn null(size: u64) -> Self {
        Self::NullCo(Arc::new(NullDisk::new(size)))
    }

    /// Makes a disk of `size` bytes (a positive multiple of 512) that stores nothing and answers after `latency`.
    pub fn null_aio(size: u64, latency: Duration) -> Self {
        Self::NullAio(Arc::new(NullDisk::new(size)), latency)
    }

    /// The path of the image, for messages.
    pub fn path(&self) -> &Path {
        match self {
            Self::File(file) => file.path(),
            Self::NullCo(_) => Path::new("null"),
            Self::NullAio(..) => Path::new("null-aio"),
        }
    }

    /// Bytes on the disk: a positive multiple of the logical block size.
    pub fn size(&self) -> u64 {
        match self {
            Self::File(file) => file.size(),
            Self::NullCo(null) | Self::NullAio(null, _) => null.size(),
        }
    }

    /// What the disk can do, and what it asks of requests.
    pub fn limits(&self) -> &Limits {
        match self {
            Self::File(file) => file.limits(),
            Self::NullCo(null) | Self::NullAio(null, _) => null.limits(),
        }
    }

    /// True once every flush fails, because an earlier one did.
    pub fn flushes_fail(&self) -> bool {
        match self {
            Self::File(file) => file.flushes_fail(),
            Self::NullCo(_) | Self::NullAio(..) => false,
        }
    }

    /// True if the last flush failed: what was written before it may be lost.
    pub fn last_flush_failed(&self) -> bool {
        match self {
            Self::File(file) => file.last_flush_failed(),
            Self::NullCo(_) | Self::NullAio(..) => false,
        }
    }

    /// Makes every flush fail from here on: another process knows that data was lost.
    pub fn fail_flushes(&self) {
        match self {
            Self::File(file) => file.fail_flushes(),
            Self::NullCo(_) | Self::NullAio(..) => {}
        }
    }

    /// Has a witness remember what becomes of flushes through the page cache. It learns at once if they have failed for
    /// good.
    pub fn set_flush_witness(&self, witness: Option<Arc<dyn FlushWitness>>) {
        match self {
            Self::File(file) => file.set_flush_witness(witness),
            Self::NullCo(_) | Self::NullAio(..) => {}
        }
    }

    /// A process that is gone began a flush, and nobody knows how it ended.
    ///
    /// The next flush of a file syncs its whole file system, which knows if anything was lost there, and fails then.
    /// Returns false where nothing can tell (block devices).
    pub fn doubt_last_flush(&self) -> bool {
        match self {
            Self::File(file) => file.doubt_last_flush(),
            Self::NullCo(_) | Self::NullAio(..) => true,
        }
    }

    /// Returns the limits of a disk that serves this node, with a larger logical block or without writes if asked for.
    ///
    /// # Errors
    /// The logical block size is not possible, or the node is not a multiple of it.
    pub fn limits_for(
        &self,
        logical_block_size: Option<u32>,
        read_only: bool,
    ) -> Result<Limits, storage::Error> {
        let limits = *self.limits();
        let limits = match logical_block_size {
            None => limits,
            Some(block) => limits.with_logical_block_size(block, self.size(), self.path())?,
        };
        Ok(match read_only {
            true => limits.read_only(),
            false => limits,
        })
    }

    /// Returns whether this is a block device.
    pub fn is_device(&self) -> bool {
        matches!(self, Self::File(file) if file.is_device())
    }

    /// Locks the image, to write to it or only to read it; gives somebody who is about to let go of it a moment. A disk
    /// without an image needs no lock.
    ///
    /// # Errors
    /// See [`LockError`]. Nothing stays locked.
    pub fn lock(&self, writes: bool) -> Result<Option<ImageLock>, LockError> {
        match self {
            Self::File(file) if !file.locks() => Ok(None),
            Self::File(file) => ImageLock::acquire_soon(file, writes).map(Some),
            Self::NullCo(_) | Self::NullAio(..) => Ok(None),
        }
    }

    /// Decides which engine the disk gets, and has the kernel prove that it can.
    ///
    /// # Errors
    /// An engine that was asked for by name is not available here.
    pub fn plan(&self, choice: Choice) -> Result<Plan, Error> {
        match self {
            Self::File(file) => Plan::for_file(choice, file),
            Self::NullCo(_) => Plan::for_null(choice),
            Self::NullAio(..) => Plan::for_timer(choice),
        }
    }

    /// Opens a channel to the disk on the calling IOThread, whose `resources` these are, as `plan` says.
    ///
    /// # Errors
    /// The kernel has no resources for a ring, or the ring has no room for another file.
    pub fn open_channel(&self, resources: &Resources, plan: Plan) -> Result<Channel, Error> {
        Ok(match self {
            Self::File(file) => FileShared::new(resources, plan, Arc::clone(file))?
                .channel()
                .into(),
            Self::NullCo(null) => {
                let pool = (plan.executor == Executor::Threads).then(|| resources.pool().clone());
                NullCoChannel::new(null, pool).into()
            }
            Self::NullAio(null, latency) => NullAioChannel::new(resources.ctx(), null, *latency).into(),
        })
    }
}

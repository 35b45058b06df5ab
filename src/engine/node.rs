//! Block nodes: disks with their properties and their locks.
//!
//! A node is shared by all threads and does no I/O by itself. Every IOThread opens a [`Channel`] to it for that.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::channel::Channel;
use super::error::Error;
use super::file::channel::FileShared;
use super::lock::NodeLock;
use super::nbd::{NbdChannel, NbdDisk};
use super::null::{NullAioChannel, NullCoChannel, NullDisk};
use super::plan::{Choice, Executor, Plan};
use super::qcow2::{Qcow2Channel, Qcow2Disk};
use super::rbd::{Link as RbdLink, RbdChannel, RbdDisk};
use super::remote_disk::RemoteOptions;
use super::resources::Resources;
use super::size_listener::SizeListener;
use crate::storage::{self, FlushWitness, ImageLock, Limits, LockError, LockMode, OpenOptions, RawFile};

/// A disk.
#[derive(Debug)]
pub enum BlockNode {
    /// A regular file or a block device.
    File(Arc<RawFile>),
    /// A disk that stores nothing and answers at once.
    NullCo(Arc<NullDisk>),
    /// A disk that stores nothing and answers after a delay.
    NullAio(Arc<NullDisk>, Duration),
    /// A disk on an NBD server.
    Nbd(Arc<NbdDisk>),
    /// An image in a Ceph cluster.
    Rbd(Arc<RbdDisk>),
    /// A disk in a qcow2 image.
    Qcow2(Arc<Qcow2Disk>),
}

impl From<RawFile> for BlockNode {
    fn from(file: RawFile) -> Self {
        Self::File(Arc::new(file))
    }
}

impl From<NbdDisk> for BlockNode {
    fn from(disk: NbdDisk) -> Self {
        Self::Nbd(Arc::new(disk))
    }
}

impl From<RbdDisk> for BlockNode {
    fn from(disk: RbdDisk) -> Self {
        Self::Rbd(Arc::new(disk))
    }
}

impl From<Qcow2Disk> for BlockNode {
    fn from(disk: Qcow2Disk) -> Self {
        Self::Qcow2(Arc::new(disk))
    }
}

impl BlockNode {
    /// Opens a regular file or a block device.
    ///
    /// On a writable regular file this punches a hole past the end, to find out whether holes are supported. That
    /// changes no data.
    ///
    /// # Errors
    /// See [`enum@storage::Error`].
    pub fn open(options: &OpenOptions) -> Result<Self, storage::Error> {
        Ok(RawFile::open(options)?.into())
    }

    /// Makes a node of a file that is open already. Its flags become those that `options` ask for. `direct` is the same
    /// file, open for O_DIRECT, if this process cannot open it.
    ///
    /// # Errors
    /// See [`enum@storage::Error`].
    pub fn from_file(
        file: File,
        direct: Option<File>,
        options: &OpenOptions,
    ) -> Result<Self, storage::Error> {
        Ok(RawFile::from_file(file, direct, options)?.into())
    }

    /// Creates a disk of `size` bytes (a positive multiple of 512) that stores nothing and answers at once.
    pub fn null(size: u64) -> Self {
        Self::null_disk(size, None, false)
    }

    /// Creates a disk of `size` bytes (a positive multiple of 512) that stores nothing and answers after `latency`, or at
    /// once. With `zeroes`, reads return zeroes; without, they leave the memory as it is.
    pub fn null_disk(size: u64, latency: Option<Duration>, zeroes: bool) -> Self {
        let disk = Arc::new(NullDisk::new(size, zeroes));
        match latency {
            None => Self::NullCo(disk),
            Some(latency) => Self::NullAio(disk, latency),
        }
    }

    /// Creates a disk of `size` bytes (a positive multiple of 512) that stores nothing and answers after `latency`.
    pub fn null_aio(size: u64, latency: Duration) -> Self {
        Self::null_disk(size, Some(latency), false)
    }

    /// Returns the path of the image, for messages.
    pub fn path(&self) -> &Path {
        match self {
            Self::File(file) => file.path(),
            Self::NullCo(_) => Path::new("null"),
            Self::NullAio(..) => Path::new("null-aio"),
            Self::Nbd(disk) => disk.path(),
            Self::Rbd(disk) => disk.path(),
            Self::Qcow2(disk) => disk.path(),
        }
    }

    /// Returns the size in bytes, a positive multiple of the logical block size.
    pub fn size(&self) -> u64 {
        match self {
            Self::File(file) => file.size(),
            Self::NullCo(null) | Self::NullAio(null, _) => null.size(),
            Self::Nbd(disk) => disk.size(),
            Self::Rbd(disk) => disk.size(),
            Self::Qcow2(disk) => disk.size(),
        }
    }

    /// Returns the bytes that the image takes where it is stored, if that is known without waiting.
    pub fn allocated(&self) -> Option<u64> {
        match self {
            Self::File(file) => file.allocated(),
            Self::NullCo(_) | Self::NullAio(..) => Some(0),
            Self::Nbd(_) | Self::Rbd(_) => None,
            Self::Qcow2(disk) => disk.allocated(),
        }
    }

    /// Calls `listener` when the size changes without being asked for, as long as the listener lives.
    pub fn watch_size(&self, listener: &Arc<SizeListener>) {
        match self {
            Self::Nbd(disk) => disk.size_listeners().add(listener),
            Self::Rbd(disk) => disk.size_listeners().add(listener),
            Self::File(_) | Self::NullCo(_) | Self::NullAio(..) | Self::Qcow2(_) => {}
        }
    }

    /// Returns the disk's properties, and its requirements for requests.
    pub fn limits(&self) -> &Limits {
        match self {
            Self::File(file) => file.limits(),
            Self::NullCo(null) | Self::NullAio(null, _) => null.limits(),
            Self::Nbd(disk) => disk.limits(),
            Self::Rbd(disk) => disk.limits(),
            Self::Qcow2(disk) => disk.limits(),
        }
    }

    /// Returns the format of the image on a disk on another machine when it was opened, unless it seemed to be raw.
    pub fn foreign_format(&self) -> Option<&'static str> {
        match self {
            Self::Nbd(disk) => disk.foreign_format(),
            Self::Rbd(disk) => disk.foreign_format(),
            Self::File(_) | Self::NullCo(_) | Self::NullAio(..) | Self::Qcow2(_) => None,
        }
    }

    /// Reads the size again and drops clean cached data, because another process has used the image.
    ///
    /// # Errors
    /// See [`RawFile::look_anew`].
    pub fn look_anew(&self) -> io::Result<()> {
        match self {
            Self::File(file) => file.look_anew().map(drop),
            Self::Rbd(disk) => disk.look_anew(),
            Self::Qcow2(disk) => disk.look_anew(),
            Self::NullCo(_) | Self::NullAio(..) | Self::Nbd(_) => Ok(()),
        }
    }

    /// Makes the disk `bytes` long. Requests are checked against the new size from then on.
    ///
    /// # Errors
    /// See [`RawFile::resize`]. A disk without an image keeps its size.
    pub fn resize(&self, bytes: u64) -> io::Result<()> {
        match self {
            Self::File(file) => file.resize(bytes),
            Self::Rbd(disk) => disk.resize(bytes),
            Self::NullCo(_) | Self::NullAio(..) => Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "a null disk keeps its size",
            )),
            Self::Nbd(_) => Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "an NBD server keeps the size of its export",
            )),
            Self::Qcow2(disk) => disk.resize(bytes),
        }
    }

    /// Returns whether all further flushes will fail.
    pub fn flushes_fail(&self) -> bool {
        match self {
            Self::File(file) => file.flushes_fail(),
            Self::Qcow2(disk) => disk.own_files().any(|file| file.flushes_fail()),
            Self::NullCo(_) | Self::NullAio(..) | Self::Nbd(_) | Self::Rbd(_) => false,
        }
    }

    /// Returns whether the last flush failed, so that data written before it may be lost.
    pub fn last_flush_failed(&self) -> bool {
        match self {
            Self::File(file) => file.last_flush_failed(),
            Self::Qcow2(disk) => disk.own_files().any(|file| file.last_flush_failed()),
            Self::NullCo(_) | Self::NullAio(..) | Self::Nbd(_) | Self::Rbd(_) => false,
        }
    }

    /// Makes every flush fail from now on, because a predecessor has lost data.
    pub fn fail_flushes(&self) {
        match self {
            Self::File(file) => file.fail_flushes(),
            Self::Qcow2(disk) => disk.own_files().for_each(|file| file.fail_flushes()),
            Self::NullCo(_) | Self::NullAio(..) | Self::Nbd(_) | Self::Rbd(_) => {}
        }
    }

    /// Replaces `old`, a witness that records the outcome of flushes through the page cache, with `new`, which is told
    /// at once if flushes have failed for good.
    pub fn replace_flush_witness(
        &self,
        old: Option<&Arc<dyn FlushWitness>>,
        new: Option<Arc<dyn FlushWitness>>,
    ) {
        match self {
            Self::File(file) => file.replace_flush_witness(old, new),
            Self::Qcow2(disk) => disk
                .own_files()
                .for_each(|file| file.replace_flush_witness(old, new.clone())),
            Self::NullCo(_) | Self::NullAio(..) | Self::Nbd(_) | Self::Rbd(_) => {}
        }
    }

    /// Records that a predecessor was killed during a flush whose outcome is unknown.
    ///
    /// The next flush of a file syncs its whole file system, and fails if that reports a loss. Returns false for a
    /// block device, where no such check exists.
    pub fn doubt_last_flush(&self) -> bool {
        match self {
            Self::File(file) => file.doubt_last_flush(),
            Self::Qcow2(disk) => {
                // Each of them is told.
                let answers: Vec<bool> = disk.own_files().map(|file| file.doubt_last_flush()).collect();
                !answers.contains(&false)
            }
            Self::NullCo(_) | Self::NullAio(..) | Self::Nbd(_) | Self::Rbd(_) => true,
        }
    }

    /// Returns whether [`IoOp::Leave`](crate::io::IoOp::Leave) and [`IoOp::Inherit`](crate::io::IoOp::Inherit) do
    /// something.
    pub(crate) fn needs_leave(&self) -> bool {
        matches!(self, Self::Qcow2(_))
    }

    /// Returns whether this is a block device.
    pub fn is_device(&self) -> bool {
        matches!(self, Self::File(file) if file.is_device())
    }

    /// Returns whether this is another node of the same image, and both lock it.
    pub fn is_twin(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::File(one), Self::File(other)) => !Arc::ptr_eq(one, other) && one.is_twin(other),
            (Self::Rbd(one), Self::Rbd(other)) => !Arc::ptr_eq(one, other) && one.path() == other.path(),
            _ => false,
        }
    }

    /// Returns whether both are the same file or device, or neither has an image.
    pub fn is_same_image(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::File(one), Self::File(other)) => one.is_same_image(other),
            (Self::Nbd(one), Self::Nbd(other)) => one.path() == other.path(),
            (Self::Rbd(one), Self::Rbd(other)) => one.path() == other.path(),
            (Self::Qcow2(one), Self::Qcow2(other)) => one.is_same_image(other),
            (Self::NullCo(_) | Self::NullAio(..), Self::NullCo(_) | Self::NullAio(..)) => true,
            _ => false,
        }
    }

    /// Returns an image in a cluster with other options, without another lock. `None`: it has to be opened again.
    pub fn rbd_reopened(&self, options: RemoteOptions) -> Option<Self> {
        match self {
            Self::Rbd(disk) => Some(disk.reopened(options)?.into()),
            _ => None,
        }
    }

    /// Locks the image with the lock of another open file of the same image, which serves both from then on. Returns
    /// `None` if that lock does not suffice.
    pub fn share_lock(&self, lock: &NodeLock, mode: LockMode) -> Option<NodeLock> {
        match (self, lock) {
            (Self::File(file), NodeLock::File(lock)) => lock.share_with(file, mode).map(NodeLock::File),
            (Self::Rbd(disk), NodeLock::Rbd(lock)) => lock.share_with(disk).map(NodeLock::Rbd),
            _ => None,
        }
    }

    /// Locks the image, and waits a moment for a predecessor to release it. A disk without an image needs no lock.
    ///
    /// # Errors
    /// See [`LockError`]. No lock is kept then.
    pub fn lock(&self, mode: LockMode) -> Result<Option<NodeLock>, LockError> {
        match self {
            Self::File(file) if !file.locks() => Ok(None),
            Self::File(file) => ImageLock::acquire_soon(file, mode).map(|lock| Some(NodeLock::File(lock))),
            Self::Rbd(disk) => Ok(disk.lock(mode)?.map(NodeLock::Rbd)),
            Self::Qcow2(disk) => Ok(disk.lock(mode)?.map(NodeLock::File)),
            Self::NullCo(_) | Self::NullAio(..) | Self::Nbd(_) => Ok(None),
        }
    }

    /// Chooses the disk's engine, and checks that the kernel supports it.
    ///
    /// # Errors
    /// The engine was chosen by name, and is not available here.
    pub fn plan(&self, choice: Choice) -> Result<Plan, Error> {
        match self {
            Self::File(file) => Plan::for_file(choice, file),
            Self::NullCo(_) => Plan::for_null(choice),
            Self::NullAio(..) => Plan::for_timer(choice),
            Self::Nbd(_) => Plan::for_server(choice),
            Self::Rbd(_) => Plan::for_cluster(choice),
            Self::Qcow2(disk) => Plan::for_format(choice, disk.data()),
        }
    }

    /// Opens a channel to the disk according to `plan`, on the calling IOThread, which owns `resources`.
    ///
    /// # Errors
    /// The kernel has no resources for a ring, or the ring has no room for another file.
    pub fn open_channel(&self, resources: &Resources, plan: Plan) -> Result<Channel, Error> {
        Ok(match self {
            Self::File(file) => FileShared::new(resources, plan, Arc::clone(file))?
                .channel()
                .into(),
            Self::NullCo(null) => {
                let pool = (plan.executor == Executor::Threads).then(|| resources.pool().with_share());
                NullCoChannel::new(null, pool).into()
            }
            Self::Nbd(disk) => NbdChannel::new(resources.link(disk)?).into(),
            Self::Rbd(disk) => RbdChannel::new(RbdLink::new(resources.ctx(), disk)).into(),
            Self::Qcow2(disk) => Qcow2Channel::new(resources, plan, disk).into(),
            Self::NullAio(null, latency) => NullAioChannel::new(resources.ctx(), null, *latency).into(),
        })
    }
}

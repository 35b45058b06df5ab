//! One I/O request: the operation, its place on the disk, its memory, and its completer.

use std::fmt;
use std::io;
use std::rc::Rc;

use probe::probe_lazy;
use send_wrapper::SendWrapper;
use smallvec::SmallVec;

use super::{IoVecs, Stages};
use crate::sys::clock::monotonic_nanos;

/// Requests that are passed on. Boxed, because each of them moves on by itself and is recycled.
#[allow(clippy::vec_box, reason = "each box moves on without a copy")]
pub type Requests = Vec<Box<IoRequest>>;

/// An operation on a disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IoOp {
    /// Fills the memory from `offset`.
    #[default]
    Read,
    /// Repeats a read that failed, with zeroes in place of the data that cannot be read. Fails only if the memory is
    /// gone (EFAULT), and comes back as a `Read`.
    Salvage,
    /// Stores the memory at `offset`.
    Write {
        /// The data must be stable before the request completes (the write cache is off).
        durable: bool,
    },
    /// A `Write` whose memory was all zero when it was looked at: makes the same bytes read as zeroes, without reading the
    /// memory again.
    ZeroedWrite {
        /// The zeroes must be stable before the request completes.
        durable: bool,
        /// The space may be deallocated.
        unmap: bool,
    },
    /// Makes every write that has completed stable.
    Flush,
    /// Gives the ranges back to the file system. Their contents are undefined afterwards.
    Discard,
    /// Flushes while nothing is being written, before another process uses the disk.
    FlushAtRest,
    /// Leaves an image as clean as possible without a flush, because the process ends and nothing is being written.
    Leave,
    /// Leaves the disk as another process of this host can take it over, while nothing is being written.
    Settle,
    /// Reads again what a process has changed that has settled the disk and passed its locks.
    Inherit,
    /// Reads the size of the disk again.
    RefreshSize,
    /// Drops cached data and reads the size again, because another process may have used the disk.
    LookAnew,
    /// Makes the ranges read as zeroes.
    WriteZeroes {
        /// The zeroes must be stable before the request completes.
        durable: bool,
    },
}

impl IoOp {
    /// Returns the operation's name for messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Read | Self::Salvage => "read",
            Self::Write { .. } | Self::ZeroedWrite { .. } => "write",
            Self::Flush | Self::FlushAtRest | Self::Leave | Self::Settle => "flush",
            Self::Discard => "discard",
            Self::WriteZeroes { .. } => "write-zeroes",
            Self::RefreshSize | Self::LookAnew | Self::Inherit => "refresh-size",
        }
    }

    /// Returns whether the operation moves bytes between the disk and memory.
    pub fn is_transfer(self) -> bool {
        matches!(
            self,
            Self::Read | Self::Salvage | Self::Write { .. } | Self::ZeroedWrite { .. }
        )
    }
}

/// One range of a discard or write-zeroes request, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IoRange {
    /// First byte.
    pub offset: u64,
    /// Number of bytes.
    pub len: u64,
    /// The space may be deallocated.
    pub unmap: bool,
}

/// Receives completed requests, on the IOThread that submitted them, inside a defer scope.
pub trait Completer {
    /// Takes the request back. Its `result` is set.
    fn complete(&self, request: Box<IoRequest>);

    /// Takes back requests that have succeeded while their batch is still being submitted, and empties the list.
    ///
    /// `more`: the engine will go on with other requests of this batch before it returns to the event loop. The driver
    /// may be notified of these requests already.
    fn complete_batch(&self, done: &mut Requests, more: bool) {
        let _ = more;
        done.drain(..).for_each(|request| self.complete(request));
    }
}

impl fmt::Debug for dyn Completer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Completer")
    }
}

/// A request. Its box moves from the submitter to an engine and back, and the submitter uses it again.
#[derive(Debug)]
pub struct IoRequest {
    /// The operation.
    pub op: IoOp,
    /// First byte of a read or write.
    pub offset: u64,
    /// Memory of a read or write, filled in by the submitter. Engines transfer [`whole`](Self::whole).
    pub iov: IoVecs,
    /// Ranges of a discard or write-zeroes.
    pub ranges: SmallVec<[IoRange; 1]>,
    /// A number of the submitter's choice (a descriptor head).
    pub token: u16,
    /// The result, valid once the request has completed.
    pub result: io::Result<()>,
    /// Present while the request is traced.
    pub stages: Option<Box<Stages>>,

    pub(super) completer: Option<SendWrapper<Rc<dyn Completer>>>,
    /// Memory besides `iov`: that of the followers, or a part of another request's.
    pub(super) lists: Option<Box<Lists>>,
}

/// The lists of a request besides its own (see `lists`). Empty lists are kept for their capacity.
#[derive(Debug, Default)]
pub(super) struct Lists {
    /// The memory of all members of a group, the leader's first.
    pub(super) group: IoVecs,
    pub(super) followers: Requests,
    /// The leader's own `iov`, while there are followers.
    pub(super) leader: IoVecs,
    /// A part of another request's memory.
    pub(super) part: IoVecs,
    /// The owner of the part's memory. Declared after `part`, because fields are dropped in this order.
    pub(super) parent: Option<Parent>,
}

/// A child's reference to its parent, which stays in its slot as long as this exists (see `split`).
#[derive(Debug)]
pub(super) struct Parent {
    pub(super) splitter: SendWrapper<Rc<dyn Completer>>,
    pub(super) slot: usize,
}

impl Default for IoRequest {
    fn default() -> Self {
        Self {
            op: IoOp::default(),
            offset: 0,
            iov: IoVecs::new(),
            ranges: SmallVec::new(),
            token: 0,
            result: Ok(()),
            stages: None,
            completer: None,
            lists: None,
        }
    }
}

impl IoRequest {
    /// Creates an idle request for the caller to fill in.
    pub fn new() -> Box<Self> {
        Box::default()
    }

    /// Sets the completer. Call this on the IOThread that submits the request.
    pub fn set_completer(&mut self, completer: Rc<dyn Completer>) {
        self.completer = Some(SendWrapper::new(completer));
    }

    /// Returns the first byte of the request on the disk, or `None` for a flush and other operations without a place.
    pub fn first_byte(&self) -> Option<u64> {
        match self.op {
            IoOp::Read | IoOp::Salvage | IoOp::Write { .. } | IoOp::ZeroedWrite { .. } => Some(self.offset),
            IoOp::Discard | IoOp::WriteZeroes { .. } => self.ranges.first().map(|range| range.offset),
            IoOp::Flush
            | IoOp::FlushAtRest
            | IoOp::Leave
            | IoOp::Settle
            | IoOp::Inherit
            | IoOp::RefreshSize
            | IoOp::LookAnew => None,
        }
    }

    /// The throttle group of a request that had to wait has admitted it.
    pub(crate) fn admitted(&mut self) {
        if let Some(stages) = &mut self.stages {
            stages.admitted = monotonic_nanos();
        }
    }

    /// A worker begins to execute the request, or the kernel gets it. Any thread.
    #[inline]
    pub(crate) fn begins(&mut self) {
        probe_lazy!(vhost_user_blk, begin, std::ptr::from_ref(self));
        if let Some(stages) = &mut self.stages {
            stages.begin();
        }
    }

    /// The worker or the kernel has done the request. Any thread.
    #[inline]
    pub(crate) fn ends(&mut self) {
        probe_lazy!(vhost_user_blk, end, std::ptr::from_ref(self));
        if let Some(stages) = &mut self.stages {
            stages.end();
        }
    }

    /// Completes the request and its followers. IOThread only.
    pub fn finish(mut self: Box<Self>) {
        if let Some(completer) = self.completer.take() {
            self.disband(|request| completer.complete(request));
        }
    }
}

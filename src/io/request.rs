//! One I/O request: what to do, where, with which memory, and who waits for it.

use std::fmt;
use std::io;
use std::rc::Rc;

use send_wrapper::SendWrapper;
use smallvec::SmallVec;

use super::IoVecs;
use super::lists::Lists;

/// Requests on their way. Boxed, because each moves on by itself and is recycled.
#[allow(clippy::vec_box, reason = "each box is handed on as it is")]
pub type Requests = Vec<Box<IoRequest>>;

/// What to do with a disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IoOp {
    /// Fills the memory from `offset`.
    #[default]
    Read,
    /// Fills the memory from `offset` after a read of it failed: with zeroes where nothing can be read. Fails only if
    /// the memory is gone (EFAULT), and comes back as a `Read`.
    Salvage,
    /// Stores the memory at `offset`.
    Write {
        /// Stable before it completes (the write cache is off).
        durable: bool,
    },
    /// Makes every write that has completed stable.
    Flush,
    /// Gives the ranges back to the file system; what they read as afterwards is undefined.
    Discard,
    /// Flushes while nothing is being written, before somebody else uses the disk.
    FlushAtRest,
    /// Looks at the size of the disk again, which may have changed behind our back.
    RefreshSize,
    /// Forgets what is known of the disk: somebody else has used it.
    LookAnew,
    /// Makes the ranges read as zeroes.
    WriteZeroes {
        /// Stable before it completes.
        durable: bool,
    },
}

impl IoOp {
    /// The operation's name in messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Read | Self::Salvage => "read",
            Self::Write { .. } => "write",
            Self::Flush | Self::FlushAtRest => "flush",
            Self::Discard => "discard",
            Self::WriteZeroes { .. } => "write-zeroes",
            Self::RefreshSize | Self::LookAnew => "refresh-size",
        }
    }

    /// Returns whether the operation moves bytes between the disk and memory.
    pub fn is_transfer(self) -> bool {
        matches!(self, Self::Read | Self::Salvage | Self::Write { .. })
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

/// Gets requests back. Called on the IOThread that submitted them, inside a defer scope.
pub trait Completer {
    /// Takes the request back; `result` is set.
    fn complete(&self, request: Box<IoRequest>);

    /// Takes back requests that have succeeded while their batch is still being submitted, and leaves the list empty.
    ///
    /// `more`: the same call goes on with others of this batch, and the IOThread works for nobody else meanwhile. Whoever
    /// waits for these requests may be told already.
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

/// A request. The box moves from the submitter to an engine and back, and is recycled by the submitter.
#[derive(Debug)]
pub struct IoRequest {
    /// What to do.
    pub op: IoOp,
    /// First byte of a read or write.
    pub offset: u64,
    /// Memory of a read or write, as the submitter fills it in. Engines transfer [`whole`](Self::whole).
    pub iov: IoVecs,
    /// What a discard or write-zeroes covers.
    pub ranges: SmallVec<[IoRange; 1]>,
    /// The submitter's own mark (a descriptor head).
    pub token: u16,
    /// How it went; valid once the request is back.
    pub result: io::Result<()>,

    completer: Option<SendWrapper<Rc<dyn Completer>>>,
    /// Memory beside `iov`: of the requests that travel with this one, or a part of another request's.
    pub(super) lists: Option<Box<Lists>>,
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
            completer: None,
            lists: None,
        }
    }
}

impl IoRequest {
    /// Makes an idle request, to be filled in.
    pub fn new() -> Box<Self> {
        Box::default()
    }

    /// Sets who gets the request back. Call it on the IOThread that submits the request.
    pub fn set_completer(&mut self, completer: Rc<dyn Completer>) {
        self.completer = Some(SendWrapper::new(completer));
    }

    /// The first byte that the request is about; none for a flush.
    pub fn first_byte(&self) -> Option<u64> {
        match self.op {
            IoOp::Read | IoOp::Salvage | IoOp::Write { .. } => Some(self.offset),
            IoOp::Discard | IoOp::WriteZeroes { .. } => self.ranges.first().map(|range| range.offset),
            IoOp::Flush | IoOp::FlushAtRest | IoOp::RefreshSize | IoOp::LookAnew => None,
        }
    }

    /// Hands the request and its followers back to their submitter. IOThread only.
    pub fn finish(mut self: Box<Self>) {
        if let Some(completer) = self.completer.take() {
            self.disband(|request| completer.complete(request));
        }
    }
}

//! One I/O request: what to do, where, with which memory, and who waits for it.

use std::io;
use std::rc::Rc;
use std::sync::Arc;

use send_wrapper::SendWrapper;
use smallvec::SmallVec;

use super::merge::Followers;
use crate::iov::IoVecs;
use crate::storage::Storage;

/// What to do with the storage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IoOp {
    /// Fill the list from `offset`.
    #[default]
    Read,
    /// Fill the list from `offset` after a read of it failed: with zeroes where nothing can be read. Never fails, and
    /// comes back as a `Read`.
    Salvage,
    /// Store the list at `offset`.
    Write {
        /// Stable before it completes (the write cache is off).
        durable: bool,
    },
    /// Make every write that has completed stable.
    Flush,
    /// Give the ranges back to the file system; what they read as afterwards is undefined.
    Discard,
    /// Make the ranges read as zeroes.
    WriteZeroes {
        /// Stable before it completes.
        durable: bool,
    },
}

impl IoOp {
    /// Its name in messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Read | Self::Salvage => "read",
            Self::Write { .. } => "write",
            Self::Flush => "flush",
            Self::Discard => "discard",
            Self::WriteZeroes { .. } => "write-zeroes",
        }
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

    /// A worker that helped with a [shared batch](super::Engine::share) is back.
    fn worker_is_back(&self) {}
}

/// A request. It moves: from the device to the engine and back; its box is recycled by the device.
#[derive(Debug)]
pub struct IoRequest {
    /// What to do.
    pub op: IoOp,
    /// First byte of a read or write.
    pub offset: u64,
    /// Guest memory of a read or write. The submitter keeps it mapped until the request is back.
    pub iov: IoVecs,
    /// What a discard or write-zeroes covers.
    pub ranges: SmallVec<[IoRange; 1]>,
    /// The submitter's own mark (a descriptor head).
    pub token: u16,
    /// How it went; valid once the request is back.
    pub result: io::Result<()>,

    storage: Arc<Storage>,
    completer: Option<SendWrapper<Rc<dyn Completer>>>,
    /// Present once it has been merged with others.
    pub(super) followers: Option<Box<Followers>>,
}

impl std::fmt::Debug for dyn Completer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Completer")
    }
}

impl IoRequest {
    /// An idle request for `storage`, to be filled in.
    pub fn new(storage: Arc<Storage>) -> Box<Self> {
        Box::new(Self {
            op: IoOp::default(),
            offset: 0,
            iov: IoVecs::new(),
            ranges: SmallVec::new(),
            token: 0,
            result: Ok(()),
            storage,
            completer: None,
            followers: None,
        })
    }

    /// Says who gets the request back. To be called on the IOThread that submits it.
    pub fn set_completer(&mut self, completer: Rc<dyn Completer>) {
        self.completer = Some(SendWrapper::new(completer));
    }

    /// The first byte that it is about; none for a flush.
    pub fn first_byte(&self) -> Option<u64> {
        match self.op {
            IoOp::Read | IoOp::Salvage | IoOp::Write { .. } => Some(self.offset),
            IoOp::Discard | IoOp::WriteZeroes { .. } => self.ranges.first().map(|range| range.offset),
            IoOp::Flush => None,
        }
    }

    /// The storage it is for.
    pub fn storage(&self) -> &Storage {
        &self.storage
    }

    /// Executes the request if that takes no waiting; returns whether it did. Any thread.
    pub fn try_execute(&mut self) -> bool {
        let storage = &*self.storage;
        let done = match self.op {
            IoOp::Read => storage.try_readv(self.whole(), self.offset),
            IoOp::Write { durable: false } => storage.try_writev(self.whole(), self.offset),
            IoOp::Write { durable: true }
            | IoOp::Flush
            | IoOp::Discard
            | IoOp::WriteZeroes { .. }
            | IoOp::Salvage => matches!(storage, Storage::Null(_)),
        };
        if done {
            self.set_results(|| Ok(()));
        }
        done
    }

    /// Executes the request with blocking calls. Any thread.
    pub fn execute(&mut self) {
        if self.is_merged() && self.execute_inner(self.whole()).is_ok() {
            return self.set_results(|| Ok(()));
        }
        for follower in self.followers() {
            follower.execute();
        }
        self.result = self.execute_inner(&self.iov);
        if self.op == IoOp::Salvage {
            self.op = IoOp::Read;
        }
    }

    /// The same result for it and its followers.
    pub(super) fn set_results(&mut self, result: impl Fn() -> io::Result<()>) {
        for follower in self.followers() {
            follower.result = result();
        }
        self.result = result();
    }

    fn execute_inner(&self, iov: &IoVecs) -> io::Result<()> {
        let storage = &*self.storage;
        match self.op {
            IoOp::Read => storage.readv(iov, self.offset),
            IoOp::Salvage => {
                storage.salvage(iov, self.offset, |_, _| true);
                Ok(())
            }
            IoOp::Write { durable: false } => storage.writev(iov, self.offset),
            IoOp::Write { durable: true } => storage.writev_durable(iov, self.offset),
            IoOp::Flush => storage.flush(),
            IoOp::Discard => self
                .ranges
                .iter()
                .try_for_each(|r| storage.discard(r.offset, r.len)),
            IoOp::WriteZeroes { durable } => {
                self.ranges
                    .iter()
                    .try_for_each(|r| storage.write_zeroes(r.offset, r.len, r.unmap))?;
                if durable { storage.flush() } else { Ok(()) }
            }
        }
    }

    /// Hands the request and its followers back to their submitter. IOThread only.
    pub fn finish(mut self: Box<Self>) {
        if let Some(completer) = self.completer.take() {
            self.disband(|request| completer.complete(request));
        }
    }
}

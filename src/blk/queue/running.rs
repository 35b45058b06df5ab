//! A ring between its start and its stop: chains in, used elements out.

use std::fmt;
use std::rc::Rc;
use std::sync::Arc;

use super::{RingSetup, Stop};
use crate::blk::request::{self, Action, Rules, Status};
use crate::blk::state::DeviceState;
use crate::blk::stats::QueueStats;
use crate::io::IoVecs;
use crate::io::{IoOp, IoRequest, Requests};
use crate::memory::{DirtyLog, GuestMemory, MemoryView, RingLog};
use crate::virtqueue::{Chain, ChainError, RingAddresses, RingError, SplitRing};

/// Requests taken in one visit, and about how many bytes they may move; then the IOThread's other queues have their turn.
const BUDGET: usize = 64;
const BUDGET_BYTES: usize = 2 << 20;

/// What one visit found.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Collected {
    /// Some requests were answered at once.
    pub(super) answered: bool,
    /// The budget was used up.
    pub(super) more: bool,
    /// The next chain uses memory that the frontend has taken away.
    pub(super) missing: Option<Missing>,
}

/// The memory that a paused ring waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Missing {
    /// Memory of the ring itself.
    Ring,
    /// Memory of the chain that is next, at this guest address.
    Chain(u64),
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ring => f.write_str("memory of the ring"),
            Self::Chain(addr) => write!(f, "memory of a request at {addr:#x}"),
        }
    }
}

/// Why a queue had to stop.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    /// The rings are impossible.
    #[error(transparent)]
    Ring(#[from] RingError),
    /// A chain is impossible.
    #[error("descriptor chain {head}: {source}")]
    Chain {
        /// Its first descriptor.
        head: u16,
        /// What is wrong with it.
        source: ChainError,
    },
    /// Shared memory went away.
    #[error("{0} is gone: its file was cut short, or the memory has failed")]
    Lost(&'static str),
    /// There is no byte to put a status into.
    #[error("descriptor chain {0} has no writable byte for the status")]
    NoStatus(u16),
}

impl QueueError {
    /// The memory to wait for, if the error is over when the frontend gives it back.
    fn missing(&self) -> Option<Missing> {
        match self {
            Self::Chain {
                source: ChainError::Removed(addr),
                ..
            } => Some(Missing::Chain(*addr)),
            _ => None,
        }
    }
}

/// A ring that is set up, and the chains that the device has.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) ring: SplitRing,
    addresses: RingAddresses,
    memory: Rc<MemoryView>,
    /// Set while the VM migrates.
    log: Option<Arc<DirtyLog>>,
    /// One per descriptor head.
    slots: Box<[Option<Slot>]>,
    /// Chains that stay unanswered when the ring stops.
    left: Vec<u16>,
}

/// A chain that the device has.
#[derive(Debug)]
struct Slot {
    status: *mut u8,
    /// Bytes that a successful request writes, without the status byte.
    written: u32,
    /// Payload, for the statistics.
    bytes: u64,
    /// Keeps the guest memory of the request mapped.
    memory: Rc<MemoryView>,
}

impl Slot {
    /// Logs what answering the request has written: the status, and the data that went into `iov`.
    fn log(&self, log: &DirtyLog, iov: Option<&IoVecs>) {
        let mark = |host: *const u8, len: usize| {
            if let Some(guest) = self.memory.guest_address(host) {
                log.mark(guest, len as u64);
            }
        };
        mark(self.status, 1);
        for range in iov.into_iter().flat_map(IoVecs::as_slice) {
            mark(range.iov_base.cast(), range.iov_len);
        }
    }
}

impl Running {
    /// Returns also whether the ring goes on where a predecessor has stopped, and how many requests are lost for good.
    pub(super) fn new(setup: RingSetup) -> Result<(Self, bool, u16), RingError> {
        let mut ring = SplitRing::new(
            &setup.memory,
            setup.addresses,
            setup.size,
            setup.base,
            setup.features,
        )?;
        let resumed = match setup.inflight {
            Some(area) => ring.track(area)?,
            None => false,
        };
        // The in-flight region knows better.
        let lost = if resumed { 0 } else { ring.adopt() };
        let mut running = Self {
            addresses: setup.addresses,
            memory: MemoryView::new(setup.memory),
            slots: std::iter::repeat_with(|| None).take(ring.size().into()).collect(),
            ring,
            log: None,
            left: Vec::new(),
        };
        running.set_log(setup.log);
        Ok((running, resumed, lost))
    }

    pub(super) fn remap(&mut self, memory: &Arc<GuestMemory>) -> Result<(), RingError> {
        self.ring.remap(memory, self.addresses)?;
        self.memory = MemoryView::new(Arc::clone(memory));
        Ok(())
    }

    pub(super) fn set_log(&mut self, log: Option<RingLog>) {
        self.ring.set_log(log.as_ref());
        self.log = log.map(|ring| ring.log);
    }

    /// What the ring cannot do without and is gone, as far as an access has noticed.
    #[cold]
    pub(super) fn lost(&self) -> Option<&'static str> {
        if self.ring.is_lost() {
            Some("memory of the ring")
        } else if self.ring.inflight_is_lost() {
            Some("the in-flight region")
        } else if self.log.as_ref().is_some_and(|log| log.is_lost()) {
            Some("the dirty log")
        } else {
            None
        }
    }

    /// Forgets the guest memory that is gone: requests fail that use it. Returns whether there is more of it now.
    #[cold]
    pub(super) fn forget_lost(&mut self) -> bool {
        let view = self.memory.without_lost();
        let more = view.is_some();
        if let Some(view) = view {
            self.memory = view;
        }
        more
    }

    /// Takes requests until the ring is empty or the budget is used up. What was taken before an error is in `batch`.
    pub(super) fn take(
        &mut self,
        rules: &Rules<'_>,
        stats: &QueueStats,
        polled: bool,
        free: &mut Requests,
        batch: &mut Requests,
    ) -> Result<Collected, QueueError> {
        let (mut answered, mut bytes) = (false, 0);
        let left_behind = self.ring.left_in_flight();
        for n in 0..BUDGET {
            let Some(head) = self.next_head(polled, n == 0)? else {
                return Ok(Collected {
                    answered,
                    ..Collected::default()
                });
            };
            let mut request = free.pop().unwrap_or_default();
            match self.begin(head, &mut request, rules, stats) {
                Ok(true) => {
                    bytes += request.iov.len();
                    batch.push(request);
                    if bytes >= BUDGET_BYTES {
                        break;
                    }
                }
                Ok(false) => {
                    free.push(request);
                    answered = true;
                }
                Err(error) => {
                    free.push(request);
                    let missing = Some(error.missing().ok_or(error)?);
                    self.ring.put_back(head, n < left_behind);
                    return Ok(Collected {
                        answered,
                        more: false,
                        missing,
                    });
                }
            }
        }
        Ok(Collected {
            answered,
            more: true,
            missing: None,
        })
    }

    /// True if this memory is still away.
    pub(super) fn misses(&self, missing: Missing) -> bool {
        match missing {
            Missing::Ring => false,
            Missing::Chain(addr) => self.memory.was_removed(addr),
        }
    }

    /// The next chain, the `first` of a visit or another one. When there is none, the driver is asked for kicks, unless
    /// the ring is polled.
    fn next_head(&mut self, polled: bool, first: bool) -> Result<Option<u16>, RingError> {
        // While it is polled a driver may still be adding. It gets its first answers while it does, and then need not
        // fall asleep before it looks for them.
        if polled && !first && !self.ring.has_seen_work() {
            return Ok(None);
        }
        if let Some(head) = self.ring.pop()? {
            return Ok(Some(head));
        }
        if polled {
            return Ok(None);
        }
        self.ring.enable_kicks();
        self.ring.pop()
    }

    /// [`Running::begin`] once more, for a chain that was taken and not handed to the engine.
    pub(super) fn begin_again(
        &mut self,
        request: &mut IoRequest,
        rules: &Rules<'_>,
        stats: &QueueStats,
    ) -> Result<bool, QueueError> {
        let head = request.token;
        self.slots[usize::from(head)] = None;
        self.begin(head, request, rules, stats)
    }

    /// Turns a chain into a request; returns whether it is for the engine (or was answered at once).
    fn begin(
        &mut self,
        head: u16,
        request: &mut IoRequest,
        rules: &Rules<'_>,
        stats: &QueueStats,
    ) -> Result<bool, QueueError> {
        if self.slots[usize::from(head)].is_some() {
            return Err(RingError::InFlight(head).into());
        }
        request.iov.clear();
        let chain = Chain::walk(&self.ring, &self.memory, head, &mut request.iov)
            .map_err(|source| QueueError::Chain { head, source })?;
        let status = if chain.last_writable_mapped {
            request.iov.pop_last_byte()
        } else {
            None
        };
        let status = status.ok_or(QueueError::NoStatus(head))?;
        let mut action = request::parse(&chain, request, rules);
        if let Action::Answer(Status::Ok, _) = action
            && request.iov.has_lost()
        {
            // What was written there nobody can read.
            action = Action::Answer(Status::IoErr, 0);
        }
        let (written, bytes, submit) = match action {
            Action::Submit { written, bytes } => (written, bytes, true),
            Action::Answer(..) => (0, 0, false),
        };
        let slot = Slot {
            status,
            written,
            bytes,
            memory: Rc::clone(&self.memory),
        };
        if let Action::Answer(answer, written) = action {
            stats.others.add(1);
            let data = Some(&request.iov).filter(|_| written > 0);
            self.answer(head, &slot, answer, (written, data), stats);
        } else {
            self.slots[usize::from(head)] = Some(slot);
            request.token = head;
        }
        Ok(submit)
    }

    /// Whether the chain of this head is in flight.
    pub(super) fn has(&self, head: u16) -> bool {
        self.slots.get(usize::from(head)).is_some_and(Option::is_some)
    }

    /// Whether the frontend keeps track of the chains in flight.
    pub(super) fn is_tracked(&self) -> bool {
        self.ring.is_tracked()
    }

    /// Leaves a chain unanswered, for whoever serves the ring next.
    pub(super) fn leave(&mut self, head: u16) {
        if self
            .slots
            .get_mut(usize::from(head))
            .and_then(Option::take)
            .is_some()
        {
            self.left.push(head);
        }
    }

    /// Tells whoever serves the ring next what is left.
    ///
    /// With a region that goes along, the index stays: it says what was taken, and the region what is in flight of that.
    pub(super) fn leave_to_successor(&mut self, stop: Stop) {
        match stop {
            Stop::HandOver => self.ring.leave(&self.left, true),
            Stop::Suspend => self.ring.leave(&self.left, !self.is_tracked()),
            Stop::End => {}
        }
    }

    /// Answers a request that came back from the engine.
    pub(super) fn complete(&mut self, stats: &QueueStats, request: &IoRequest) {
        let head = request.token;
        let Some(slot) = self.slots.get_mut(usize::from(head)).and_then(Option::take) else {
            return;
        };
        let status = match &request.result {
            Ok(()) => Status::Ok,
            Err(error) if error.kind() == std::io::ErrorKind::Unsupported => Status::Unsupp,
            Err(_) => Status::IoErr,
        };
        count(
            stats,
            request.op,
            if status == Status::Ok { slot.bytes } else { 0 },
        );
        let written = if status == Status::Ok { slot.written } else { 0 };
        // A read that failed may have written as well.
        let data = Some(&request.iov).filter(|_| request.op == IoOp::Read);
        self.answer(head, &slot, status, (written, data), stats);
    }

    /// Writes the status and the used element. `written` is the data in the chain: how much, and where.
    fn answer(
        &mut self,
        head: u16,
        slot: &Slot,
        status: Status,
        written: (u32, Option<&IoVecs>),
        stats: &QueueStats,
    ) {
        if status != Status::Ok {
            stats.errors.add(1);
        }
        // SAFETY: the byte lies in guest memory that the slot keeps mapped; volatile because the guest shares it.
        unsafe { slot.status.write_volatile(status.byte()) };
        if let Some(log) = &self.log {
            slot.log(log, written.1);
        }
        self.ring.push_used(head, written.0 + 1);
    }
}

fn count(stats: &QueueStats, op: IoOp, bytes: u64) {
    match op {
        IoOp::Read | IoOp::Salvage => {
            stats.reads.add(1);
            stats.read_bytes.add(bytes);
        }
        IoOp::Write { .. } => {
            stats.writes.add(1);
            stats.written_bytes.add(bytes);
        }
        IoOp::Flush => stats.flushes.add(1),
        IoOp::Discard | IoOp::WriteZeroes { .. } | IoOp::FlushAtRest | IoOp::RefreshSize | IoOp::LookAnew => {
            stats.others.add(1)
        }
    }
}

impl DeviceState {
    /// What requests are checked against right now.
    pub(super) fn rules(&self, write_through: bool) -> Rules<'_> {
        let limits = &self.limits;
        Rules {
            capacity: self.capacity(),
            block_size: limits.logical_block_size,
            read_only: limits.read_only,
            discard: limits.discard_granularity > 0,
            write_zeroes: limits.write_zeroes,
            write_through,
            serial: &self.serial,
        }
    }
}

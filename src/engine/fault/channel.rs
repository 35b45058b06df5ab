//! A channel that injects faults (`--inject`) into the requests for another channel.
//!
//! A request that a rule strikes waits for its delay. Then it fails or continues, whole or in pieces. All other
//! requests are passed on at once. Without `--inject`, this channel does not exist.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Instant;

use super::Faults;
use super::effect::{Effect, Fault};
use crate::aio::{AioContext, Timer};
use crate::defer::DeferScope;
use crate::io::{Completer, IoOp, IoRequest, Requests, Splitter};

/// Size of the pieces in which a salvage reads, in bytes, unless the disk has larger blocks.
const SALVAGE_PIECE: usize = 4096;

/// The channel that executes requests.
pub(in crate::engine) trait Submit {
    /// See [`Channel::submit`](crate::engine::Channel::submit).
    fn submit(&self, batch: &mut Requests, completer: &Rc<dyn Completer>) -> usize;
}

/// A channel with faults. IOThread only.
#[derive(Debug)]
pub(in crate::engine) struct FaultyChannel<C> {
    ctx: AioContext,
    inner: Rc<Inner<C>>,
}

struct Inner<C> {
    channel: C,
    faults: Arc<Faults>,
    /// Logical block size in bytes.
    block: usize,
    /// First byte of the disk in the node below. Rules count sectors of the disk.
    start: u64,
    splitter: Rc<Splitter>,
    /// Requests that were struck, by the time at which they continue. The number preserves their order.
    struck: RefCell<BTreeMap<(Instant, u64), Struck>>,
    next_number: Cell<u64>,
    timer: Timer,
}

struct Struck {
    request: Box<IoRequest>,
    completer: Rc<dyn Completer>,
    fault: Option<Fault>,
}

impl<C: Submit + 'static> FaultyChannel<C> {
    pub(in crate::engine) fn new(
        ctx: &AioContext,
        channel: C,
        faults: Arc<Faults>,
        (block, start): (u32, u64),
    ) -> Self {
        let inner = Rc::new_cyclic(|me: &Weak<Inner<C>>| {
            let me = Weak::clone(me);
            Inner {
                channel,
                faults,
                block: block as usize,
                start,
                splitter: Splitter::new(),
                struck: RefCell::default(),
                next_number: Cell::new(0),
                timer: ctx.timer(move || {
                    if let Some(inner) = me.upgrade() {
                        inner.go_on();
                    }
                }),
            }
        });
        Self {
            ctx: ctx.clone(),
            inner,
        }
    }

    /// Returns the channel without faults.
    pub(in crate::engine) fn inner(&self) -> &C {
        &self.inner.channel
    }

    /// Creates another channel with the same faults.
    pub(in crate::engine) fn with(&self, channel: C) -> Self {
        let block = u32::try_from(self.inner.block).expect("created from a u32");
        Self::new(
            &self.ctx,
            channel,
            Arc::clone(&self.inner.faults),
            (block, self.inner.start),
        )
    }

    /// Removes from `batch` the requests that a rule strikes, and passes the others on.
    pub(in crate::engine) fn submit(&self, batch: &mut Requests, completer: &Rc<dyn Completer>) -> usize {
        let inner = &*self.inner;
        for request in std::mem::take(batch) {
            let effect = match request.op {
                IoOp::Salvage => Some(Effect::default()),
                op => inner.faults.strike(op, inner.place(&request)),
            };
            match effect {
                None => batch.push(request),
                Some(Effect {
                    fault: Some(Fault::Panic),
                    ..
                }) => panic!("injected on purpose"),
                Some(Effect { delay, fault }) => {
                    let completer = Rc::clone(completer);
                    let struck = Struck {
                        request,
                        completer,
                        fault,
                    };
                    inner.hold(Instant::now() + delay, struck);
                }
            }
        }
        inner.channel.submit(batch, completer)
    }
}

impl<C: Submit> Inner<C> {
    fn hold(&self, due: Instant, struck: Struck) {
        let number = self.next_number.replace(self.next_number.get() + 1);
        self.struck.borrow_mut().insert((due, number), struck);
        self.arm();
    }

    /// Sets the timer for the next request that continues.
    fn arm(&self) {
        if let Some(((due, _), _)) = self.struck.borrow().first_key_value() {
            self.timer.arm(*due);
        }
    }

    /// Continues the requests whose delay is over.
    fn go_on(&self) {
        let _scope = DeferScope::enter();
        let now = Instant::now();
        while let Some(struck) = self.take_due(now) {
            self.execute(struck);
        }
        self.arm();
    }

    fn take_due(&self, now: Instant) -> Option<Struck> {
        let mut struck = self.struck.borrow_mut();
        let first = struck.first_entry().filter(|first| first.key().0 <= now)?;
        Some(first.remove())
    }

    fn execute(&self, struck: Struck) {
        let Struck {
            mut request,
            completer,
            fault,
        } = struck;
        match fault {
            None if request.op == IoOp::Salvage => self.salvage(request, completer),
            None => {
                self.channel.submit(&mut vec![request], &completer);
            }
            Some(Fault::Error(errno)) => {
                request.result = Err(io::Error::from_raw_os_error(errno));
                completer.complete(request);
            }
            Some(Fault::Torn(errno)) => {
                let half = self.half(&request);
                request.set_completer(completer);
                let split = self.splitter.split(request);
                split.fail(io::Error::from_raw_os_error(errno));
                self.send(vec![split.child(0, half)]);
            }
            Some(Fault::Short) => {
                let (len, half) = (request.alone().len(), self.half(&request));
                request.set_completer(completer);
                let split = self.splitter.split(request);
                let piece = |at| split.child(at, half.min(len - at));
                self.send((0..len).step_by(half).map(piece).collect());
            }
            // See `submit`.
            Some(Fault::Panic) => panic!("injected on purpose"),
        }
    }

    /// Reads pieces that no rule strikes, as far as they can be read. The rest becomes zeroes.
    fn salvage(&self, mut request: Box<IoRequest>, completer: Rc<dyn Completer>) {
        // Pieces start at multiples of their size, so that none covers parts of two blocks of the disk.
        let size = SALVAGE_PIECE.max(self.block);
        let (offset, len) = (request.offset, request.alone().len());
        request.op = IoOp::Read;
        request.set_completer(completer);
        let split = self.splitter.split(request);
        let (mut at, mut spared) = (0, Requests::new());
        while at < len {
            let place = offset + at as u64;
            let before = usize::try_from(place % size as u64).expect("below the size of a piece");
            let piece = (size - before).min(len - at);
            let mut child = split.child(at, piece);
            let on_disk = place.saturating_sub(self.start);
            let struck = self.faults.strike(IoOp::Read, Some((on_disk, piece as u64)));
            if struck.is_some_and(|effect| effect.fault.is_some()) {
                child.alone().write_zeroes();
                child.finish();
            } else {
                child.op = IoOp::Salvage;
                spared.push(child);
            }
            at += piece;
        }
        self.send(spared);
    }

    /// Returns the first byte on the disk and the length of the request's range.
    fn place(&self, request: &IoRequest) -> Option<(u64, u64)> {
        let len = match request.op {
            IoOp::Discard | IoOp::WriteZeroes { .. } => request.ranges.iter().map(|range| range.len).sum(),
            _ => request.alone().len() as u64,
        };
        Some((request.first_byte()?.saturating_sub(self.start), len))
    }

    fn send(&self, mut children: Requests) {
        let completer = Rc::clone(&self.splitter) as Rc<dyn Completer>;
        self.channel.submit(&mut children, &completer);
    }

    /// Returns half of the request's length in whole blocks, but at least one block.
    fn half(&self, request: &IoRequest) -> usize {
        let len = request.alone().len();
        (len / 2 / self.block * self.block)
            .max(self.block)
            .min(len.max(1))
    }
}

impl<C: fmt::Debug> fmt::Debug for Inner<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FaultyChannel")
            .field("channel", &self.channel)
            .field("struck", &self.struck.borrow().len())
            .finish_non_exhaustive()
    }
}

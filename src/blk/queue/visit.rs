//! A visit: takes the chains that the driver has made available, turns them into requests, and hands these to the
//! engine.
//!
//! This is the request path: no lock, and no allocation once the queue has warmed up.

use std::rc::Rc;

use probe::probe_lazy;

use super::early_notification::EarlyNotification;
use super::latencies::Nanos;
use super::ownership::Slot;
use super::ring::{Missing, QueueError, Ring};
use super::{BlkQueue, State, slow};
use crate::blk::request::{self, Action, Rules, Status};
use crate::blk::state::DeviceState;
use crate::blk::stats::QueueStats;
use crate::defer::DeferScope;
use crate::engine::Channel;
use crate::io::{IoRequest, Requests};
use crate::virtqueue::{Chain, RingError};

/// Requests taken in one visit, and about how many bytes they may move; then the IOThread's other queues have their
/// turn.
const BUDGET: usize = 64;
const BUDGET_BYTES: usize = 1 << 20;

/// The time that a request takes, in bytes that could be copied meanwhile.
const WEIGHT: usize = 4096;

/// The outcome of taking chains from a ring.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Collected {
    /// Some requests were answered at once.
    pub(super) answered: bool,
    /// The budget was used up.
    pub(super) more: bool,
    /// Number of bytes in the requests for the engine.
    pub(super) bytes: usize,
    /// The next chain uses memory that the frontend has removed.
    pub(super) missing: Option<Missing>,
}

impl BlkQueue {
    /// Takes what the driver made available, within the budget of a visit, and hands it to the engine.
    ///
    /// Returns whether there was anything.
    pub(super) fn process(&self) -> bool {
        let scope = DeferScope::enter();
        let mut batch = self.batch.take();
        let collected = self.collect(&mut batch);
        let progress = !batch.is_empty() || collected.answered;
        if !batch.is_empty() {
            scope.weigh(batch.len() * WEIGHT + collected.bytes);
            self.execute(&mut batch, collected.more);
        }
        self.batch.replace(batch);
        if collected.answered {
            self.publication.defer();
        }
        if collected.more {
            self.again.schedule();
        }
        progress
    }

    fn collect(&self, batch: &mut Requests) -> Collected {
        let mut state = self.state.borrow_mut();
        let mut collected = match state.collect(&self.device, &self.channel.borrow(), batch) {
            Some(collected) => collected,
            None => return Collected::default(),
        };
        // After guest memory was read for the last time, and before anything is done about it: lost memory reads as
        // zeroes.
        if state.may_have_lost() {
            collected = self.take_again(&mut state, batch, collected);
        }
        let taken = state.clock.last();
        if self.device.trace.is_on(taken) {
            slow::begin(batch, taken);
        }
        let start = state.view.start;
        if let Some(timeouts) = &mut state.timeouts {
            timeouts.begin(batch, start);
        }
        state.count_in_flight();
        match collected {
            Ok(Collected { missing: None, .. }) => {}
            Ok(Collected {
                missing: Some(missing),
                ..
            }) => self.pause(&mut state, missing),
            Err(ref error) => self.fail(&mut state, error),
        }
        // Answers from before an error still have to be published.
        collected.unwrap_or(Collected {
            answered: true,
            ..Collected::default()
        })
    }

    /// Hands the batch to the engine. There may be `more` in the ring.
    fn execute(&self, batch: &mut Requests, more: bool) {
        self.early.set(EarlyNotification::begin(batch.len(), more));
        probe_lazy!(
            vhost_user_blk,
            submit,
            std::ptr::from_ref(&*self.state.borrow().stats),
            batch.len()
        );
        let merged = self.channel.borrow().submit(batch, &self.completer());
        if merged > 0 {
            self.state.borrow().stats.merged.add(merged as u64);
        }
    }
}

impl State {
    /// Takes chains until the ring is empty or the budget of a visit is used up. Returns `None` if the ring is not
    /// active.
    fn collect(
        &mut self,
        device: &DeviceState,
        channel: &Channel,
        batch: &mut Requests,
    ) -> Option<Result<Collected, QueueError>> {
        let rules = device.rules(&self.view, self.write_through, self.inactive);
        let (stats, free) = (&*self.stats, &mut self.free);
        if !self.enabled || self.quiesced {
            return None;
        }
        let ring = self.phase.running_ring()?;
        Some(ring.take((&rules, self.clock.last(), channel), stats, free, batch))
    }
}

impl Ring {
    /// Takes requests until the ring is empty or the budget is used up. What was taken before an error is in `batch`.
    /// The requests go to `channel`.
    fn take(
        &mut self,
        (rules, now, channel): (&Rules<'_>, Nanos, &Channel),
        stats: &QueueStats,
        free: &mut Requests,
        batch: &mut Requests,
    ) -> Result<Collected, QueueError> {
        let mut collected = Collected::default();
        let left_behind = self.split.left_in_flight();
        for n in 0..BUDGET {
            let Some(head) = self.next_head(n == 0, channel)? else {
                return Ok(collected);
            };
            let mut request = free.pop().unwrap_or_default();
            match self.begin(head, now, &mut request, rules, stats) {
                Ok(true) => {
                    collected.bytes += request.iov.len();
                    batch.push(request);
                    if collected.bytes >= BUDGET_BYTES {
                        break;
                    }
                }
                Ok(false) => {
                    free.push(request);
                    collected.answered = true;
                }
                Err(error) => {
                    request.iov.clear();
                    free.push(request);
                    collected.missing = Some(error.missing().ok_or(error)?);
                    self.split.put_back(head, n < left_behind);
                    return Ok(collected);
                }
            }
        }
        collected.more = true;
        Ok(collected)
    }

    /// Returns the next chain. `first`: it is the first one of a visit, whose requests go to `channel`. If there is none,
    /// the driver is asked for kicks, unless the ring is polled.
    fn next_head(&mut self, first: bool, channel: &Channel) -> Result<Option<u16>, RingError> {
        // While the ring is polled, the driver may still be adding requests. It gets its first answers meanwhile, and
        // then need not fall asleep before it looks for them. But a batch for two threads should be long.
        if self.polled && !first && !self.split.has_seen_work() && !channel.shares() {
            return Ok(None);
        }
        if let Some(head) = self.split.pop()? {
            return Ok(Some(head));
        }
        if self.polled {
            return Ok(None);
        }
        self.split.enable_kicks();
        self.split.pop()
    }

    /// Turns a chain into a request. Returns true if that is for the engine, and false if it was answered at once; then
    /// its lists are empty again.
    pub(super) fn begin(
        &mut self,
        head: u16,
        taken: Nanos,
        request: &mut IoRequest,
        rules: &Rules<'_>,
        stats: &QueueStats,
    ) -> Result<bool, QueueError> {
        if self.owned.has(head) {
            return Err(RingError::InFlight(head).into());
        }
        let chain = Chain::walk(&self.split, &self.memory, head, &mut request.iov)
            .map_err(|source| QueueError::Chain { head, source })?;
        let status = match chain.last_writable_mapped {
            true => request.iov.pop_last_byte(),
            false => None,
        };
        let status = status.ok_or(QueueError::NoStatus(head))?;
        let mut slot = Slot {
            status,
            written: 0,
            bytes: 0,
            taken,
            memory: Rc::clone(&self.memory),
        };
        match request::parse(&chain, request, rules) {
            Action::Submit { written, bytes } => {
                (slot.written, slot.bytes) = (written, bytes);
                self.owned.take(head, slot);
                request.token = head;
                probe_lazy!(
                    vhost_user_blk,
                    take,
                    std::ptr::from_ref(stats),
                    head,
                    std::ptr::from_ref(request),
                    request.offset,
                    bytes
                );
                Ok(true)
            }
            Action::Answer(status, written) => {
                self.answer_at_once(head, &slot, status, written, request, stats);
                Ok(false)
            }
            Action::Invalid(operation) => {
                stats.invalid(operation);
                self.answer_at_once(head, &slot, Status::IoErr, 0, request, stats);
                Ok(false)
            }
        }
    }

    /// Answers a request that needs no engine. `written` bytes of data are in its memory.
    #[cold]
    fn answer_at_once(
        &mut self,
        head: u16,
        slot: &Slot,
        status: Status,
        written: u32,
        request: &mut IoRequest,
        stats: &QueueStats,
    ) {
        // Nobody can read what was written into lost memory.
        let (status, written) = match status {
            Status::Ok if request.iov.has_lost() => (Status::IoErr, 0),
            _ => (status, written),
        };
        stats.others.add(1);
        let data = Some(&request.iov).filter(|_| written > 0);
        self.answer(head, slot, status, (written, data), stats);
        request.iov.clear();
    }
}

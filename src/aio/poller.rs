//! Adaptive polling: checks memory for a while, which may avoid the cost of a sleep and a wakeup.

use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};
use std::time::{Duration, Instant};
use std::{fmt, mem};

use super::adaptive::Wait;
use crate::defer::DeferScope;

/// A poller that finds nothing for this long is no longer polled, until it is [woken](PollerHandle::wake). So an idle disk
/// costs the other disks nothing. The actual time may be up to twice as long.
///
/// QEMU waits for seven seconds. But polling only helps while other events come every few microseconds, and until then
/// each wait of a busy disk costs two writes to every idle one's ring.
const IDLE_TIME: Duration = Duration::from_millis(50);
/// Where the context polls for very long, the time is at least this many of its longest windows.
const IDLE_WINDOWS: u32 = 8;

/// A source of work that can be checked without a system call: a virtqueue's ring, a completion queue.
///
/// All methods are called on the context's thread. If `poll` runs the loop, that loop does not call it again.
pub trait Poller {
    /// Looks for work and does a bounded amount of it. Returns whether there was any.
    fn poll(&self) -> bool;

    /// Busy polling starts: the peer need not notify until [`poll_end`](Self::poll_end).
    fn poll_begin(&self) {}

    /// Asks the peer to notify again, then looks for work once more; the context is about to block. If there is work,
    /// returns true, and the context calls [`poll`](Self::poll) instead of blocking.
    fn poll_end(&self) -> bool {
        false
    }

    /// Returns whether a [`RemoteWork`] of the poller waits. Then the context does not poll it before it blocks.
    fn waits_for_others(&self) -> bool {
        false
    }
}

/// Counts the parts of a context that wait for work in progress to finish. Clones share the count.
///
/// How long that takes says nothing about when new work arrives, so the two kinds of waits have separate polling windows.
#[derive(Clone, Debug, Default)]
pub struct InProgress(Rc<Cell<usize>>);

impl InProgress {
    /// A part has work in progress from now on.
    #[inline]
    pub fn begin(&self) {
        self.0.set(self.0.get() + 1);
    }

    /// A part has none left.
    #[inline]
    pub fn end(&self) {
        self.0.set(self.0.get() - 1);
    }

    /// Returns whether any part has work in progress.
    #[must_use]
    pub fn is_any(&self) -> bool {
        self.0.get() > 0
    }
}

/// A part of a context that waits at times for another process or machine. The context's thread only.
///
/// Busy polling would not see the answer, and may take the CPU from the process that has to give it. So meanwhile a
/// context does not poll the pollers of this part, and polls others only as long as they find work.
#[derive(Debug)]
pub struct RemoteWork {
    waiting: InProgress,
    waits: Cell<bool>,
}

impl RemoteWork {
    pub(super) fn new(waiting: &InProgress) -> Self {
        Self {
            waiting: waiting.clone(),
            waits: Cell::new(false),
        }
    }

    /// Notes whether the part waits.
    pub fn set(&self, waits: bool) {
        match (self.waits.replace(waits), waits) {
            (false, true) => self.waiting.begin(),
            (true, false) => self.waiting.end(),
            _ => {}
        }
    }

    /// Returns whether the part waits.
    #[must_use]
    pub fn waits(&self) -> bool {
        self.waits.get()
    }
}

impl Drop for RemoteWork {
    fn drop(&mut self) {
        self.set(false);
    }
}

/// The pollers of one context. Used only by its thread.
#[derive(Default)]
pub(super) struct Pollers {
    /// Replaced as a whole, so that pollers can be added and removed during a walk of the list.
    entries: RefCell<Rc<Vec<Rc<Entry>>>>,
    /// Pollers that found nothing for some time and are not polled.
    idle: RefCell<Vec<Rc<Entry>>>,
    /// `poll_begin` was called on some entry, and `poll_end` has not followed.
    begun: Cell<bool>,
    /// When `sweep` last looked for idle pollers.
    swept: Cell<Option<Instant>>,
    in_progress: InProgress,
    /// Counts each [`RemoteWork`] that waits.
    remote: InProgress,
}

struct Entry {
    poller: Rc<dyn Poller>,
    removed: Cell<bool>,
    running: Cell<bool>,
    /// `poll_begin` was called, and `poll_end` has not followed.
    begun: Cell<bool>,
    activity: Rc<Activity>,
}

/// The activity of a poller. Its handle has a copy, so that [`PollerHandle::wake`] costs a busy poller next to nothing.
#[derive(Default)]
struct Activity {
    /// The poller has found work, or was woken, since the last sweep.
    recent: Cell<bool>,
    /// The poller is idle and not polled.
    idle: Cell<bool>,
}

impl Entry {
    fn poll(&self) -> bool {
        if self.removed.get() || self.running.replace(true) {
            return false;
        }
        // A guard, because the poller may panic and the context may survive that.
        let _running = Running(&self.running);
        let progress = self.poller.poll();
        if progress {
            self.activity.recent.set(true);
        }
        progress
    }

    /// Returns whether busy polling is in vain, because another process has to answer first.
    fn is_in_vain(&self) -> bool {
        self.poller.waits_for_others()
    }

    /// Stops busy polling of this poller. Returns whether it saw work.
    fn end(&self) -> bool {
        self.begun.replace(false) && self.poller.poll_end()
    }

    /// Stops busy polling of this poller, unless its peer relied on that and has left work just now. Returns whether it has.
    ///
    /// Nobody notifies of such work, and the next wait may not poll, so busy polling has to go on until [`end`](Self::end).
    fn end_if_idle(&self) -> bool {
        let works = self.end();
        if works {
            self.begun.set(true);
            self.poller.poll_begin();
        }
        works
    }
}

struct Running<'a>(&'a Cell<bool>);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.set(false);
    }
}

impl Pollers {
    fn list(&self) -> Rc<Vec<Rc<Entry>>> {
        Rc::clone(&self.entries.borrow())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.borrow().is_empty()
    }

    pub(super) fn in_progress(&self) -> &InProgress {
        &self.in_progress
    }

    /// Returns the kind of a wait that begins now.
    pub(super) fn wait(&self) -> Wait {
        match (self.remote.is_any(), self.in_progress.is_any()) {
            (true, _) => Wait::Beside,
            (false, true) => Wait::Busy,
            (false, false) => Wait::Fresh,
        }
    }

    pub(super) fn remote(&self) -> &InProgress {
        &self.remote
    }

    /// Returns whether busy polling is on, so that peers need not notify.
    pub(super) fn has_begun(&self) -> bool {
        self.begun.get()
    }

    fn add(&self, entry: Rc<Entry>) {
        // Copies the list if it is being walked.
        Rc::make_mut(&mut self.entries.borrow_mut()).push(entry);
    }

    fn retain(&self, keep: impl Fn(&Rc<Entry>) -> bool) {
        let kept = self.list().iter().filter(|entry| keep(entry)).cloned().collect();
        // Dropped without a borrow: the old list may be the last owner of a poller, whose drop may call us again.
        let old = self.entries.replace(Rc::new(kept));
        drop(old);
    }

    /// Returns whether there is a poller that waits for no other process.
    pub(super) fn has_local(&self) -> bool {
        !self.remote.is_any() || self.list().iter().any(|entry| !entry.is_in_vain())
    }

    /// Polls each poller once, except those that [wait for others](Poller::waits_for_others) and will be notified.
    pub(super) fn poll(&self) -> bool {
        let remote = self.remote.is_any();
        self.poll_those(|entry| !(remote && !entry.begun.get() && entry.is_in_vain()))
    }

    /// Polls each poller once.
    pub(super) fn poll_all(&self) -> bool {
        self.poll_those(|_| true)
    }

    fn poll_those(&self, chosen: impl Fn(&Entry) -> bool) -> bool {
        let list = self.list();
        // A poller that is alone needs no scope in common with others.
        let _scope = (list.len() > 1).then(DeferScope::enter);
        list.iter().fold(false, |progress, entry| {
            (chosen(entry) && entry.poll()) | progress
        })
    }

    /// Starts busy polling: calls `poll_begin` on each poller that has not had that call. Stops it for each that waits for
    /// others. Returns whether one of those has made progress.
    pub(super) fn begin(&self) -> bool {
        let (remote, mut progress) = (self.remote.is_any(), false);
        for entry in self.list().iter().filter(|entry| !entry.removed.get()) {
            if remote && entry.is_in_vain() {
                progress |= entry.end() && entry.poll();
            } else if !entry.begun.replace(true) {
                self.begun.set(true);
                entry.poller.poll_begin();
            }
        }
        progress
    }

    /// Stops polling the pollers that have found nothing for some time. `poll_max` is the context's longest window.
    pub(super) fn sweep(&self, now: Instant, poll_max: Duration) {
        let idle_time = IDLE_TIME.max(poll_max.saturating_mul(IDLE_WINDOWS));
        match self.swept.get() {
            Some(swept) if now.saturating_duration_since(swept) < idle_time => return,
            _ => self.swept.set(Some(now)),
        }
        let is_idle = |entry: &Rc<Entry>| !entry.activity.recent.replace(false) && !entry.end_if_idle();
        let idle: Vec<Rc<Entry>> = self.list().iter().filter(|e| is_idle(e)).cloned().collect();
        if idle.is_empty() {
            return;
        }
        idle.iter().for_each(|entry| entry.activity.idle.set(true));
        self.retain(|entry| !entry.activity.idle.get());
        self.idle.borrow_mut().extend(idle);
    }

    /// Resumes polling of an idle poller.
    fn wake(&self, entry: &Rc<Entry>) {
        if !entry.activity.idle.replace(false) {
            return;
        }
        entry.activity.recent.set(true);
        self.idle.borrow_mut().retain(|other| !Rc::ptr_eq(other, entry));
        self.add(Rc::clone(entry));
    }

    /// Ends busy polling. Returns whether a poller saw work; then the context must not block.
    pub(super) fn end(&self) -> bool {
        if !self.begun.replace(false) {
            return false;
        }
        let mut work = false;
        for entry in self.list().iter().filter(|entry| !entry.removed.get()) {
            work |= entry.end();
        }
        work
    }
}

/// A registered [`Poller`]. Dropping the handle removes the poller: no method of it is called any more, not even
/// `poll_end`.
pub struct PollerHandle {
    /// Weak, because the list owns the entry: a poller may own its handle without keeping itself alive.
    entry: Weak<Entry>,
    ctx: Weak<dyn AsRef<Pollers>>,
    activity: Rc<Activity>,
}

impl PollerHandle {
    pub(super) fn new(pollers: &Pollers, ctx: Weak<dyn AsRef<Pollers>>, poller: Rc<dyn Poller>) -> Self {
        let activity = Rc::<Activity>::default();
        activity.recent.set(true);
        let entry = Rc::new(Entry {
            poller,
            removed: Cell::new(false),
            running: Cell::new(false),
            begun: Cell::new(false),
            activity: Rc::clone(&activity),
        });
        pollers.add(Rc::clone(&entry));
        Self {
            entry: Rc::downgrade(&entry),
            ctx,
            activity,
        }
    }

    /// Resumes polling of the poller if it stopped because the poller was idle. Must be called for every event that
    /// does not come through polling: a kick, a signal.
    #[inline]
    pub fn wake(&self) {
        if self.activity.idle.get() {
            self.resume();
        } else {
            self.activity.recent.set(true);
        }
    }

    #[cold]
    fn resume(&self) {
        if let (Some(entry), Some(ctx)) = (self.entry.upgrade(), self.ctx.upgrade()) {
            (*ctx).as_ref().wake(&entry);
        }
    }
}

impl Drop for PollerHandle {
    fn drop(&mut self) {
        let (Some(ctx), Some(entry)) = (self.ctx.upgrade(), self.entry.upgrade()) else {
            return;
        };
        let pollers = (*ctx).as_ref();
        entry.removed.set(true);
        let idle = mem::take(&mut *pollers.idle.borrow_mut());
        let (mine, others) = idle.into_iter().partition(|other| Rc::ptr_eq(other, &entry));
        pollers.idle.borrow_mut().extend::<Vec<_>>(others);
        // Dropped without a borrow: it may be the last owner of the poller, whose drop may call us again.
        drop::<Vec<_>>(mine);
        pollers.retain(|other| !Rc::ptr_eq(other, &entry));
    }
}

impl fmt::Debug for PollerHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PollerHandle").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::aio::counting::Counting;
    use crate::defer::DeferredCall;

    impl AsRef<Self> for Pollers {
        fn as_ref(&self) -> &Self {
            self
        }
    }

    fn add(pollers: &Rc<Pollers>, poller: Rc<dyn Poller>) -> PollerHandle {
        let ctx = Rc::downgrade(pollers);
        PollerHandle::new(pollers, ctx, poller)
    }

    #[test]
    fn idle_pollers_are_skipped_until_woken() {
        let pollers = Rc::<Pollers>::default();
        let peers = [(); 2].map(|()| Rc::<Counting>::default());
        let handles = peers.each_ref().map(|peer| add(&pollers, Rc::clone(peer) as _));
        let polls = || {
            pollers.poll();
            peers.each_ref().map(|peer| peer.polls.take())
        };
        let start = Instant::now();
        peers[0].finds.set(true);
        pollers.sweep(start, Duration::ZERO);
        assert_eq!(polls(), [1, 1], "new pollers are not idle");
        pollers.sweep(start + IDLE_TIME / 2, Duration::ZERO);
        assert_eq!(polls(), [1, 1]);
        pollers.sweep(start + IDLE_TIME, Duration::ZERO);
        assert_eq!(polls(), [1, 0]);
        handles[1].wake();
        handles[1].wake();
        assert_eq!(polls(), [1, 1]);
        peers[0].finds.set(false);
        pollers.sweep(start + 2 * IDLE_TIME, Duration::ZERO);
        pollers.sweep(start + 3 * IDLE_TIME, Duration::ZERO);
        assert!(pollers.is_empty());
        let [first, second] = handles;
        drop(first);
        assert_eq!(Rc::strong_count(&peers[0]), 1, "an idle poller can be removed");
        second.wake();
        assert_eq!(polls(), [0, 1]);
    }

    /// Sweeps a poller during busy polling. It has been idle, and its peer, which need not notify, has left work just now.
    fn swept_with_work_left() -> (Rc<Pollers>, Rc<Counting>, PollerHandle) {
        let pollers = Rc::<Pollers>::default();
        let peer = Rc::<Counting>::default();
        let handle = add(&pollers, Rc::clone(&peer) as _);
        let start = Instant::now() - 2 * IDLE_TIME;
        pollers.sweep(start, Duration::ZERO);
        pollers.begin();
        peer.left.set(true);
        pollers.sweep(start + IDLE_TIME, Duration::ZERO);
        (pollers, peer, handle)
    }

    #[test]
    fn an_idle_poller_is_asked_for_work_before_it_is_skipped() {
        let (pollers, peer, _handle) = swept_with_work_left();
        assert!(!pollers.is_empty(), "there is work");
        pollers.begin();
        peer.left.set(false);
        pollers.sweep(Instant::now() + IDLE_TIME, Duration::ZERO);
        assert!(pollers.is_empty());
        assert_eq!((peer.begun.get(), peer.ended.get()), (2, 2));
    }

    #[test]
    fn work_that_a_sweep_finds_is_not_lost_if_the_next_wait_does_not_poll() {
        let (pollers, _peer, _handle) = swept_with_work_left();
        // The window has closed, or the CPU is crowded.
        assert!(pollers.end(), "the context would block");
    }

    /// A poller that defers the same call as others.
    struct Deferring(Rc<DeferredCall>);

    impl Poller for Deferring {
        fn poll(&self) -> bool {
            self.0.defer();
            true
        }
    }

    #[test]
    fn calls_of_all_pollers_run_together() {
        let pollers = Rc::<Pollers>::default();
        let runs = Rc::new(Cell::new(0));
        let call = Rc::new(DeferredCall::new({
            let runs = Rc::clone(&runs);
            move || runs.set(runs.get() + 1)
        }));
        let _handles = [(); 3].map(|()| add(&pollers, Rc::new(Deferring(Rc::clone(&call)))));
        for expected in 1..3 {
            assert!(pollers.poll());
            assert_eq!(runs.get(), expected);
        }
    }
}

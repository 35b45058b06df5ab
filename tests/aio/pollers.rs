//! Adaptive polling.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use vhost_user_blk::aio::{AioContext, EventSet, Poller, PollerHandle};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

const LONG: Duration = Duration::from_secs(20);

type Hook = Box<dyn Fn()>;

/// The notifications that a poller received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Call {
    Begin,
    End,
}

/// A poller that records its calls. Another thread may add work.
#[derive(Default)]
struct Source {
    work: Arc<AtomicU32>,
    /// The poller always finds work.
    endless: Cell<bool>,
    /// The work appears when the context is about to block.
    late_work: Cell<u32>,
    polls: Cell<u32>,
    done: Cell<u32>,
    calls: RefCell<Vec<Call>>,
    on_poll: RefCell<Option<Hook>>,
}

impl Poller for Source {
    fn poll(&self) -> bool {
        self.polls.set(self.polls.get() + 1);
        if let Some(hook) = &*self.on_poll.borrow() {
            hook();
        }
        let work = self.work.swap(0, Ordering::Relaxed) + u32::from(self.endless.get());
        self.done.set(self.done.get() + work);
        work > 0
    }

    fn poll_begin(&self) {
        self.calls.borrow_mut().push(Call::Begin);
    }

    fn poll_end(&self) -> bool {
        self.calls.borrow_mut().push(Call::End);
        self.work.fetch_add(self.late_work.take(), Ordering::Relaxed) > 0
            || self.work.load(Ordering::Relaxed) > 0
    }
}

struct Rig {
    ctx: AioContext,
    source: Rc<Source>,
    poller: Option<PollerHandle>,
}

impl Rig {
    fn new() -> Self {
        let ctx = AioContext::new().unwrap();
        ctx.poll_on_crowded_cpus();
        let source = Rc::<Source>::default();
        let poller = Some(ctx.add_poller(Rc::clone(&source) as Rc<dyn Poller>));
        Self { ctx, source, poller }
    }

    /// Returns a context with a polling window of about `window`.
    fn with_window(window: Duration) -> Self {
        let rig = Self::new();
        rig.ctx.set_poll_max(LONG);
        let mut opened = Duration::from_micros(4);
        rig.sleep(Duration::from_millis(1));
        while opened < window {
            rig.sleep(2 * opened);
            opened *= 2;
        }
        rig.source.calls.borrow_mut().clear();
        rig
    }

    /// Runs the loop until a timer ends a wait of `time`; returns the number of passes.
    fn sleep(&self, time: Duration) -> u32 {
        let fired = Rc::new(Cell::new(false));
        let flag = Rc::clone(&fired);
        let timer = self.ctx.timer(move || flag.set(true));
        timer.arm_in(time);
        let mut passes = 0;
        while !fired.get() {
            self.ctx.poll(true);
            passes += 1;
        }
        passes
    }

    fn calls(&self) -> Vec<Call> {
        self.source.calls.borrow().clone()
    }
}

#[test]
fn a_context_without_work_sleeps() {
    let rig = Rig::new();
    // Longer than the default poll-max-ns: no window opens.
    for _ in 0..3 {
        assert!(rig.sleep(Duration::from_millis(5)) <= 2, "it does not spin");
    }
    assert_eq!(rig.source.polls.get(), 0);
    assert!(rig.calls().is_empty());
}

#[test]
fn the_peer_learns_when_polling_starts_and_stops() {
    let rig = Rig::with_window(Duration::from_micros(64));
    rig.sleep(Duration::from_millis(2));
    assert_eq!(rig.calls()[..2], [Call::Begin, Call::End]);
    assert!(rig.source.polls.get() > 0);
}

#[test]
fn the_peer_hears_of_polling_only_once() {
    let rig = Rig::with_window(Duration::from_millis(1));
    rig.source.endless.set(true);
    let before = rig.source.done.get();
    (0..100).for_each(|_| _ = rig.ctx.poll(true));
    assert!(rig.source.done.get() >= before + 100);
    assert_eq!(rig.calls(), [Call::Begin]);
}

#[test]
fn work_found_before_blocking_prevents_the_block() {
    let rig = Rig::with_window(Duration::from_micros(8));
    rig.source.late_work.set(1);
    let before = rig.source.done.get();
    assert!(rig.ctx.poll(true), "it would block for ever otherwise");
    assert_eq!(rig.source.done.get(), before + 1);
    assert_eq!(rig.calls(), [Call::Begin, Call::End]);
}

#[test]
fn poll_max_zero_disables_polling_at_once() {
    let rig = Rig::with_window(Duration::from_millis(1));
    rig.source.endless.set(true);
    rig.ctx.poll(true);
    rig.source.endless.set(false);
    assert_eq!(rig.calls(), [Call::Begin]);
    rig.ctx.set_poll_max(Duration::ZERO);
    let polls = rig.source.polls.get();
    rig.sleep(Duration::from_millis(1));
    rig.sleep(Duration::from_millis(1));
    assert_eq!(rig.calls(), [Call::Begin, Call::End]);
    assert_eq!(rig.source.polls.get(), polls);
}

#[test]
fn endless_polling_starves_no_other_event_source() {
    let rig = Rig::with_window(Duration::from_millis(1));
    let fd = Rc::new(EventFd::new(EFD_NONBLOCK).unwrap());
    let log = Rc::new(RefCell::new(Vec::new()));
    let logging = |name: &'static str| {
        let log = Rc::clone(&log);
        move || log.borrow_mut().push(name)
    };
    let (source, on_fd) = (Rc::clone(&fd), logging("fd"));
    let _handler = rig
        .ctx
        .add_fd(Rc::clone(&fd), EventSet::IN, move |_| {
            source.read().unwrap();
            on_fd();
        })
        .unwrap();
    let (on_timer, on_bh) = (logging("timer"), logging("bh"));
    let timer = rig.ctx.timer(on_timer);
    let bh = rig.ctx.bottom_half(on_bh);
    rig.source.endless.set(true);
    rig.ctx.poll(true);
    assert_eq!(rig.calls(), [Call::Begin]);
    fd.write(1).unwrap();
    timer.arm_in(Duration::from_micros(100));
    bh.schedule();
    let start = Instant::now();
    while log.borrow().len() < 3 {
        assert!(start.elapsed() < LONG, "only {:?}", log.borrow());
        rig.ctx.poll(true);
    }
}

#[test]
fn a_bottom_half_ends_busy_polling() {
    let rig = Rig::with_window(Duration::from_millis(200));
    let ran = Rc::new(Cell::new(false));
    let flag = Rc::clone(&ran);
    let bh = rig.ctx.bottom_half(move || flag.set(true));
    let handle = bh.handle();
    // Another thread schedules it once the context polls.
    let (polling, scheduled) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
    let other = thread::spawn({
        let (polling, scheduled) = (Arc::clone(&polling), Arc::clone(&scheduled));
        move || {
            while polling.load(Ordering::Relaxed) == 0 {
                thread::yield_now();
            }
            handle.schedule();
            scheduled.store(1, Ordering::Release);
        }
    });
    let late_polls = Rc::new(Cell::new(0));
    let late = Rc::clone(&late_polls);
    *rig.source.on_poll.borrow_mut() = Some(Box::new(move || {
        polling.store(1, Ordering::Relaxed);
        late.set(late.get() + scheduled.load(Ordering::Acquire));
    }));
    rig.ctx.poll(true);
    assert!(ran.get());
    assert!(
        late_polls.get() <= 1,
        "{} polls after it was scheduled",
        late_polls.get()
    );
    other.join().unwrap();
}

#[test]
fn a_poller_that_polls_is_not_reentered() {
    let rig = Rig::with_window(Duration::from_millis(1));
    let depth = Rc::new(Cell::new(0));
    let level = Rc::clone(&depth);
    let ctx = rig.ctx.downgrade();
    *rig.source.on_poll.borrow_mut() = Some(Box::new(move || {
        assert_eq!(level.replace(1), 0);
        ctx.upgrade().unwrap().poll(false);
        level.set(0);
    }));
    rig.source.endless.set(true);
    assert!(rig.ctx.poll(true));
    assert_eq!(depth.get(), 0);
}

#[test]
fn a_removed_poller_is_not_called_any_more() {
    let mut rig = Rig::with_window(Duration::from_millis(1));
    rig.source.endless.set(true);
    rig.ctx.poll(true);
    rig.poller.take();
    let (polls, calls) = (rig.source.polls.get(), rig.calls());
    rig.sleep(Duration::from_micros(100));
    assert_eq!((rig.source.polls.get(), rig.calls()), (polls, calls));
    assert_eq!(Rc::strong_count(&rig.source), 1);
}

#[test]
fn a_poller_may_be_removed_by_itself() {
    let rig = Rig::with_window(Duration::from_millis(1));
    let slot = Rc::new(RefCell::new(None::<PollerHandle>));
    struct Once(Rc<RefCell<Option<PollerHandle>>>, Rc<Cell<u32>>);
    impl Poller for Once {
        fn poll(&self) -> bool {
            drop(self.0.take());
            self.1.set(self.1.get() + 1);
            true
        }
    }
    let count = Rc::new(Cell::new(0));
    let once = Rc::new(Once(Rc::clone(&slot), Rc::clone(&count)));
    slot.replace(Some(rig.ctx.add_poller(once)));
    rig.ctx.poll(true);
    rig.sleep(Duration::from_micros(100));
    assert_eq!(count.get(), 1);
}

#[test]
fn a_removed_poller_is_skipped_in_that_round() {
    let rig = Rig::with_window(Duration::from_millis(1));
    let victim = Rc::<Source>::default();
    let handle = RefCell::new(Some(rig.ctx.add_poller(Rc::clone(&victim) as Rc<dyn Poller>)));
    *rig.source.on_poll.borrow_mut() = Some(Box::new(move || drop(handle.take())));
    rig.source.endless.set(true);
    rig.ctx.poll(true);
    assert_eq!(victim.polls.get(), 0);
}

//! The loop itself.

use std::cell::{Cell, OnceCell};
use std::fmt;
use std::rc::{Rc, Weak};
use std::time::Duration;

use super::adaptive::{PollWindow, PollWindows, Wait};
use super::bottom_half::{BottomHalf, BottomHalves};
use super::busy_wait::Crowd;
use super::clock::{LoopClock, Nanos};
use super::commands::CommandQueue;
use super::error::Error;
use super::fd::FdHandlers;
use super::figures::LoopFigures;
use super::notify::Notify;
use super::poller::Pollers;
use super::timer::Timers;
use crate::sync::Arc;

/// The interval at which fds are checked while pollers always find work, in nanoseconds.
const FD_INTERVAL: Nanos = 50_000;

/// The longest time that a bottom half scheduled with `schedule_idle` waits, in ms.
const IDLE_DELAY_MS: i32 = 10;

/// An event loop. Clones share the loop, which ends when the last of them is dropped.
#[derive(Clone)]
pub struct AioContext {
    pub(super) inner: Rc<Inner>,
}

/// A weak reference to a context.
#[derive(Clone)]
pub struct WeakAioContext {
    inner: Weak<Inner>,
}

impl WeakAioContext {
    /// Returns the context, unless it has ended.
    #[must_use]
    pub fn upgrade(&self) -> Option<AioContext> {
        self.inner.upgrade().map(|inner| AioContext { inner })
    }
}

impl fmt::Debug for WeakAioContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WeakAioContext").finish_non_exhaustive()
    }
}

pub(super) type Command = Box<dyn FnOnce(&AioContext) + Send>;

/// The part of a context that other threads may touch.
pub(super) struct Shared {
    pub(super) notify: Arc<Notify>,
    pub(super) commands: CommandQueue<Command>,
    pub(super) figures: std::sync::Arc<LoopFigures>,
}

pub(super) struct Inner {
    pub(super) shared: Arc<Shared>,
    pub(super) bottom_halves: BottomHalves,
    pub(super) fds: FdHandlers,
    pub(super) timers: Timers,
    pub(super) pollers: Pollers,
    /// Runs the commands that other threads sent.
    commands: OnceCell<BottomHalf>,
    windows: PollWindows,
    pub(super) crowd: Crowd,
    /// When fds were last checked.
    fds_seen: Cell<Nanos>,
    pub(super) clock: Rc<LoopClock>,
}

impl AioContext {
    /// Makes the current thread's event loop.
    ///
    /// # Errors
    ///
    /// The epoll instance, the eventfd or the timerfd cannot be created.
    pub fn new() -> Result<Self, Error> {
        let notify = Notify::new().map_err(Error::EventFd)?;
        let clock = Rc::new(LoopClock::new());
        let inner = Rc::new(Inner {
            shared: Arc::new(Shared {
                notify: Arc::new(notify),
                commands: CommandQueue::new(),
                figures: std::sync::Arc::default(),
            }),
            bottom_halves: BottomHalves::default(),
            fds: FdHandlers::new()?,
            timers: Timers::new()?,
            pollers: Pollers::default(),
            commands: OnceCell::new(),
            windows: PollWindows::new(PollWindow::DEFAULT_MAX),
            crowd: Crowd::new(&clock),
            fds_seen: Cell::new(0),
            clock,
        });
        inner.add_wakeups()?;
        let ctx = Self { inner };
        let weak = ctx.downgrade();
        let commands = ctx.bottom_half(move || {
            if let Some(ctx) = weak.upgrade() {
                ctx.run_commands();
            }
        });
        let unset = ctx.inner.commands.set(commands);
        debug_assert!(unset.is_ok());
        Ok(ctx)
    }

    /// Returns a weak reference, for use in callbacks: a context that its own callbacks own never ends.
    #[must_use]
    pub fn downgrade(&self) -> WeakAioContext {
        WeakAioContext {
            inner: Rc::downgrade(&self.inner),
        }
    }

    /// Sets `poll-max-ns`, the longest time to poll before blocking. Zero turns polling off; 32768 ns is the default.
    pub fn set_poll_max(&self, max: Duration) {
        self.inner.windows.reset(max);
    }

    /// Returns the longest time the context polls before blocking.
    pub(crate) fn poll_max(&self) -> Duration {
        self.inner.windows.max()
    }

    /// Polls from now on as if no other thread wanted the CPU. For tests of what polling does, on loaded machines.
    #[doc(hidden)]
    pub fn poll_on_crowded_cpus(&self) {
        self.inner.crowd.look_away();
    }

    /// Returns what the context knows about the other threads on its CPU.
    pub(crate) fn crowd(&self) -> Crowd {
        self.inner.crowd.clone()
    }

    /// Returns the clock of the loop.
    pub(crate) fn clock(&self) -> &Rc<LoopClock> {
        &self.inner.clock
    }

    /// Runs the commands sent so far. If a command runs a nested pass, that pass continues with the next command.
    fn run_commands(&self) {
        let commands = &self.inner.shared.commands;
        for _ in 0..commands.len() {
            let Some((command, more)) = commands.pop() else {
                return;
            };
            if more {
                self.inner.commands().schedule();
            }
            command(self);
        }
    }

    /// Makes one pass (`aio_poll`): runs everything that is ready. If nothing is ready and `blocking` is set, it waits.
    ///
    /// Returns whether anything was done. A callback may call `poll` to wait for something.
    pub fn poll(&self, blocking: bool) -> bool {
        let inner = &*self.inner;
        let mut progress = false;
        if !blocking {
            progress |= inner.pollers.has_begun() && inner.pollers.poll();
            inner.look_at_fds(0);
        } else if inner.has_work() {
            progress |= self.poll_while_busy();
        } else {
            progress |= self.wait();
        }
        progress |= inner.bottom_halves.run();
        progress |= inner.fds.run();
        progress |= inner.timers.run();
        progress
    }

    /// Looks for more events while there is work to do. During busy polling it checks fds only now and then.
    fn poll_while_busy(&self) -> bool {
        if !self.inner.pollers.has_begun() {
            self.inner.look_at_fds(0);
            return false;
        }
        let progress = self.inner.pollers.poll();
        self.inner.look_at_fds_at_times(self.inner.clock.read());
        progress
    }

    /// Waits until there is something to do: polls while the window is open, then blocks.
    fn wait(&self) -> bool {
        let inner = &*self.inner;
        if inner.pollers.is_empty() {
            inner.block();
            return false;
        }
        let wait = inner.pollers.wait();
        let (start, window) = (inner.clock.read(), inner.windows.of(wait));
        let may_poll = !inner.crowd.is_dense() && inner.pollers.has_local();
        let polls = may_poll && !window.current().is_zero();
        let progress = polls && self.busy_poll(start, window.current());
        if progress || inner.has_work() {
            let waited = |until| Duration::from_nanos(until - start);
            match wait {
                // If another thread has interrupted the poll, it may be the driver. The poll has still caught the event.
                Wait::Fresh => {
                    let waited = waited(inner.clock.last()).min(window.current());
                    inner.windows.learn(wait, waited);
                }
                // A disk needs nobody on this CPU, but perhaps its host does, which interrupts the poll.
                Wait::Busy => inner.windows.learn(wait, waited(inner.clock.read())),
                // The answers of other processes say nothing about the driver.
                Wait::Beside if progress => window.learn(PollWindow::caught),
                Wait::Beside => {}
            }
            inner.count_poll(polls, true);
            return progress;
        }
        inner.count_poll(polls, false);
        if inner.pollers.end() {
            inner.look_at_fds(0);
            // Nobody will be notified of work that came before the end, not even those that wait for others.
            return inner.pollers.poll_all();
        }
        inner
            .pollers
            .sweep(inner.clock.instant(start), inner.windows.max());
        inner.windows.sleeps(wait);
        inner.block();
        if may_poll {
            let waited = match wait {
                Wait::Beside => Duration::MAX,
                _ => Duration::from_nanos(inner.clock.last() - start),
            };
            inner.windows.learn(wait, waited);
        }
        false
    }

    /// Polls until a poller makes progress, other work arrives or the window ends. Returns whether a poller made progress.
    fn busy_poll(&self, start: Nanos, window: Duration) -> bool {
        let inner = &*self.inner;
        if inner.pollers.begin() {
            return true;
        }
        let window = Nanos::try_from(window.as_nanos()).unwrap_or(Nanos::MAX);
        let end = start.saturating_add(window);
        let timer = inner.timers.next_deadline();
        let end = timer.map_or(end, |timer| end.min(inner.clock.nanos(timer)));
        let mut progress = false;
        let found = inner.crowd.busy_wait((start, end), || {
            progress = inner.pollers.poll();
            progress || inner.has_work()
        });
        if found {
            // Whoever made progress has read the clock, or will look at it soon.
            inner.look_at_fds_at_times(inner.clock.last());
        }
        progress
    }
}

impl Inner {
    fn add_wakeups(&self) -> Result<(), Error> {
        self.timers.with_fd(|fd| self.fds.add_wakeup(fd))?;
        self.fds.add_wakeup(self.shared.notify.event())
    }

    pub(super) fn commands(&self) -> &BottomHalf {
        self.commands.get().expect("set in new")
    }

    /// Returns whether a bottom half or an fd handler is ready to run. Ignores new fd events and expired timers.
    fn has_work(&self) -> bool {
        self.bottom_halves.is_pending() || self.fds.is_ready()
    }

    /// Counts a wait that began with busy polling, if it `polls`.
    fn count_poll(&self, polls: bool, hit: bool) {
        if polls {
            self.shared.figures.polls.add(1);
            self.shared.figures.poll_hits.add(hit.into());
        }
    }

    fn look_at_fds(&self, timeout_ms: i32) {
        self.fds.wait(timeout_ms);
        self.fds_seen.set(self.clock.read());
    }

    fn look_at_fds_at_times(&self, now: Nanos) {
        if now.saturating_sub(self.fds_seen.get()) >= FD_INTERVAL {
            self.look_at_fds(0);
            self.pollers.sweep(self.clock.instant(now), self.windows.max());
        }
    }

    fn block(&self) {
        if let Err(err) = self.timers.program() {
            // Cannot happen with a valid duration.
            tracing::error!(%err, "cannot set the timerfd; timers will run late, at the next wakeup");
        }
        self.shared.figures.sleeps.add(1);
        let asleep = self.clock.last();
        self.shared.notify.announce();
        let timeout = if self.has_work() {
            0
        } else if self.bottom_halves.is_idle_pending() {
            IDLE_DELAY_MS
        } else {
            -1
        };
        // Finished requests of an io_uring interrupt the wait before its eventfd signals them. It goes on, as otherwise the
        // rest would count as a wait of its own, which polling seems to catch.
        while self.fds.wait(timeout) == 0 && timeout < 0 {}
        self.fds_seen.set(self.clock.read());
        self.shared.notify.withdraw();
        self.crowd.slept(asleep);
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // Dropped after the lock is released: a command may own a handle of this context.
        drop(self.shared.commands.close());
    }
}

impl fmt::Debug for AioContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AioContext")
            .field("windows", &self.inner.windows)
            .finish_non_exhaustive()
    }
}

//! fd handlers, built on the event-manager crate.
//!
//! event-manager dispatches events from inside its wait. There, fds can be registered only through the borrowed
//! `EventOps` of one subscriber. So the only subscriber just collects the ready fds. The context runs their handlers
//! after the wait, when they may freely add and remove fds.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fmt;
use std::os::fd::{AsRawFd, RawFd};
use std::rc::{Rc, Weak};

use event_manager::{
    EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberId, SubscriberOps,
};

use super::error::Error;
use crate::defer::DeferScope;

type Callback = Rc<dyn Fn(EventSet)>;

/// The event data of fds that only wake the context.
const WAKE_ONLY: u32 = u32::MAX;

/// The fd handlers of one context. Used only by its thread.
pub(super) struct FdHandlers {
    manager: RefCell<EventManager<Collector>>,
    collector: SubscriberId,
    table: Rc<Table>,
}

#[derive(Default)]
struct Table {
    /// Indexed by the `data` of their events.
    entries: RefCell<Vec<Option<Rc<Entry>>>>,
    /// Reported by epoll, but not run yet.
    ready: RefCell<VecDeque<Rc<Entry>>>,
}

struct Entry {
    fd: RawFd,
    data: u32,
    /// Reported events. The entry is in `ready` exactly while this is not empty.
    events: Cell<EventSet>,
    /// `None` once removed.
    callback: RefCell<Option<Callback>>,
}

struct Collector(Rc<Table>);

impl MutEventSubscriber for Collector {
    fn process(&mut self, events: Events, _ops: &mut EventOps) {
        let entries = self.0.entries.borrow();
        let Some(Some(entry)) = entries.get(events.data() as usize) else {
            return;
        };
        let known = entry.events.replace(entry.events.get() | events.event_set());
        if known.is_empty() {
            self.0.ready.borrow_mut().push_back(Rc::clone(entry));
        }
    }

    fn init(&mut self, _ops: &mut EventOps) {}
}

impl FdHandlers {
    pub(super) fn new() -> Result<Self, Error> {
        let mut manager = EventManager::new().map_err(Error::Epoll)?;
        let table = Rc::<Table>::default();
        let collector = manager.add_subscriber(Collector(Rc::clone(&table)));
        Ok(Self {
            manager: RefCell::new(manager),
            collector,
            table,
        })
    }

    /// Watches an fd without a handler: it ends the wait once each time it becomes readable.
    pub(super) fn add_wakeup(&self, fd: &impl AsRawFd) -> Result<(), Error> {
        let events = EventSet::IN | EventSet::EDGE_TRIGGERED;
        self.ops(|ops| ops.add(Events::with_data(fd, WAKE_ONLY, events)))
            .map_err(Error::Epoll)
    }

    fn add(&self, fd: RawFd, events: EventSet, callback: Callback) -> Result<Rc<Entry>, Error> {
        let mut entries = self.table.entries.borrow_mut();
        let index = entries.iter().position(Option::is_none).unwrap_or(entries.len());
        let data = u32::try_from(index).expect("there are fewer than 2^31 fds");
        self.ops(|ops| ops.add(Events::with_data_raw(fd, data, events)))
            .map_err(|source| Error::AddFd { fd, source })?;
        let (events, callback) = (Cell::new(EventSet::empty()), RefCell::new(Some(callback)));
        let entry = Rc::new(Entry {
            fd,
            data,
            events,
            callback,
        });
        if index == entries.len() {
            entries.push(None);
        }
        entries[index] = Some(Rc::clone(&entry));
        Ok(entry)
    }

    fn remove(&self, entry: &Entry) {
        if let Err(err) = self.ops(|ops| ops.remove(Events::empty_raw(entry.fd))) {
            tracing::error!(fd = entry.fd, %err, "cannot stop watching a closed fd; drop its handler first");
        }
        self.table.entries.borrow_mut()[entry.data as usize] = None;
    }

    fn modify(&self, entry: &Entry, events: EventSet) -> Result<(), Error> {
        self.ops(|ops| ops.modify(Events::with_data_raw(entry.fd, entry.data, events)))
            .map_err(|source| Error::AddFd { fd: entry.fd, source })
    }

    fn ops<T>(&self, change: impl FnOnce(&mut EventOps) -> T) -> T {
        let mut manager = self.manager.borrow_mut();
        change(
            &mut manager
                .event_ops(self.collector)
                .expect("the collector is never removed"),
        )
    }

    pub(super) fn is_ready(&self) -> bool {
        !self.table.ready.borrow().is_empty()
    }

    /// Waits at most `timeout` ms (-1: forever) for events and collects them. Returns their number, which is 0 if the wait
    /// was interrupted.
    pub(super) fn wait(&self, timeout: i32) -> usize {
        let result = self.manager.borrow_mut().run_with_timeout(timeout);
        result.expect("epoll_wait on a live epoll fd fails only with EINTR, which is handled")
    }

    /// Runs the handlers of the collected fds.
    ///
    /// The list belongs to the context, so if a callback runs a nested pass, that pass serves the rest of the list.
    pub(super) fn run(&self) -> bool {
        let mut due = self.table.ready.borrow().len();
        // A handler that is alone needs no scope in common with others.
        let _scope = (due > 1).then(DeferScope::enter);
        let mut progress = false;
        while due > 0 {
            due -= 1;
            let Some(entry) = self.table.ready.borrow_mut().pop_front() else {
                break;
            };
            let events = entry.events.replace(EventSet::empty());
            let callback = entry.callback.borrow().clone();
            if let Some(callback) = callback {
                callback(events);
                progress = true;
            }
        }
        progress
    }
}

/// A watched fd. Dropping the `FdHandler` removes the handler, after which no callback runs. The callback itself may
/// drop it.
///
/// The `FdHandler` owns the fd it watches, so that removal comes before close. It belongs to the context's thread.
pub struct FdHandler {
    /// Weak, because the table owns the entry: a callback may own its `FdHandler` without keeping itself alive.
    entry: Weak<Entry>,
    ctx: Weak<dyn AsRef<FdHandlers>>,
    source: Box<dyn AsRawFd>,
}

impl FdHandler {
    pub(super) fn new(
        handlers: &FdHandlers,
        ctx: Weak<dyn AsRef<FdHandlers>>,
        source: Box<dyn AsRawFd>,
        events: EventSet,
        callback: Callback,
    ) -> Result<Self, Error> {
        let entry = handlers.add(source.as_raw_fd(), events, callback)?;
        Ok(Self {
            entry: Rc::downgrade(&entry),
            ctx,
            source,
        })
    }

    /// Replaces the watched events.
    ///
    /// # Errors
    ///
    /// The context has ended, or `epoll_ctl` failed. The watched events stay as they were.
    pub fn set_events(&self, events: EventSet) -> Result<(), Error> {
        match (self.ctx.upgrade(), self.entry.upgrade()) {
            (Some(ctx), Some(entry)) => (*ctx).as_ref().modify(&entry, events),
            _ => Err(Error::ContextGone),
        }
    }
}

impl Drop for FdHandler {
    fn drop(&mut self) {
        let (Some(ctx), Some(entry)) = (self.ctx.upgrade(), self.entry.upgrade()) else {
            return;
        };
        (*ctx).as_ref().remove(&entry);
        let callback = entry.callback.borrow_mut().take();
        // Dropped without a borrow: the callback may own anything, even fd handlers.
        drop(callback);
    }
}

impl fmt::Debug for FdHandler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FdHandler")
            .field("fd", &self.source.as_raw_fd())
            .finish_non_exhaustive()
    }
}

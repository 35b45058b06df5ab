//! fd handlers, on the event-manager crate.
//!
//! event-manager dispatches from inside its wait, where nothing can be registered but through the borrowed `EventOps`
//! of one subscriber. So its only subscriber just collects what is ready; the context runs the handlers afterwards,
//! when they may add and remove at will.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    fmt,
    os::fd::{AsRawFd, RawFd},
    rc::{Rc, Weak},
};

use event_manager::{
    EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberId, SubscriberOps,
};

use super::{AioContext, Error, Inner};

type Callback = Rc<dyn Fn(&AioContext, EventSet)>;

/// Marks fds that only wake the context.
const WAKE_ONLY: u32 = u32::MAX;

/// The fd handlers of one context; its thread only.
pub(super) struct FdHandlers {
    manager: RefCell<EventManager<Collector>>,
    collector: SubscriberId,
    table: Rc<Table>,
}

#[derive(Default)]
struct Table {
    /// By the `data` of their events.
    entries: RefCell<Vec<Option<Rc<Entry>>>>,
    /// Reported, not run yet.
    ready: RefCell<VecDeque<Rc<Entry>>>,
}

struct Entry {
    fd: RawFd,
    data: u32,
    /// Reported events; the entry is in `ready` exactly while there are any.
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

    /// Watches an fd that just ends the wait, once for each time it becomes readable.
    pub(super) fn add_wakeup(&self, fd: &impl AsRawFd) -> Result<(), Error> {
        let events = EventSet::IN | EventSet::EDGE_TRIGGERED;
        self.ops(|ops| ops.add(Events::with_data(fd, WAKE_ONLY, events)))
            .map_err(Error::Epoll)
    }

    fn add(&self, fd: RawFd, events: EventSet, callback: Callback) -> Result<Rc<Entry>, Error> {
        let mut entries = self.table.entries.borrow_mut();
        let index = entries.iter().position(Option::is_none).unwrap_or(entries.len());
        let data = u32::try_from(index).expect("there are less fds than 2^31");
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
            tracing::error!(fd = entry.fd, %err, "fd was closed before its handler was removed");
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

    /// Waits at most `timeout` ms (-1: for ever) for events and collects them.
    pub(super) fn wait(&self, timeout: i32) {
        let result = self.manager.borrow_mut().run_with_timeout(timeout);
        result.expect("epoll_wait on a live epoll fd fails only with EINTR, which is handled");
    }

    /// Runs the handlers of what was collected.
    ///
    /// The list is the context's, so a pass that a callback runs serves what is left of this one.
    pub(super) fn run(&self, ctx: &AioContext) -> bool {
        let mut due = self.table.ready.borrow().len();
        let mut progress = false;
        while due > 0 {
            due -= 1;
            let Some(entry) = self.table.ready.borrow_mut().pop_front() else {
                break;
            };
            let events = entry.events.replace(EventSet::empty());
            let callback = entry.callback.borrow().clone();
            if let Some(callback) = callback {
                callback(ctx, events);
                progress = true;
            }
        }
        progress
    }
}

/// A watched fd. Dropping it removes the handler, also in its own callback; no callback runs after that.
///
/// It owns what it watches, so that removal comes before close. It belongs to the context's thread.
pub struct FdHandler {
    /// Owned by the table: a callback may own its handler without keeping itself alive.
    entry: Weak<Entry>,
    ctx: Weak<Inner>,
    source: Box<dyn AsRawFd>,
}

impl FdHandler {
    pub(super) fn new(
        ctx: &AioContext,
        source: Box<dyn AsRawFd>,
        events: EventSet,
        callback: Callback,
    ) -> Result<Self, Error> {
        let entry = ctx.inner.fds.add(source.as_raw_fd(), events, callback)?;
        Ok(Self {
            entry: Rc::downgrade(&entry),
            ctx: Rc::downgrade(&ctx.inner),
            source,
        })
    }

    /// Watches for other events from now on.
    ///
    /// # Errors
    ///
    /// The kernel's error of `epoll_ctl`; the events are as before.
    pub fn set_events(&self, events: EventSet) -> Result<(), Error> {
        match (self.ctx.upgrade(), self.entry.upgrade()) {
            (Some(inner), Some(entry)) => inner.fds.modify(&entry, events),
            _ => Err(Error::ContextGone),
        }
    }
}

impl Drop for FdHandler {
    fn drop(&mut self) {
        let (Some(inner), Some(entry)) = (self.ctx.upgrade(), self.entry.upgrade()) else {
            return;
        };
        inner.fds.remove(&entry);
        let callback = entry.callback.borrow_mut().take();
        // What the callback owns may be anything, handlers too; it goes without a borrow.
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

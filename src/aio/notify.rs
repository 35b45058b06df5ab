//! `notify_me`: wakes a loop that may be asleep, without a system call when it is awake.
//!
//! The loop announces that it is about to block, looks once more at everything another thread may have left for it,
//! and only then blocks. Other threads first leave their work, then look at the announcement.

use std::io;

use crate::sync::{AtomicBool, Ordering, fence};

/// The part of a context that wakes it. Any thread may use it.
#[derive(Debug)]
pub(crate) struct Notify {
    /// The loop is about to block, or blocks. Set by the loop, reset by the thread that writes the eventfd.
    notify_me: AtomicBool,
    event: EventNotifier,
}

impl Notify {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self {
            notify_me: AtomicBool::new(false),
            event: EventNotifier::new()?,
        })
    }

    /// Makes the loop look again. The caller has already left its work for it.
    pub(crate) fn notify(&self) {
        // SeqCst: pairs with the fence in `announce`. Either the loop sees what the caller left, or we see the
        // announcement.
        fence(Ordering::SeqCst);
        // The swap lets one of several callers write the eventfd. Relaxed: the fence has ordered it, and the loop
        // takes the data with acquiring operations of its own.
        if self.notify_me.load(Ordering::Relaxed) && self.notify_me.swap(false, Ordering::Relaxed) {
            self.event.set();
        }
    }

    /// Announces that the loop is about to block. The loop must look at everything again before it does. Called only by
    /// the loop.
    pub(crate) fn announce(&self) {
        // A store would do, but loom does not order a store with concurrent swaps. The same holds in `withdraw`.
        self.notify_me.swap(true, Ordering::Relaxed);
        // SeqCst: pairs with the fence in `notify`.
        fence(Ordering::SeqCst);
    }

    /// Announces that the loop is awake. Called only by the loop.
    pub(crate) fn withdraw(&self) {
        self.notify_me.swap(false, Ordering::Relaxed);
    }

    pub(crate) fn event(&self) -> &EventNotifier {
        &self.event
    }
}

#[cfg(not(loom))]
pub(crate) use eventfd::EventNotifier;

#[cfg(not(loom))]
mod eventfd {
    use std::io;
    use std::os::fd::{AsRawFd, RawFd};

    use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

    /// An eventfd that is watched edge-triggered. Every write is an edge, so nobody needs to read it.
    #[derive(Debug)]
    pub(crate) struct EventNotifier(EventFd);

    impl EventNotifier {
        pub(crate) fn new() -> io::Result<Self> {
            EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK).map(Self)
        }

        pub(crate) fn set(&self) {
            if let Err(err) = self.0.write(1) {
                // Only a full counter (2^64 - 2 wakeups) refuses. Reading resets it, and the next write is an edge.
                let _ = self.0.read();
                let again = self.0.write(1);
                tracing::debug!(%err, ?again, "the wakeup counter was full; reset it and wrote again");
            }
        }
    }

    impl AsRawFd for EventNotifier {
        fn as_raw_fd(&self) -> RawFd {
            self.0.as_raw_fd()
        }
    }
}

#[cfg(loom)]
pub(crate) use model::EventNotifier;

#[cfg(loom)]
mod model {
    use std::io;
    use std::os::fd::{AsRawFd, RawFd};

    use crate::sync::{Condvar, Mutex, lock};

    /// A model of an eventfd and the `epoll_wait` on it.
    #[derive(Debug)]
    pub(crate) struct EventNotifier {
        edge: Mutex<bool>,
        changed: Condvar,
    }

    impl EventNotifier {
        pub(crate) fn new() -> io::Result<Self> {
            Ok(Self {
                edge: Mutex::new(false),
                changed: Condvar::new(),
            })
        }

        pub(crate) fn set(&self) {
            *lock(&self.edge) = true;
            self.changed.notify_one();
        }

        /// Blocks until there is an edge, and consumes it.
        #[cfg(test)]
        pub(crate) fn wait(&self) {
            let mut edge = lock(&self.edge);
            while !*edge {
                edge = self.changed.wait(edge).expect("no holder panics");
            }
            *edge = false;
        }
    }
    impl AsRawFd for EventNotifier {
        fn as_raw_fd(&self) -> RawFd {
            unimplemented!("a model has no fds")
        }
    }
}

//! `notify_me`: waking a loop that may be asleep, without a system call when it is awake.
//!
//! The loop announces that it is about to block, looks once more at everything another thread may have left for it,
//! and only then blocks. Others first leave their work, then look at the announcement.

use std::io;

use crate::sync::{AtomicBool, Ordering, fence};

/// The waking half of a context; any thread may use it.
#[derive(Debug)]
pub(crate) struct Notify {
    /// The loop is about to block or blocks. Set by the loop, reset by whoever takes on the wakeup.
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

    /// Makes the loop look again, after the caller has left something for it.
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

    /// Loop only: says that it is about to block. It has to look at everything again before it does.
    pub(crate) fn announce(&self) {
        // A swap where a store would do, here and in `withdraw`: loom does not order a store with concurrent swaps.
        self.notify_me.swap(true, Ordering::Relaxed);
        // SeqCst: pairs with the fence in `notify`.
        fence(Ordering::SeqCst);
    }

    /// Loop only: says that it is awake.
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
    use std::{io, os::fd::AsRawFd, os::fd::RawFd};

    use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

    /// An eventfd that is watched edge-triggered: every write is an edge, so it is never read.
    #[derive(Debug)]
    pub(crate) struct EventNotifier(EventFd);

    impl EventNotifier {
        pub(crate) fn new() -> io::Result<Self> {
            EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK).map(Self)
        }

        pub(crate) fn set(&self) {
            if let Err(err) = self.0.write(1) {
                // Only a counter at its end (2^64 - 2 wakeups) refuses; reading resets it and the write is an edge.
                let _ = self.0.read();
                let again = self.0.write(1);
                tracing::debug!(%err, ?again, "wakeup counter wrapped");
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
    use std::{io, os::fd::AsRawFd, os::fd::RawFd};

    use crate::sync::{Condvar, Mutex, lock};

    /// An eventfd and the epoll_wait on it.
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

        /// Blocks until there was an edge, and consumes it.
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

//! The events that the main thread waits for: signals, and calls from other threads.
//!
//! A signal sets its flag and writes a byte to a socket. A call goes into a queue and also writes a byte. The main
//! thread sleeps in a read of that socket, so waiting needs no other system call.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::mem;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};
use signal_hook::low_level::{pipe, signal_name};
use signal_hook::{SigId, flag, low_level};
use smallvec::SmallVec;

use crate::interrupt;
use crate::sys::process::ignore_signal;

/// An event for the main thread.
#[derive(Debug)]
pub(super) enum Event<T> {
    /// A signal asks the process to end.
    End(&'static str),
    /// SIGHUP: read the sizes of all images again.
    Refresh,
    /// SIGUSR1: print the statistics of all disks.
    Print,
    /// A call from another thread.
    Call(T),
    /// The watched socket is readable.
    Readable,
    /// The deadline has passed.
    Deadline,
}

/// Waits for signals and calls. Main thread.
#[derive(Debug)]
pub(super) struct Events<T> {
    flags: Vec<(i32, Arc<AtomicBool>)>,
    /// The signal handlers, which are removed when this is dropped.
    ids: Vec<SigId>,
    wakeups: UnixStream,
    watched: Option<Arc<OwnedFd>>,
    sender: Sender<T>,
    calls: Receiver<T>,
    /// Calls that come before those.
    earlier: VecDeque<T>,
    waker: Arc<UnixStream>,
}

/// Sends calls to the main thread. Any thread.
#[derive(Debug)]
pub(super) struct Caller<T> {
    sender: Sender<T>,
    waker: Arc<UnixStream>,
}

impl<T> Clone for Caller<T> {
    fn clone(&self) -> Self {
        Self {
            sender: self.sender.clone(),
            waker: Arc::clone(&self.waker),
        }
    }
}

impl<T> Caller<T> {
    /// Sends a call. The call is lost if the main thread has stopped waiting for calls.
    pub(super) fn send(&self, call: T) {
        let _ = self.sender.send(call);
        // If the socket is full, the main thread is woken up anyway.
        let _ = (&*self.waker).write(&[0]);
    }
}

/// Ignores the signals that would end the process until it handles them: it may be one of several that get them, for example
/// while it takes over.
pub fn ignore_early_signals() {
    [SIGHUP, SIGUSR1].into_iter().for_each(ignore_signal);
}

impl<T> Events<T> {
    /// Handles signals from now on, instead of their default actions.
    ///
    /// # Errors
    /// A signal cannot be handled, or no descriptor is left for the sockets.
    pub(super) fn new() -> io::Result<Self> {
        let (wakeups, waker) = UnixStream::pair()?;
        waker.set_nonblocking(true)?;
        let (sender, calls) = mpsc::channel();
        let mut events = Self {
            flags: Vec::new(),
            ids: Vec::new(),
            wakeups,
            watched: None,
            sender,
            calls,
            earlier: VecDeque::new(),
            waker: Arc::new(waker),
        };
        for signal in [SIGTERM, SIGINT, SIGHUP, SIGUSR1] {
            events.handle(signal)?;
        }
        for signal in [SIGTERM, SIGINT] {
            events.ids.push(interrupt::watch(signal)?);
        }
        Ok(events)
    }

    fn handle(&mut self, signal: i32) -> io::Result<()> {
        let raised = Arc::new(AtomicBool::new(false));
        // The actions of a signal run in this order, so the flag is set when the main thread wakes up.
        self.ids.push(flag::register(signal, Arc::clone(&raised))?);
        self.ids.push(pipe::register(signal, self.waker.try_clone()?)?);
        self.flags.push((signal, raised));
        Ok(())
    }

    /// Watches another socket from now on, or none. Returns the one that was watched.
    pub(super) fn watch(&mut self, socket: Option<Arc<OwnedFd>>) -> Option<Arc<OwnedFd>> {
        mem::replace(&mut self.watched, socket)
    }

    /// Puts back calls that [`next`](Self::next) has returned. They come again, before later ones.
    pub(super) fn put_back(&mut self, calls: Vec<T>) {
        self.earlier.extend(calls);
    }

    /// Returns a handle for other threads.
    pub(super) fn caller(&self) -> Caller<T> {
        Caller {
            sender: self.sender.clone(),
            waker: Arc::clone(&self.waker),
        }
    }

    /// Waits for the next event, at most until `deadline`. Signals come before calls.
    pub(super) fn next(&mut self, deadline: Option<Instant>) -> Event<T> {
        loop {
            let raised = |(signal, raised): &(i32, Arc<AtomicBool>)| {
                // SeqCst, as in `flag::register`.
                raised.swap(false, Ordering::SeqCst).then_some(*signal)
            };
            match self.flags.iter().find_map(raised) {
                Some(SIGHUP) => return Event::Refresh,
                Some(SIGUSR1) => return Event::Print,
                Some(signal) => return Event::End(signal_name(signal).unwrap_or("signal")),
                None => {}
            }
            if let Some(call) = self.earlier.pop_front().or_else(|| self.calls.try_recv().ok()) {
                return Event::Call(call);
            }
            match self.sleep(deadline) {
                Wakeup::Own => {}
                Wakeup::Watched => return Event::Readable,
                Wakeup::Deadline => return Event::Deadline,
            }
        }
    }

    /// Waits for a wakeup, and drains the socket of our own wakeups.
    fn sleep(&mut self, deadline: Option<Instant>) -> Wakeup {
        if deadline.is_some() || self.watched.is_some() {
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            let left: Option<Timespec> = left.and_then(|left| left.try_into().ok());
            let mut polled: SmallVec<[PollFd<'_>; 2]> = SmallVec::new();
            polled.push(PollFd::new(&self.wakeups, PollFlags::IN));
            let watched = self.watched.iter();
            polled.extend(watched.map(|socket| PollFd::new(&**socket, PollFlags::IN)));
            match poll(&mut polled, left.as_ref()) {
                Ok(0) => return Wakeup::Deadline,
                Err(_) => return Wakeup::Own,
                // Our own wakeups come first, because signals do.
                Ok(_) if polled[0].revents().is_empty() => return Wakeup::Watched,
                Ok(_) => {}
            }
        }
        match self.wakeups.read(&mut [0; 64]) {
            Err(error) if error.kind() != ErrorKind::Interrupted => {
                unreachable!("our own socket, both ends of which are open: {error}")
            }
            _ => Wakeup::Own,
        }
    }
}

/// The event that ends a sleep.
enum Wakeup {
    Own,
    Watched,
    Deadline,
}

impl<T> Drop for Events<T> {
    fn drop(&mut self) {
        self.ids.drain(..).for_each(|id| {
            low_level::unregister(id);
        });
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    /// One test for all, because signals belong to the whole process.
    #[test]
    fn signals_and_calls_are_delivered() {
        let mut events = Events::new().unwrap();
        let caller = events.caller();
        low_level::raise(SIGUSR1).unwrap();
        low_level::raise(SIGHUP).unwrap();
        caller.send(1);
        assert!(matches!(events.next(None), Event::Refresh));
        assert!(matches!(events.next(None), Event::Print));
        assert!(matches!(events.next(None), Event::Call(1)));

        let sender = thread::spawn(move || (2..10_000).for_each(|n| caller.send(n)));
        for n in 2..10_000 {
            assert!(matches!(events.next(None), Event::Call(call) if call == n));
        }
        sender.join().unwrap();
        events.put_back(vec![7, 8]);
        events.caller().send(9);
        for n in 7..10 {
            assert!(matches!(events.next(None), Event::Call(call) if call == n));
        }
        assert!(matches!(events.next(Some(Instant::now())), Event::Deadline));
        low_level::raise(SIGTERM).unwrap();
        assert!(matches!(events.next(None), Event::End("SIGTERM")));
    }
}

//! Panics: the process serves or it ends, it never stays half alive.
//!
//! A worker's panic fails the request that it was executing. Any other one ends the process where it happens: nothing is
//! unwound and nothing is cleaned up, so that memory shared with the frontend is as after `kill -9`, which recovery can
//! deal with. The kernel releases the locks, the socket's file is left for the successor to replace.

use std::any::Any;
use std::cell::Cell;
use std::io::Write;
use std::panic::{self, AssertUnwindSafe};
use std::thread;

/// The exit status after a panic, as Rust has it for a panic of the main thread.
const STATUS: i32 = 101;

pub(crate) type Panic = Box<dyn Any + Send>;

thread_local! {
    /// A panic of this thread will be caught.
    static CONTAINED: Cell<bool> = const { Cell::new(false) };
}

/// From here on a panic ends the process, after a message, unless it is one of a worker's request.
pub fn end_the_process() {
    let report = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        report(info);
        // A thread that has no locals any more contains nothing.
        if CONTAINED.try_with(Cell::get).unwrap_or(false) {
            return;
        }
        let thread = thread::current();
        let message = format!(
            "error: thread {} has panicked (this is a bug): ending the process; a restarted one finishes the requests \
             in flight\n",
            thread.name().unwrap_or("(without a name)")
        );
        // There is nobody left to tell if this fails.
        let _ = std::io::stderr().write_all(message.as_bytes());
        // SAFETY: no handler and no destructor runs; that is the point.
        unsafe { libc::_exit(STATUS) }
    }));
}

/// Runs `f`, whose panic the caller deals with.
pub(crate) fn contain<T>(f: impl FnOnce() -> T) -> Result<T, Panic> {
    let before = CONTAINED.replace(true);
    let result = panic::catch_unwind(AssertUnwindSafe(f));
    CONTAINED.set(before);
    result
}

/// The text of a panic, if it has one.
pub(crate) fn message(payload: &Panic) -> &str {
    payload
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("(no message)")
}

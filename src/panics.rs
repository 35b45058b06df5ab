//! Panics: the process either serves or ends. It never stays half alive.
//!
//! A worker's panic fails the request that the worker was executing. Any other panic ends the process on the spot,
//! without unwinding or cleaning up. So memory shared with the frontend is left as after `kill -9`, which recovery can
//! handle. The kernel releases the locks. The socket's file stays, and the successor replaces it.

use std::any::Any;
use std::cell::Cell;
use std::io::Write;
use std::panic::{self, AssertUnwindSafe};
use std::thread;

use crate::sys;

/// The exit status after a panic; the same that Rust uses for a panic of the main thread.
const STATUS: i32 = 101;

pub(crate) type Panic = Box<dyn Any + Send>;

thread_local! {
    /// Whether a panic of this thread will be caught.
    static CONTAINED: Cell<bool> = const { Cell::new(false) };
}

/// Makes every panic from now on print a message and end the process, except panics in a worker's request.
pub fn end_the_process() {
    let report = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        report(info);
        // A thread whose locals are already gone catches nothing.
        if CONTAINED.try_with(Cell::get).unwrap_or(false) {
            return;
        }
        let thread = thread::current();
        let message = format!(
            "error: thread {} has panicked (this is a bug): ending the process; after a restart, the new process \
             finishes the requests in flight\n",
            thread.name().unwrap_or("(unnamed)")
        );
        // If this fails, there is no other way to report it.
        let _ = std::io::stderr().write_all(message.as_bytes());
        sys::process::exit_now(STATUS)
    }));
}

/// Runs `f` and catches a panic, which the caller handles.
pub(crate) fn contain<T>(f: impl FnOnce() -> T) -> Result<T, Panic> {
    let before = CONTAINED.replace(true);
    let result = panic::catch_unwind(AssertUnwindSafe(f));
    CONTAINED.set(before);
    result
}

/// Returns the message of a panic, or a placeholder.
pub(crate) fn message(payload: &Panic) -> &str {
    payload
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("(no message)")
}

//! The end of a process that has made a system call which its filter does not allow: one line on stderr that names the call
//! and the thread, then a kill.
//!
//! The kernel has not executed the call, and raises SIGSYS on the thread that made it. The handler runs there. It takes no
//! lock, allocates nothing, and calls only async-signal-safe functions. Its last step is a fatal call
//! ([`fatal`](super::fatal)), so the process ends as if the kernel had killed it for the first call.
//!
//! A thread that blocks SIGSYS, as some threads of librbd do, is killed without the line.

use std::io;
use std::mem;
use std::ptr;

use crate::sys::status;

/// The `si_code` of a signal that a filter has raised.
const SYS_SECCOMP: libc::c_int = 1;
/// Size of a thread's name in the kernel, with the final zero.
const NAME: usize = 16;

/// The kernel's `siginfo` for SIGSYS.
#[repr(C)]
struct Info {
    _signal: libc::c_int,
    _error: libc::c_int,
    code: libc::c_int,
    _address: *mut libc::c_void,
    call: libc::c_int,
    architecture: libc::c_uint,
}

/// Reports forbidden calls from now on.
///
/// # Errors
/// The system refuses to install the handler.
pub(super) fn report() -> io::Result<()> {
    // SAFETY: all zeroes is a valid sigaction: the default action.
    let mut action: libc::sigaction = unsafe { mem::zeroed() };
    let handler: extern "C" fn(libc::c_int, *const Info, *mut libc::c_void) = on_violation;
    action.sa_sigaction = handler as libc::sighandler_t;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    // SAFETY: the set is ours.
    unsafe { libc::sigfillset(&raw mut action.sa_mask) };
    // SAFETY: the handler is async-signal-safe and lives as long as the process.
    status(unsafe { libc::sigaction(libc::SIGSYS, &raw const action, ptr::null_mut()) })
}

extern "C" fn on_violation(signal: libc::c_int, info: *const Info, _context: *mut libc::c_void) {
    // SAFETY: the kernel hands over a valid siginfo.
    let info = unsafe { &*info };
    if info.code == SYS_SECCOMP {
        let mut name = [0; NAME];
        // SAFETY: the kernel writes at most 16 bytes, with a final zero.
        unsafe { libc::prctl(libc::PR_GET_NAME, name.as_mut_ptr()) };
        print(&Line::of(&name, info.call, info.architecture));
    }
    // In a confined thread, this is fatal. Otherwise the signal does what it does without a handler.
    // SAFETY: runs no code of ours.
    unsafe { libc::signal(signal, libc::SIG_DFL) };
    // SAFETY: takes a number only. The signal arrives when the handler returns.
    unsafe { libc::raise(signal) };
}

/// Writes to stderr. A socket whose reader is stuck does not keep the process alive.
fn print(line: &Line) {
    let (bytes, flags) = (line.bytes(), libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL);
    // SAFETY: the bytes live until the call returns.
    let sent = unsafe { libc::send(libc::STDERR_FILENO, bytes.as_ptr().cast(), bytes.len(), flags) };
    if sent < 0 && io::Error::last_os_error().raw_os_error() == Some(libc::ENOTSOCK) {
        // SAFETY: as above. If this fails, there is no other way to report it.
        unsafe { libc::write(libc::STDERR_FILENO, bytes.as_ptr().cast(), bytes.len()) };
    }
}

/// A text in a place of fixed size. What does not fit is left out.
struct Line {
    text: [u8; 320],
    len: usize,
}

impl Line {
    fn of(name: &[u8; NAME], call: libc::c_int, architecture: libc::c_uint) -> Self {
        let mut line = Self {
            text: [0; 320],
            len: 0,
        };
        line.push(b"error: thread ");
        line.push(name.split(|byte| *byte == 0).next().unwrap_or_default());
        line.push(b" has made system call ");
        line.number(call.unsigned_abs(), 10);
        line.push(b" (architecture 0x");
        line.number(architecture, 16);
        line.push(
            b"), which the sandbox does not allow: ending the process; if no guest has attacked it, report this \
              line as a bug, and run with --sandbox log until it is fixed\n",
        );
        line
    }

    fn bytes(&self) -> &[u8] {
        self.text.get(..self.len).unwrap_or_default()
    }

    fn push(&mut self, bytes: &[u8]) {
        let room = self.text.iter_mut().skip(self.len);
        self.len += room.zip(bytes).map(|(to, from)| *to = *from).count();
    }

    fn number(&mut self, number: u32, base: u32) {
        if let Some(rest) = number.checked_div(base).filter(|rest| *rest > 0) {
            self.number(rest, base);
        }
        let digit = char::from_digit(number % base, base).unwrap_or('?');
        self.push(digit.encode_utf8(&mut [0; 4]).as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_names_thread_call_and_architecture() {
        let line = Line::of(b"iothread0\0\0\0\0\0\0\0", 41, 0xc000_003e);
        let text = str::from_utf8(line.bytes()).unwrap();
        let begin = "error: thread iothread0 has made system call 41 (architecture 0xc000003e), which ";
        assert!(text.starts_with(begin) && text.ends_with("fixed\n"), "{text}");
        let longest = Line::of(b"123456789012345\0", i32::MIN, u32::MAX);
        assert!(longest.bytes().ends_with(b"fixed\n"), "everything fits");
    }
}

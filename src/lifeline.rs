//! A pipe that stays open as long as this process, or the kernel, may still do I/O for its disks. Any thread.
//!
//! The end of a process does not say that. An io_uring outlives its process until its last request has ended, so each
//! ring has the writing end in its table of files. A connector outlives it until its server has ended the last request,
//! and has the writing end, too. Another process that has the reading end sees when all is over.

use std::io::{self, PipeReader, PipeWriter, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

static LIFELINE: OnceLock<(PipeReader, PipeWriter)> = OnceLock::new();

/// The time after which a wait looks whether it must end.
const GLANCE: Duration = Duration::from_millis(50);

/// Makes the pipe. Processes that are forked later inherit the writing end, and close it unless they do I/O for disks.
///
/// # Errors
/// No file descriptor is left.
pub(crate) fn make() -> io::Result<()> {
    let pipe = io::pipe()?;
    // If it was made before, that one stays.
    let _ = LIFELINE.set(pipe);
    Ok(())
}

/// Returns the end that another process may have.
pub(crate) fn reader() -> Option<BorrowedFd<'static>> {
    LIFELINE.get().map(|(reader, _)| reader.as_fd())
}

/// Returns the end for the kernel and for connectors.
pub(crate) fn writer() -> Option<BorrowedFd<'static>> {
    LIFELINE.get().map(|(_, writer)| writer.as_fd())
}

/// Returns whether nobody has the writing end any more. Waits for that up to `time`.
fn is_over(reader: &impl AsFd, time: Duration) -> bool {
    // Asks for nothing, so that only the end of a pipe is seen, and not data or another kind of file.
    let mut polled = [PollFd::new(reader, PollFlags::empty())];
    let time = Timespec::try_from(time).ok();
    let _ = poll(&mut polled, time.as_ref());
    polled[0].revents().contains(PollFlags::HUP)
}

/// The promise to another process that what it was told still holds. Dropping it ends the promise, and tells that process.
/// If this process is killed, the promise holds.
#[derive(Debug)]
pub(crate) struct Promise(PipeWriter);

impl Promise {
    /// Makes a promise. Returns the other process's end.
    ///
    /// # Errors
    /// No file descriptor is left.
    pub(crate) fn new() -> io::Result<(Self, PipeReader)> {
        let (reader, writer) = io::pipe()?;
        Ok((Self(writer), reader))
    }
}

impl Drop for Promise {
    fn drop(&mut self) {
        // Fails only if the other process has ended.
        let _ = self.0.write(&[0]);
    }
}

/// Returns whether the other process has ended its [`Promise`]. One that was killed has not.
pub(crate) fn is_broken(promise: &OwnedFd) -> bool {
    let mut polled = [PollFd::new(promise, PollFlags::IN)];
    let _ = poll(&mut polled, Some(&Timespec::default()));
    polled[0].revents().contains(PollFlags::IN)
}

/// Waits until the process whose reading end this is has ended with all its I/O. Gives up when `must_end` returns true, or
/// at `deadline`. Returns whether all has ended.
pub(crate) fn wait_for_end(reader: &OwnedFd, deadline: Instant, must_end: impl Fn() -> bool) -> bool {
    loop {
        let left = deadline.saturating_duration_since(Instant::now()).min(GLANCE);
        if is_over(reader, left) {
            return true;
        }
        if left.is_zero() || must_end() {
            return false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_ends_with_its_last_writer() {
        let (reader, writer) = io::pipe().unwrap();
        let (reader, second) = (OwnedFd::from(reader), writer.try_clone().unwrap());
        let ended = || wait_for_end(&reader, Instant::now(), || false);
        drop(writer);
        assert!(!ended());
        drop(second);
        assert!(ended());
    }

    #[test]
    fn other_files_have_no_end() {
        let (reader, mut writer) = io::pipe().unwrap();
        writer.write_all(&[1]).unwrap();
        let file = tempfile::tempfile().unwrap();
        for fd in [OwnedFd::from(reader), file.into()] {
            assert!(!wait_for_end(&fd, Instant::now(), || false));
        }
    }

    #[test]
    fn a_promise_ends_with_this_process_unless_that_is_killed() {
        let (promise, other) = Promise::new().unwrap();
        let other = OwnedFd::from(other);
        assert!(!is_broken(&other), "the process is alive");
        drop(promise);
        assert!(is_broken(&other), "it has ended the promise");
        let (promise, other) = Promise::new().unwrap();
        let killed = std::mem::ManuallyDrop::new(promise);
        // SAFETY: closed once, as the kernel does for a process that is killed.
        drop(unsafe { std::ptr::read(&killed.0) });
        assert!(!is_broken(&other.into()));
    }

    #[test]
    fn a_wait_ends_when_it_must() {
        let (reader, _writer) = io::pipe().unwrap();
        let deadline = Instant::now() + Duration::from_secs(600);
        assert!(!wait_for_end(&reader.into(), deadline, || true));
    }
}

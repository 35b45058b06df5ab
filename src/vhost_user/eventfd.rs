//! The descriptors that a frontend gives for kicks, calls and errors.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;

use super::error::SessionError;
use crate::status::status;

/// Takes an eventfd and has reads and writes of it return at once: a frontend must not be able to stop an IOThread.
///
/// # Errors
/// Anything else: what cannot be waited for, is always ready, or does something else when it is written to.
pub(super) fn checked(file: File) -> Result<File, SessionError> {
    if !is_eventfd(&file).map_err(SessionError::EventFd)? {
        return Err(SessionError::NoEventFd);
    }
    set_non_blocking(&file).map_err(SessionError::EventFd)?;
    Ok(file)
}

/// Empties an eventfd that is full, so that whoever waits to write to it goes on.
///
/// It says no less then: the waiting write makes it readable again.
pub(super) fn make_room(mut file: &File) {
    let mut poll = libc::pollfd {
        fd: file.as_raw_fd(),
        events: libc::POLLOUT,
        revents: 0,
    };
    // SAFETY: one valid entry.
    let full = unsafe { libc::poll(&raw mut poll, 1, 0) } == 0;
    if full && set_non_blocking(file).is_ok() {
        // Somebody else may have been faster, which is as good.
        let _ = file.read(&mut [0; 8]);
    }
}

/// Of the files without a type only eventfds take a write, and adding nothing changes nothing and never waits.
fn is_eventfd(mut file: &File) -> io::Result<bool> {
    // SAFETY: all zeroes is a valid stat.
    let mut stat: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: the struct is valid for the call.
    status(unsafe { libc::fstat(file.as_raw_fd(), &raw mut stat) })?;
    let anonymous = stat.st_mode & libc::S_IFMT == 0;
    Ok(anonymous && file.write(&0u64.to_ne_bytes()).is_ok_and(|len| len == 8))
}

fn set_non_blocking(file: &File) -> io::Result<()> {
    // SAFETY: the fd is open; F_GETFL takes no further argument.
    let flags = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETFL) };
    // SAFETY: the fd is open; F_SETFL takes an int.
    if flags >= 0 && unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETFL, flags | libc::O_NONBLOCK) } >= 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};

    use vmm_sys_util::eventfd::EventFd;

    use super::*;

    fn owned(fd: i32) -> OwnedFd {
        assert!(fd >= 0);
        // SAFETY: just made, and nobody else has it.
        unsafe { OwnedFd::from_raw_fd(fd) }
    }

    #[test]
    fn every_eventfd_will_do_and_keeps_its_count() {
        for (flags, count) in [(0, 0), (0, 5), (0, u64::MAX - 1), (libc::EFD_SEMAPHORE, 1)] {
            let event = EventFd::new(flags).unwrap();
            event.write(count).unwrap();
            // SAFETY: a duplicate that nobody else has.
            let file = unsafe { File::from_raw_fd(event.try_clone().unwrap().into_raw_fd()) };
            let mut file = checked(file).unwrap();
            // Non-blocking by now.
            let mut held = [0; 8];
            let read = std::io::Read::read(&mut file, &mut held);
            assert_eq!(read.is_ok(), count > 0);
            assert_eq!(u64::from_ne_bytes(held), count);
        }
    }

    #[test]
    fn nothing_else_is_an_eventfd() {
        let (reader, writer) = std::io::pipe().unwrap();
        let (one, other) = std::os::unix::net::UnixStream::pair().unwrap();
        let open = |path| File::options().read(true).write(true).open(path).unwrap();
        // SAFETY: these make descriptors and touch no memory.
        let (epoll, timer, inotify) = unsafe {
            (
                libc::epoll_create1(0),
                libc::timerfd_create(libc::CLOCK_MONOTONIC, 0),
                libc::inotify_init1(0),
            )
        };
        let files: [File; 12] = [
            OwnedFd::from(reader).into(),
            OwnedFd::from(writer).into(),
            OwnedFd::from(one).into(),
            OwnedFd::from(other).into(),
            open("/dev/null"),
            open("/dev/zero"),
            tempfile::tempfile().unwrap(),
            File::open("/").unwrap(),
            File::open("/proc/self/maps").unwrap(),
            owned(epoll).into(),
            owned(timer).into(),
            owned(inotify).into(),
        ];
        for file in files {
            let name = format!("{file:?}");
            assert!(checked(file).is_err(), "{name}");
        }
    }
}

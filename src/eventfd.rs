//! Eventfds that somebody else has made and uses as well: kicks, calls and errors.
//!
//! Their flags are those of the open file, which is the frontend's (and KVM's), too: they are left alone. Nothing here
//! waits, whether such a file is non-blocking or not.

use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::os::fd::AsRawFd;

use crate::status::status;

/// Returns whether a file is an eventfd, without a change that anybody could see.
///
/// Writing even a 0 would wake whoever waits for it: KVM injects an interrupt then.
///
/// # Errors
/// The file descriptor is not open.
pub(crate) fn is_eventfd(file: &File) -> io::Result<bool> {
    // SAFETY: all zeroes is a valid stat.
    let mut stat: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: the struct is valid for the call.
    status(unsafe { libc::fstat(file.as_raw_fd(), &raw mut stat) })?;
    let anonymous = stat.st_mode & libc::S_IFMT == 0;
    Ok(anonymous && takes_eight_bytes(file) && wants_more_than(file, 4))
}

/// Of the files without a type few can be written to at all. An eventfd looks at the length, then at the memory.
fn takes_eight_bytes(file: &File) -> bool {
    // SAFETY: the kernel finds nothing at this address, and says so.
    let written = unsafe { libc::write(file.as_raw_fd(), std::ptr::null(), 8) };
    written < 0 && io::Error::last_os_error().raw_os_error() == Some(libc::EFAULT)
}

/// An eventfd refuses to be read in parts. Others that can be written to do not know reads that never wait.
fn wants_more_than(file: &File, len: usize) -> bool {
    let read = read_nowait(file, &mut [0; 8][..len]);
    read.is_err_and(|error| error.raw_os_error() == Some(libc::EINVAL))
}

/// Takes what was added to an eventfd. Nothing being there is no error: somebody else may have taken it.
///
/// # Errors
/// The file is no eventfd, or the kernel is older than 5.8.
pub(crate) fn drain(file: &impl AsRawFd) -> io::Result<()> {
    match read_nowait(file, &mut [0; 8]) {
        Ok(0) => Err(ErrorKind::UnexpectedEof.into()),
        Ok(_) => Ok(()),
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Reads without waiting, whatever the flags of the file.
fn read_nowait(file: &impl AsRawFd, buf: &mut [u8]) -> io::Result<usize> {
    let iov = libc::iovec {
        iov_base: buf.as_mut_ptr().cast(),
        iov_len: buf.len(),
    };
    // SAFETY: one range, valid for its length; offset -1 stands for a file that has none.
    let len = unsafe { libc::preadv2(file.as_raw_fd(), &raw const iov, 1, -1, libc::RWF_NOWAIT) };
    usize::try_from(len).map_err(|_| io::Error::last_os_error())
}

/// Returns whether reads and writes of the file wait, as its owner has it for now.
pub(crate) fn is_blocking(file: &File) -> bool {
    // SAFETY: the fd is open; F_GETFL takes no further argument.
    let flags = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETFL) };
    flags & libc::O_NONBLOCK == 0
}

/// Adds one. A counter that is full has been signalled anyway.
///
/// A `blocking` file, as [`is_blocking`] says, is looked at first. Only its owner can fill it after that look, or can
/// have made it blocking since: then this waits until [`make_room`] or the owner ends the wait.
///
/// # Errors
/// The file is no eventfd.
pub(crate) fn signal(mut file: &File, blocking: bool) -> io::Result<()> {
    loop {
        if blocking && is_full(file) {
            return Ok(());
        }
        match file.write(&1u64.to_ne_bytes()) {
            Ok(_) => return Ok(()),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Empties an eventfd that is full, so that whoever waits to write to it goes on.
///
/// It says no less then: the waiting write makes it readable again.
pub(crate) fn make_room(file: &File) {
    if is_full(file) {
        // Somebody else may have been faster, which is as good.
        let _ = drain(file);
    }
}

fn is_full(file: &File) -> bool {
    let mut poll = libc::pollfd {
        fd: file.as_raw_fd(),
        events: libc::POLLOUT,
        revents: 0,
    };
    // SAFETY: one valid entry.
    unsafe { libc::poll(&raw mut poll, 1, 0) == 0 }
}

#[cfg(test)]
mod tests {
    use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};

    use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
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
            assert!(is_eventfd(&file).unwrap());
            assert!(is_blocking(&file));
            let mut held = [0; 8];
            let read = read_nowait(&file, &mut held);
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
            assert!(!is_eventfd(&file).unwrap(), "{name}");
        }
    }

    #[test]
    fn looking_at_an_eventfd_wakes_nobody() {
        let event = EventFd::new(0).unwrap();
        // SAFETY: a duplicate that nobody else has.
        let file = unsafe { File::from_raw_fd(event.try_clone().unwrap().into_raw_fd()) };
        let epoll = Epoll::new().unwrap();
        let all = EventSet::IN | EventSet::OUT | EventSet::EDGE_TRIGGERED;
        epoll
            .ctl(ControlOperation::Add, event.as_raw_fd(), EpollEvent::new(all, 0))
            .unwrap();
        let woken = || epoll.wait(0, &mut [EpollEvent::default()]).unwrap();
        assert_eq!(woken(), 1, "it can be written to");
        assert!(is_eventfd(&file).unwrap());
        assert_eq!(woken(), 0);
        // What must not be done.
        event.write(0).unwrap();
        assert_eq!(woken(), 1);
    }

    #[test]
    fn a_full_eventfd_that_blocks_is_signalled_already() {
        let event = EventFd::new(0).unwrap();
        // SAFETY: a duplicate that nobody else has.
        let file = unsafe { File::from_raw_fd(event.try_clone().unwrap().into_raw_fd()) };
        event.write(u64::MAX - 1).unwrap();
        signal(&file, true).unwrap();
        make_room(&file);
        signal(&file, true).unwrap();
        assert_eq!(event.read().unwrap(), 1);
    }
}

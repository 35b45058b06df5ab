//! Eventfds that the frontend made and shares with us: kicks, calls and errors.
//!
//! Their flags belong to the open file, which the frontend (and KVM) use too, so we leave them alone. Nothing here
//! waits, whether the file is non-blocking or not, except for [`signal`].

use std::fs::File;
use std::io::{self, ErrorKind, IoSliceMut, Write};
use std::os::fd::AsFd;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::fstat;
use rustix::io::{ReadWriteFlags, preadv2};

use crate::sys;

/// Returns whether a file is an eventfd, without an effect that anybody could notice.
///
/// Even writing a 0 would wake everybody who waits for the eventfd: KVM would inject an interrupt.
///
/// # Errors
/// The file descriptor is not open.
pub(crate) fn is_eventfd(file: &File) -> io::Result<bool> {
    let anonymous = fstat(file)?.st_mode & libc::S_IFMT == 0;
    Ok(anonymous && takes_eight_bytes(file) && wants_more_than(file, 4))
}

/// Returns whether a write of 8 bytes passes the file's check of the length. Few files without a type can be written to
/// at all. An eventfd checks the length first and then the memory.
fn takes_eight_bytes(file: &File) -> bool {
    let written = sys::file::write_nothing(file, 8);
    written.is_err_and(|error| error.raw_os_error() == Some(libc::EFAULT))
}

/// Returns whether a read of `len` bytes is refused as too short. An eventfd cannot be read in parts. Other writable
/// files without a type do not support reads that never wait.
fn wants_more_than(file: &File, len: usize) -> bool {
    let read = read_nowait(file, &mut [0; 8][..len]);
    read.is_err_and(|error| error.raw_os_error() == Some(libc::EINVAL))
}

/// Takes the signal of an eventfd, without waiting. An empty counter is no error: another reader may have been faster.
///
/// # Errors
/// The file is no eventfd, or the kernel is older than 5.8.
pub(crate) fn drain(file: impl AsFd) -> io::Result<()> {
    match read_nowait(file, &mut [0; 8]) {
        Ok(0) => Err(ErrorKind::UnexpectedEof.into()),
        Ok(_) => Ok(()),
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Reads without waiting, whatever the file's flags.
fn read_nowait(file: impl AsFd, buf: &mut [u8]) -> io::Result<usize> {
    // Offset -1 means the current position; an eventfd has none.
    let position = u64::MAX;
    let mut bufs = [IoSliceMut::new(buf)];
    Ok(preadv2(file, &mut bufs, position, ReadWriteFlags::NOWAIT)?)
}

/// Adds one to the counter. A full counter counts as signalled already, but waits for room if the file is blocking: see
/// [`Watched`](crate::watchdog::Watched).
///
/// # Errors
/// The file is no eventfd.
pub(crate) fn signal(mut file: &File) -> io::Result<()> {
    loop {
        match file.write(&1u64.to_ne_bytes()) {
            Ok(_) => return Ok(()),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Returns whether the counter is so full that nothing can be added.
pub(crate) fn is_full(file: &File) -> bool {
    let mut polled = [PollFd::new(file, PollFlags::OUT)];
    matches!(poll(&mut polled, Some(&Timespec::default())), Ok(0))
}

#[cfg(test)]
mod tests {
    use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd};

    use rustix::event::epoll;
    use rustix::fs::inotify;
    use rustix::time::{TimerfdClockId, TimerfdFlags, timerfd_create};
    use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
    use vmm_sys_util::eventfd::EventFd;

    use super::*;

    #[test]
    fn every_eventfd_is_recognised_and_keeps_its_count() {
        for (flags, count) in [(0, 0), (0, 5), (0, u64::MAX - 1), (libc::EFD_SEMAPHORE, 1)] {
            let event = EventFd::new(flags).unwrap();
            event.write(count).unwrap();
            // SAFETY: a duplicate that nobody else has.
            let file = unsafe { File::from_raw_fd(event.try_clone().unwrap().into_raw_fd()) };
            assert!(is_eventfd(&file).unwrap());
            let mut held = [0; 8];
            let read = read_nowait(&file, &mut held);
            assert_eq!(read.is_ok(), count > 0);
            assert_eq!(u64::from_ne_bytes(held), count);
        }
    }

    #[test]
    fn no_other_file_is_an_eventfd() {
        let (reader, writer) = std::io::pipe().unwrap();
        let (one, other) = std::os::unix::net::UnixStream::pair().unwrap();
        let open = |path| File::options().read(true).write(true).open(path).unwrap();
        let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::empty()).unwrap();
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
            epoll::create(epoll::CreateFlags::empty()).unwrap().into(),
            timer.into(),
            inotify::init(inotify::CreateFlags::empty()).unwrap().into(),
        ];
        for file in files {
            let name = format!("{file:?}");
            assert!(!is_eventfd(&file).unwrap(), "{name}");
        }
    }

    #[test]
    fn checking_an_eventfd_wakes_nobody() {
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
        // By contrast, even a write of 0 wakes waiters.
        event.write(0).unwrap();
        assert_eq!(woken(), 1);
    }
}

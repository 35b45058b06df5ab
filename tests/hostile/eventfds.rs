//! Kick and call eventfds: replaced on a running ring, written without end, or no eventfds at all.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use testkit::memory::{PATIENCE, wait_readable};
use testkit::process::SetAtEnd;
use testkit::raw::{Answer, msg};
use testkit::vm::{DATA, EVENT_IDX, HEADER, STATUS, Vm, header, readable, writable};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::rings::{assert_unharmed, start};

#[test]
fn a_running_rings_call_eventfd_is_replaceable() {
    let daemon = start(&[]);
    let mut vm = Vm::start(&daemon, 1);
    for _ in 0..50 {
        vm.rings[0].call = EventFd::new(EFD_NONBLOCK).expect("make an eventfd");
        let fd = vm.rings[0].call.as_raw_fd();
        assert_eq!(vm.client.vring_fd(msg::SET_VRING_CALL, 0, Some(fd)), Answer::Ack);
        vm.read_sector(0, 1);
        assert!(
            wait_readable(&vm.rings[0].call, PATIENCE),
            "the new eventfd is not used"
        );
    }
}

#[test]
fn a_new_call_eventfd_signals_earlier_completions() {
    let daemon = start(&[]);
    for features in [0, EVENT_IDX] {
        let mut vm = Vm::start_with(&daemon, 1, 16, features);
        // Without a call eventfd requests complete silently...
        assert_eq!(vm.client.vring_fd(msg::SET_VRING_CALL, 0, None), Answer::Ack);
        vm.read_sector(0, 1);
        // ... and a driver that sets one must look at the ring.
        let call = EventFd::new(EFD_NONBLOCK).expect("make an eventfd");
        assert_eq!(
            vm.client.vring_fd(msg::SET_VRING_CALL, 0, Some(call.as_raw_fd())),
            Answer::Ack
        );
        assert!(
            wait_readable(&call, PATIENCE),
            "features {features:#x}: a notification was lost"
        );
    }
}

#[test]
fn a_running_rings_kick_eventfd_is_replaceable() {
    let daemon = start(&[]);
    let mut vm = Vm::start(&daemon, 1);
    for _ in 0..50 {
        vm.rings[0].kick = EventFd::new(EFD_NONBLOCK).expect("make an eventfd");
        let fd = vm.rings[0].kick.as_raw_fd();
        assert_eq!(vm.client.vring_fd(msg::SET_VRING_KICK, 0, Some(fd)), Answer::Ack);
        vm.read_sector(0, 1);
    }
}

#[test]
fn any_kind_of_call_fd_is_harmless() {
    let mut daemon = start(&[]);
    let path = daemon.dir().join("regular");
    let regular = std::fs::File::create(&path).expect("make a file");
    let read_only = std::fs::File::open("/dev/null").expect("open /dev/null");
    let (reader, writer) = std::io::pipe().expect("make a pipe");
    drop(reader);
    let full = EventFd::new(0).expect("make an eventfd");
    full.write(u64::MAX - 1).expect("fill it");
    let fds = [
        ("a regular file", regular.as_raw_fd()),
        ("a file that cannot be written", read_only.as_raw_fd()),
        ("a pipe without a reader", writer.as_raw_fd()),
        ("an eventfd that is full and blocks", full.as_raw_fd()),
    ];
    for (name, fd) in fds {
        let mut vm = Vm::start(&daemon, 2);
        // The descriptor may be refused. If not, requests must still complete and the other ring must still work.
        if vm.client.vring_fd(msg::SET_VRING_CALL, 0, Some(fd)) == Answer::Ack {
            vm.poke(HEADER, &header(0, 1));
            vm.send(
                0,
                &[readable(HEADER, 16), writable(DATA, 512), writable(STATUS, 1)],
            );
            vm.outcome(0);
            vm.read_sector(1, 1);
        }
        assert!(daemon.is_alive(), "{name}");
    }
    assert_unharmed(&mut daemon);
}

#[test]
fn any_kind_of_kick_fd_is_harmless() {
    let mut daemon = start(&[]);
    let path = daemon.dir().join("regular");
    let regular = std::fs::File::create(&path).expect("make a file");
    let null = std::fs::File::open("/dev/null").expect("open /dev/null");
    let (reader, writer) = std::io::pipe().expect("make a pipe");
    drop(writer);
    // SAFETY: no memory is involved; the descriptor is checked and owned below.
    let epoll = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
    assert!(epoll >= 0);
    // SAFETY: the descriptor was just made and has no other owner.
    let epoll = unsafe { OwnedFd::from_raw_fd(epoll) };
    let fds = [
        ("a regular file", regular.as_raw_fd()),
        ("a device that is always ready", null.as_raw_fd()),
        ("a pipe that ended", reader.as_raw_fd()),
        ("an epoll", epoll.as_raw_fd()),
    ];
    for (name, fd) in fds {
        let mut vm = Vm::start(&daemon, 2);
        let _ = vm.client.vring_fd(msg::SET_VRING_KICK, 0, Some(fd));
        assert!(daemon.is_alive(), "{name}");
        drop(vm);
        assert_unharmed(&mut daemon);
    }
}

#[test]
fn a_kick_storm_does_not_starve_others() {
    let mut daemon = start(&[]);
    let mut vm = Vm::start(&daemon, 2);
    let kick = vm.rings[0].kick.try_clone().expect("clone an eventfd");
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _stop = SetAtEnd(&stop);
        scope.spawn(|| {
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                let _ = kick.write(1);
            }
        });
        for _ in 0..200 {
            vm.read_sector(1, 1);
        }
    });
    drop(vm);
    assert_unharmed(&mut daemon);
}

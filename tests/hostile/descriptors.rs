//! File descriptors of every kind with each message that takes one.

use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::arena::Arena;
use testkit::raw::{Answer, mem_table, msg};
use testkit::vm::{DATA, HEADER, REGION, Ring, STATUS, Vm, header, linked, readable, writable};

fn owned(fd: RawFd) -> OwnedFd {
    assert!(fd >= 0, "{}", std::io::Error::last_os_error());
    // SAFETY: the descriptor was just made and has no other owner.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Makes one descriptor of each kind. None of them is an eventfd or shared memory.
fn kinds() -> Vec<(&'static str, OwnedFd)> {
    let (reader, _) = std::io::pipe().expect("make a pipe");
    let (_, writer) = std::io::pipe().expect("make a pipe");
    let (end, open_end) = std::io::pipe().expect("make a pipe");
    let (one, other) = UnixStream::pair().expect("make sockets");
    let dir = tempfile::tempdir().expect("make a directory");
    let listener = UnixListener::bind(dir.path().join("socket")).expect("make a socket");
    let event = EventFd::new(0).expect("make an eventfd");
    // SAFETY: these make descriptors and touch no memory.
    let (epoll, timer, inotify) = unsafe {
        (
            libc::epoll_create1(0),
            libc::timerfd_create(libc::CLOCK_MONOTONIC, 0),
            libc::inotify_init1(0),
        )
    };
    let epoll = owned(epoll);
    let mut wanted = libc::epoll_event { events: 1, u64: 0 };
    // SAFETY: the event is valid for the call.
    unsafe {
        libc::epoll_ctl(
            epoll.as_raw_fd(),
            libc::EPOLL_CTL_ADD,
            event.as_raw_fd(),
            &raw mut wanted,
        )
    };
    let open = |path| {
        File::options()
            .read(true)
            .write(true)
            .open(path)
            .expect("open a device")
    };
    vec![
        ("an empty file", tempfile::tempfile().expect("make a file").into()),
        ("a directory", File::open(dir.path()).expect("open it").into()),
        ("a device that takes everything", open("/dev/null").into()),
        ("a device that is always ready", open("/dev/zero").into()),
        (
            "a file of /proc",
            File::open("/proc/self/maps").expect("open it").into(),
        ),
        ("a pipe that has ended", reader.into()),
        ("a pipe without a reader", writer.into()),
        ("a pipe's end", end.into()),
        ("a pipe's other end", open_end.into()),
        ("a socket", one.into()),
        ("a socket's other end", other.into()),
        ("a socket that listens", listener.into()),
        ("an epoll", epoll),
        ("a timer", owned(timer)),
        ("an inotify", owned(inotify)),
        ("a path", File::open("/").map(|_| owned_path()).expect("open it")),
    ]
}

fn owned_path() -> OwnedFd {
    // SAFETY: the path is a C string.
    owned(unsafe { libc::open(c"/".as_ptr(), libc::O_PATH) })
}

#[test]
fn kicks_calls_and_errors_go_to_eventfds_only() {
    let mut arena = Arena::new();
    for (name, fd) in kinds() {
        for request in [msg::SET_VRING_KICK, msg::SET_VRING_CALL, msg::SET_VRING_ERR] {
            for running in [false, true] {
                arena.case(
                    &format!("request {request} with {name}, running: {running}"),
                    |daemon| {
                        let mut vm = Vm::start(daemon, if running { 2 } else { 0 });
                        let answer = vm.client.vring_fd(request, 0, Some(fd.as_raw_fd()));
                        assert_eq!(answer, Answer::Nak);
                        if running {
                            // The old eventfd is still used.
                            vm.read_sector(0, 3);
                            vm.read_sector(1, 4);
                        }
                    },
                );
            }
        }
    }
}

#[test]
fn memory_logs_and_regions_are_files_of_memory() {
    let mut arena = Arena::new();
    let event = EventFd::new(0).expect("make an eventfd");
    let (mut kinds, _open) = (kinds(), event.try_clone());
    // SAFETY: the duplicate has no other owner.
    kinds.push(("an eventfd", owned(unsafe { libc::dup(event.as_raw_fd()) })));
    for (name, fd) in kinds {
        // The daemon accepts memory that only it can see. The other kinds cannot be mapped.
        let sound = name == "a device that is always ready";
        let fd = fd.as_raw_fd();
        arena.client(&format!("SET_MEM_TABLE with {name}"), |client| {
            let answer = client.ask(msg::SET_MEM_TABLE, &mem_table(&[REGION]), &[fd]);
            assert!(answer.is_refusal() || sound, "{answer:?}");
        });
        arena.client(&format!("ADD_MEM_REG with {name}"), |client| {
            let answer = client.mem_region(msg::ADD_MEM_REG, REGION, &[fd]);
            assert!(answer.is_refusal() || sound, "{answer:?}");
        });
        arena.client(&format!("SET_LOG_BASE with {name}"), |client| {
            assert!(client.set_log(4096, 0, fd).is_none());
        });
        arena.client(&format!("SET_INFLIGHT_FD with {name}"), |client| {
            let numbers = [2_u16, 16, 0, 0].map(u16::to_le_bytes).concat();
            let payload = [&4096_u64.to_le_bytes()[..], &[0; 8], &numbers].concat();
            assert!(client.ask(msg::SET_INFLIGHT_FD, &payload, &[fd]).is_refusal());
        });
        arena.client(&format!("SET_BACKEND_REQ_FD with {name}"), |client| {
            client.provoke([msg::SET_BACKEND_REQ_FD, 1 | 8, 0], &[], &[fd]);
        });
    }
}

#[test]
fn read_only_files_are_refused_as_memory() {
    let mut arena = Arena::new();
    let file = tempfile::NamedTempFile::new_in("/dev/shm").expect("make a file in memory");
    file.as_file().set_len(1 << 20).expect("size it");
    let read_only = file
        .reopen()
        .and_then(|_| File::open(file.path()))
        .expect("open it");
    let fd = read_only.as_raw_fd();
    arena.client("SET_MEM_TABLE", |client| {
        let answer = client.ask(msg::SET_MEM_TABLE, &mem_table(&[REGION]), &[fd]);
        assert!(answer.is_refusal());
    });
    arena.client("SET_LOG_BASE", |client| {
        assert!(client.set_log(4096, 0, fd).is_none());
    });
}

#[test]
fn eventfds_in_any_state() {
    let mut arena = Arena::new();
    for (flags, count) in [
        (0, 0),
        (0, u64::MAX - 1),
        (EFD_NONBLOCK, u64::MAX - 1),
        (libc::EFD_SEMAPHORE, 1 << 20),
    ] {
        for request in [msg::SET_VRING_CALL, msg::SET_VRING_ERR, msg::SET_VRING_KICK] {
            arena.case(
                &format!("request {request} with flags {flags}, count {count}"),
                |daemon| {
                    let mut vm = Vm::start(daemon, 2);
                    let event = EventFd::new(flags).expect("make an eventfd");
                    event.write(count).expect("fill it");
                    let answer = vm.client.vring_fd(request, 0, Some(event.as_raw_fd()));
                    assert_eq!(answer, Answer::Ack);
                    for sector in 0..20 {
                        if request == msg::SET_VRING_CALL {
                            vm.read_sector(0, sector);
                        }
                        vm.read_sector(1, sector);
                    }
                },
            );
        }
    }
}

/// Makes a file blocking again.
fn set_blocking(fd: RawFd) {
    // SAFETY: no memory is involved.
    let set = unsafe { libc::fcntl(fd, libc::F_SETFL, libc::O_RDWR) };
    assert_eq!(set, 0);
}

#[test]
fn eventfds_that_block_after_all() {
    let mut arena = Arena::new();
    for request in [msg::SET_VRING_CALL, msg::SET_VRING_ERR, msg::SET_VRING_KICK] {
        for ask in [false, true] {
            arena.case(&format!("request {request}, then another one: {ask}"), |daemon| {
                let mut vm = Vm::start(daemon, 1);
                let event = EventFd::new(EFD_NONBLOCK).expect("make an eventfd");
                let fd = event.as_raw_fd();
                assert_eq!(vm.client.vring_fd(request, 0, Some(fd)), Answer::Ack);
                // The flags belong to the open file, which the frontend shares.
                let _ = event.read();
                set_blocking(fd);
                event.write(u64::MAX - 1).expect("fill it");
                if request == msg::SET_VRING_KICK {
                    vm.rings[0].kick = event.try_clone().expect("clone it");
                    vm.read_sector(0, 3);
                }
                // The request is answered, and then the IOThread waits for room in the eventfd.
                vm.poke(HEADER, &header(0, 3));
                let status = if request == msg::SET_VRING_ERR {
                    u64::MAX
                } else {
                    STATUS
                };
                let chain = [readable(HEADER, 16), writable(DATA, 512), writable(status, 1)];
                vm.put_descs(0, 0, &linked(0, &chain));
                vm.publish(0, 0);
                if request != msg::SET_VRING_KICK {
                    vm.kick(0);
                }
                if ask {
                    vm.client.stop_ring(0).expect("GET_VRING_BASE");
                }
            });
        }
    }
}

#[test]
fn one_eventfd_for_everything() {
    let mut arena = Arena::new();
    arena.case("kick, call and error of both queues", |daemon| {
        let mut vm = Vm::start(daemon, 0);
        let event = EventFd::new(0).expect("make an eventfd");
        for index in [0, 1] {
            let mut ring = Ring::new(index, 16);
            for place in [&mut ring.kick, &mut ring.call] {
                *place = event.try_clone().expect("clone it");
            }
            vm.start_ring(index, ring);
        }
        for sector in 0..20 {
            vm.read_sector(0, sector);
            vm.read_sector(1, sector);
        }
    });
}

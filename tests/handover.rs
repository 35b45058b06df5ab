//! Daemons follow each other: on an image that one hands to the next, and on a socket that outlives them.

mod common;

use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use common::daemon::{BINARY, Daemon, run};
use common::inflight::Inflight;
use common::process::Process;
use common::raw::{Answer, msg};
use common::target::image;
use common::vm::{Ring, SECTOR, USER, Vm};

/// A daemon on the image of another one, with a socket of its own.
fn beside(other: &Daemon, options: &[&str]) -> Daemon {
    let dir = tempfile::tempdir().expect("make a directory");
    let image = other.image_path();
    let image = image.to_str().expect("the path is UTF-8");
    let args = ["--socket-path", "vhost-user-blk.sock", "--blk-file", image];
    Daemon::start_with(dir, &[&args, options].concat())
}

fn stop(vm: &mut Vm) {
    vm.client.stop_ring(0).expect("stop the ring");
    vm.rings.clear();
}

/// Tries to start a ring; returns what the last message got.
fn try_to_start(vm: &mut Vm) -> Answer {
    let ring = Ring::new(0, 16);
    let user = |offset: usize| USER + offset as u64;
    vm.share_memory();
    let client = &mut vm.client;
    client.vring_state(msg::SET_VRING_NUM, 0, 16);
    client.vring_addr(0, user(ring.desc), user(ring.used), user(ring.avail));
    client.vring_fd(msg::SET_VRING_KICK, 0, Some(ring.kick.as_raw_fd()))
}

#[test]
fn a_second_daemon_on_an_image_is_refused_at_its_start() {
    let daemon = Daemon::start(&image(), &[]);
    let path = daemon.image_path();
    let path = path.to_str().expect("the path is UTF-8");
    let dir = tempfile::tempdir().expect("make a directory");
    let args = ["--socket-path", "s", "--blk-file", path];
    let exit = run(&args, dir.path());
    assert!(!exit.status.success(), "both serve the image");
    assert_eq!(exit.output.lines().count(), 1, "{}", exit.output);
    for word in [path, "in use", "--incoming"] {
        assert!(exit.output.contains(word), "{}", exit.output);
    }
}

#[test]
fn the_source_of_a_migration_hands_the_image_over_when_its_rings_stop() {
    let source = Daemon::start(&image(), &[]);
    let mut from = Vm::start(&source, 1);
    let destination = beside(&source, &["--incoming"]);
    assert_eq!(from.read_sector(0, 3), [3; SECTOR], "the source serves on");

    let mut to = Vm::connect(&destination, 0);
    assert_eq!(try_to_start(&mut to), Answer::Nak, "both would write");
    to.client.wait_for_end();
    let said = destination.output();
    let image = source.image_path();
    assert!(
        said.contains("in use") && said.contains(&*image.to_string_lossy()),
        "{said}"
    );

    stop(&mut from);
    let mut to = Vm::start(&destination, 1);
    assert_eq!(to.read_sector(0, 4), [4; SECTOR]);
    assert_eq!(try_to_start(&mut from), Answer::Nak, "both would write");

    // And back.
    stop(&mut to);
    let mut from = Vm::start(&source, 1);
    assert_eq!(from.read_sector(0, 5), [5; SECTOR]);
}

#[test]
fn a_failed_migration_leaves_the_image_to_the_source() {
    let source = Daemon::start(&image(), &[]);
    let mut from = Vm::start(&source, 1);
    let destination = beside(&source, &["--incoming"]);
    let to = Vm::connect(&destination, 0);
    stop(&mut from);
    from.start_ring(0, Ring::new(0, 16));
    assert_eq!(from.read_sector(0, 6), [6; SECTOR]);
    drop(to);
}

#[test]
fn the_image_stays_locked_until_the_last_ring_stops() {
    let source = Daemon::start(&image(), &["--num-queues", "2"]);
    let mut from = Vm::start(&source, 2);
    let destination = beside(&source, &["--incoming"]);
    from.client.stop_ring(0).expect("stop one ring");
    let mut to = Vm::connect(&destination, 0);
    assert_eq!(try_to_start(&mut to), Answer::Nak, "both would write");
    from.client.stop_ring(1).expect("stop the other ring");
    Vm::start(&destination, 1).read_sector(0, 1);
}

#[test]
fn a_frontend_that_leaves_without_a_word_frees_the_image() {
    let source = Daemon::start(&image(), &[]);
    let from = Vm::start(&source, 1);
    let mut destination = beside(&source, &["--incoming"]);
    drop(from);
    let mut source = source;
    source.wait_for(|d| d.output().contains("frontend left"), "see its frontend leave");
    Vm::start(&destination, 1).read_sector(0, 1);
    assert!(destination.is_alive());
}

/// A daemon on a listening socket that it inherits as descriptor 9.
fn on_listener(listener: &UnixListener, dir: &Path) -> Process {
    let mut command = Command::new(BINARY);
    command
        .args(["--fd", "9", "--blk-file", "disk.img"])
        .current_dir(dir)
        .stdin(Stdio::null())
        .stderr(Stdio::null());
    let fd = listener.as_raw_fd();
    // SAFETY: the closure runs between fork and exec and makes one async-signal-safe call.
    unsafe {
        command.pre_exec(move || match libc::dup2(fd, 9) {
            9 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        });
    }
    Process::start("vhost-user-blk", &mut command, |_| ()).0
}

#[test]
fn a_listening_socket_passes_from_daemon_to_daemon_with_what_is_in_flight() {
    let dir = tempfile::tempdir().expect("make a directory");
    fs::write(dir.path().join("disk.img"), image()).expect("write the image");
    let socket = dir.path().join("vhost.sock");
    let listener = UnixListener::bind(&socket).expect("listen");
    let mut daemon = on_listener(&listener, dir.path());
    let connect = || UnixStream::connect(&socket).expect("connect");
    let mut vm = Vm::on(connect(), 0);
    let region = Inflight::get(&mut vm.client, 1, 16);
    vm.rings.push(Ring::new(0, 16));
    for signal in [libc::SIGTERM, libc::SIGKILL, libc::SIGTERM] {
        assert_eq!(region.set(&mut vm.client), Answer::Ack);
        vm.share_memory();
        vm.restart_rings();
        vm.read_sector(0, 7);
        daemon.signal(signal);
        // The next one starts while this one is still leaving.
        let next = on_listener(&listener, dir.path());
        daemon.wait();
        daemon = next;
        vm.reconnect(connect(), 0);
    }
}

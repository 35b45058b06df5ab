//! Servers that go away, come back, or do not answer.

use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use testkit::daemon::Daemon;
use testkit::frontend::{Frontend, Op};
use testkit::process::wait_for;
use testkit::vm::{DATA, FILL, HEADER, Outcome, STATUS, Vm, header, readable, writable};

use crate::fake::{WRITE, fake};
use crate::server::{BLOCK, connect, directory, has, image, nbdkit, qemu_nbd, read, start, write};

const MIB: u64 = 1 << 20;

fn data(slot: u64, round: u8) -> Vec<u8> {
    (0..BLOCK).map(|i| (i / 512) as u8 ^ round ^ slot as u8).collect()
}

/// Writes a round of data at depth 16, so that requests are in flight when the server goes.
fn submit(frontend: &mut Frontend, round: u8) {
    submit_slots(frontend, 16, round);
}

fn submit_slots(frontend: &mut Frontend, slots: u64, round: u8) {
    for slot in 0..slots {
        let (offset, data) = (slot * BLOCK as u64, data(slot, round));
        frontend.queue(0).submit(&Op::Write { offset, data }, 0);
    }
    frontend.queue(0).kick();
}

#[test]
fn a_killed_server_is_not_noticed_when_it_comes_back() {
    if !has("qemu-nbd") {
        return;
    }
    let dir = directory(MIB);
    let mut server = qemu_nbd(dir.path(), &[]);
    let daemon = start(dir, ",reconnect-delay=100", &[]);
    let mut frontend = connect(&daemon, 1, 16);
    for round in 0..20 {
        submit(&mut frontend, round);
        server.signal(libc::SIGKILL);
        server.wait();
        server = qemu_nbd(daemon.dir(), &[]);
        let done = frontend.queue(0).drain();
        assert!(done.iter().all(|done| done.ret == 0), "round {round}");
        for slot in 0..16 {
            assert_eq!(
                read(&mut frontend, slot * BLOCK as u64),
                Ok(data(slot, round)),
                "round {round}"
            );
        }
    }
    let stored = std::fs::read(image(&daemon)).expect("the image");
    assert!((0..16_u64).all(|slot| stored[slot as usize * BLOCK..][..BLOCK] == data(slot, 19)));
}

#[test]
fn a_server_that_ends_while_answers_gather_is_noticed() {
    if !has("qemu-nbd") {
        return;
    }
    let dir = directory(MIB);
    let mut server = qemu_nbd(dir.path(), &[]);
    let daemon = start(dir, ",reconnect-delay=100", &[]);
    let mut frontend = connect(&daemon, 1, 128);
    for round in 0..5 {
        submit_slots(&mut frontend, 128, round);
        // Some are answered, and more than enough are not.
        while frontend.queue(0).in_flight() > 100 {
            assert!(frontend.queue(0).wait().0.iter().all(|done| done.ret == 0));
        }
        server.signal(libc::SIGKILL);
        server.wait();
        server = qemu_nbd(daemon.dir(), &[]);
        assert!(frontend.queue(0).drain().iter().all(|done| done.ret == 0));
    }
    let stored = std::fs::read(image(&daemon)).expect("the image");
    assert!((0..128_u64).all(|slot| stored[slot as usize * BLOCK..][..BLOCK] == data(slot, 4)));
}

#[test]
fn requests_fail_at_once_without_a_reconnect_delay() {
    if !has("qemu-nbd") {
        return;
    }
    let dir = directory(MIB);
    let mut server = qemu_nbd(dir.path(), &[]);
    let mut daemon = start(dir, "", &[]);
    let mut frontend = connect(&daemon, 1, 16);
    assert_eq!(write(&mut frontend, 0, 1), 0);
    server.signal(libc::SIGKILL);
    server.wait();
    assert_ne!(write(&mut frontend, 0, 2), 0);
    assert!(read(&mut frontend, 0).is_err());
    let _server = qemu_nbd(daemon.dir(), &[]);
    let back = wait_for("the server", || read(&mut frontend, 0).ok());
    assert_eq!(back, [1; BLOCK]);
    daemon.wait_for(
        |daemon| daemon.output().contains("connected to the server"),
        "log it",
    );
}

#[test]
fn requests_wait_for_the_reconnect_delay_only() {
    if !has("qemu-nbd") {
        return;
    }
    let dir = directory(MIB);
    let mut server = qemu_nbd(dir.path(), &[]);
    let daemon = start(dir, ",reconnect-delay=1", &[]);
    let mut frontend = connect(&daemon, 1, 16);
    server.signal(libc::SIGKILL);
    server.wait();
    let begin = Instant::now();
    assert!(read(&mut frontend, 0).is_err());
    assert!(begin.elapsed() >= Duration::from_millis(900));
    assert!(
        daemon.output().contains("requests fail until it is back"),
        "{}",
        daemon.output()
    );
    let _server = qemu_nbd(daemon.dir(), &[]);
    wait_for("the server", || read(&mut frontend, 0).ok());
}

#[test]
fn another_disk_does_not_take_the_place_of_the_first() {
    if !has("qemu-nbd") {
        return;
    }
    let dir = directory(MIB);
    let mut server = qemu_nbd(dir.path(), &[]);
    let mut daemon = start(dir, "", &[]);
    let mut frontend = connect(&daemon, 1, 16);
    server.signal(libc::SIGKILL);
    server.wait();
    let _server = qemu_nbd(daemon.dir(), &["-r"]);
    assert!(read(&mut frontend, 0).is_err());
    let told = "its export has changed: it is read-only now";
    daemon.wait_for(|daemon| daemon.output().contains(told), "log it");
    assert!(read(&mut frontend, 0).is_err());
}

#[test]
fn a_silent_server_does_not_keep_the_daemon() {
    if !has("qemu-nbd") {
        return;
    }
    let dir = directory(MIB);
    let server = qemu_nbd(dir.path(), &[]);
    let mut daemon = start(dir, ",reconnect-delay=100", &[]);
    let mut frontend = connect(&daemon, 1, 16);
    server.signal(libc::SIGSTOP);
    submit(&mut frontend, 1);
    let exit = daemon.terminate();
    server.signal(libc::SIGCONT);
    assert!(exit.took < Duration::from_secs(5), "{:?}", exit.took);
}

#[test]
fn a_size_that_nobody_tells_is_no_request_left_behind() {
    if !has("qemu-nbd") {
        return;
    }
    let dir = directory(MIB);
    let server = qemu_nbd(dir.path(), &[]);
    let mut daemon = start(dir, "", &[]);
    server.signal(libc::SIGSTOP);
    // The second one is a question for later.
    for _ in 0..2 {
        daemon.signal(libc::SIGHUP);
        daemon.statistics();
    }
    let exit = daemon.terminate();
    server.signal(libc::SIGCONT);
    assert!(exit.status.success(), "{}", exit.output);
}

#[test]
fn a_silent_server_does_not_keep_a_ring() {
    if !has("qemu-nbd") {
        return;
    }
    let dir = directory(MIB);
    let server = qemu_nbd(dir.path(), &[]);
    let mut daemon = start(dir, ",reconnect-delay=100", &[]);
    let mut frontend = connect(&daemon, 1, 16);
    server.signal(libc::SIGSTOP);
    submit(&mut frontend, 1);
    drop(frontend);
    let told = "the disk has to stop";
    daemon.wait_for(|daemon| daemon.output().contains(told), "give the requests up");
    server.signal(libc::SIGCONT);
    let mut frontend = connect(&daemon, 1, 16);
    assert_eq!(write(&mut frontend, 0, 9), 0);
    assert_eq!(read(&mut frontend, 0), Ok(vec![9; BLOCK]));
}

#[test]
fn a_slow_server_is_waited_for() {
    if !has("nbdkit") {
        return;
    }
    let dir = directory(MIB);
    let _server = nbdkit(
        dir.path(),
        &[
            "--filter=delay",
            "memory",
            "1M",
            "delay-read=200ms",
            "delay-write=200ms",
        ],
    );
    let daemon = start(dir, "", &[]);
    let mut frontend = connect(&daemon, 1, 16);
    submit(&mut frontend, 3);
    let done = frontend.queue(0).drain();
    assert!(done.len() == 16 && done.iter().all(|done| done.ret == 0));
    assert_eq!(read(&mut frontend, 0), Ok(data(0, 3)));
}

/// A server that does not answer a write over its first connection.
struct SlowServer {
    /// Tells when it has a write.
    writes: mpsc::Receiver<()>,
    /// Makes it close that connection.
    close: mpsc::Sender<()>,
}

fn slow_server(dir: &std::path::Path) -> SlowServer {
    let ((close, gate), (wrote, writes)) = (mpsc::channel(), mpsc::channel());
    let gate = Arc::new(Mutex::new(gate));
    fake(dir, move |number, mut peer| {
        while let Some(asked) = peer.next() {
            match number == 0 && asked.kind == WRITE {
                true => {
                    // The test may have ended.
                    let _ = wrote.send(());
                }
                false => peer.succeed(&asked),
            }
        }
        if number == 0 {
            let _ = gate.lock().expect("it is not poisoned").recv();
        }
    });
    SlowServer { writes, close }
}

/// Makes a ring stop and start again while the server keeps a write. The write is then sent again, and waits.
fn restart_ring_on_slow_server(daemon: &Daemon, server: &SlowServer) -> Vm {
    let mut vm = Vm::start(daemon, 1);
    let write = [readable(HEADER, 16), readable(DATA, 512), writable(STATUS, 1)];
    vm.poke(HEADER, &header(1, 16));
    vm.poke(STATUS, &[FILL]);
    vm.send(0, &write);
    server.writes.recv().expect("the server has the write");
    let base = vm.client.stop_ring(0).expect("the ring stops");
    assert_eq!(base, 0, "the write goes back");
    let mut ring = vm.rings.pop().expect("it is there");
    let avail_idx = std::mem::replace(&mut ring.avail_idx, 0);
    vm.start_ring(0, ring);
    vm.rings[0].avail_idx = avail_idx;
    vm.kick(0);
    vm.serve_kicks(0);
    assert_eq!(vm.peek(STATUS, 1), [FILL], "it waits");
    vm
}

#[test]
fn requests_wait_while_a_connection_is_replaced() {
    let dir = directory(512);
    let server = slow_server(dir.path());
    let daemon = start(dir, "", &[]);
    let mut vm = restart_ring_on_slow_server(&daemon, &server);
    server.close.send(()).expect("the server closes the connection");
    assert_eq!(vm.outcome(0), Outcome::Used { id: 0, len: 1 });
    assert_eq!(vm.peek(STATUS, 1), [0]);
}

#[test]
fn requests_fail_if_a_connection_cannot_be_replaced() {
    let dir = directory(512);
    let server = slow_server(dir.path());
    let daemon = start(dir, "", &[]);
    let mut vm = restart_ring_on_slow_server(&daemon, &server);
    std::fs::remove_file(daemon.dir().join("nbd.sock")).expect("nobody can connect");
    let begin = Instant::now();
    server.close.send(()).expect("the server closes the connection");
    assert_eq!(vm.outcome(0), Outcome::Used { id: 0, len: 1 });
    assert_eq!(vm.peek(STATUS, 1), [1]);
    // It does not wait for as long as an attempt to connect may take, 10 s.
    assert!(begin.elapsed() < Duration::from_secs(8), "{:?}", begin.elapsed());
}

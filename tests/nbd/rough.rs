//! Memory that goes away in the middle of a write, and a server that speaks slowly.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::thread;

use testkit::frontend::Op;
use testkit::vm::{DATA, GUEST, HEADER, MEMORY, STATUS, Vm, header, readable, writable};

use crate::server::{BLOCK, connect, directory, has, image, qemu_nbd, read, start, write};

const MIB: u64 = 1 << 20;
const PAGE: usize = 4096;

#[test]
fn memory_lost_in_a_write_fails_only_that_write() {
    if !has("qemu-nbd") {
        return;
    }
    let dir = directory(MIB);
    let _server = qemu_nbd(dir.path(), &[]);
    let daemon = start(dir, ",reconnect-delay=100", &[]);
    let mut vm = Vm::start(&daemon, 1);
    // The last page of a write that is longer than what a socket holds.
    let len = MEMORY - (DATA - GUEST) as usize;
    vm.poke(HEADER, &header(1, 8));
    vm.memory
        .file()
        .set_len((MEMORY - PAGE) as u64)
        .expect("cut the memory short");
    let long = [
        readable(HEADER, 16),
        readable(DATA, len as u32),
        writable(STATUS, 1),
    ];
    for _ in 0..3 {
        assert_eq!(vm.request(0, &long), Some((1, 1)));
        let short = [readable(HEADER, 16), readable(DATA, 512), writable(STATUS, 1)];
        vm.poke(DATA, &[7; 512]);
        assert_eq!(vm.request(0, &short), Some((0, 1)));
    }
    let said = daemon.output();
    assert!(said.contains("in the middle of a write"), "{said}");
    let stored = fs::read(image(&daemon)).expect("the image");
    assert!(stored[4096..][..512] == [7; 512] && stored[4608..].iter().all(|byte| *byte == 0));
}

/// Passes on what a server and its clients say, the server's part byte by byte.
fn trickle(dir: &Path) {
    let listener = UnixListener::bind(dir.join("nbd.sock")).expect("a socket");
    let server = dir.join("fast.sock");
    // These threads end with the test's process, if not before.
    thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let Ok(upstream) = UnixStream::connect(&server) else {
                return;
            };
            let both = [&client, &upstream].map(|stream| stream.try_clone().expect("a descriptor"));
            thread::spawn(move || pass(&both[0], &both[1], 1 << 16));
            thread::spawn(move || pass(&upstream, &client, 1));
        }
    });
}

fn pass(mut from: &UnixStream, mut to: &UnixStream, piece: usize) {
    let mut bytes = vec![0; 1 << 16];
    while let Ok(len @ 1..) = from.read(&mut bytes) {
        if !bytes[..len]
            .chunks(piece)
            .all(|piece| to.write_all(piece).is_ok())
        {
            break;
        }
    }
    // A peer that is gone already is no error.
    let _ = to.shutdown(std::net::Shutdown::Both);
}

#[test]
fn a_server_may_send_a_byte_at_a_time() {
    if !has("qemu-nbd") {
        return;
    }
    let dir = directory(MIB);
    let _server = qemu_nbd(dir.path(), &[]);
    fs::rename(dir.path().join("nbd.sock"), dir.path().join("fast.sock")).expect("move the socket");
    trickle(dir.path());
    let daemon = start(dir, "", &[]);
    let mut frontend = connect(&daemon, 1, 16);
    for slot in 0..8_u8 {
        assert_eq!(write(&mut frontend, u64::from(slot) * BLOCK as u64, slot), 0);
    }
    for slot in 0..8 {
        let op = Op::Read {
            offset: slot as u64 * BLOCK as u64,
            len: BLOCK,
        };
        frontend.queue(0).submit(&op, slot);
    }
    frontend.queue(0).kick();
    let done = frontend.queue(0).drain();
    assert!(
        done.iter()
            .all(|done| done.ret == 0 && done.data == [done.tag as u8; BLOCK])
    );
    assert_eq!(done.len(), 8);
    assert!(read(&mut frontend, MIB).is_err());
}

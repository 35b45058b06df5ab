//! Answers that no good server gives.

use testkit::frontend::Op;

use crate::fake::{Asked, EIO, Peer, WRITE_ZEROES, fake};
use crate::server::{BLOCK, connect, directory, read, start, write};

/// The error number of the protocol.
const ENOTSUP: u32 = 95;

fn fake_server(dir: &std::path::Path, answer: fn(&mut Peer, &Asked)) {
    fake(dir, move |_, mut peer| {
        while let Some(asked) = peer.next() {
            match asked.is_look() {
                true => peer.succeed(&asked),
                false => answer(&mut peer, &asked),
            }
        }
    });
}

#[test]
fn overlapping_parts_of_a_read_are_refused() {
    let answers: [fn(&mut Peer, &Asked); 2] = [
        |peer, asked| {
            peer.data(asked, 0, &[7; BLOCK / 2], false);
            peer.data(asked, 0, &[7; BLOCK / 2], true);
        },
        |peer, asked| {
            peer.data(asked, 1024, &[7; 2048], false);
            peer.data(asked, 0, &[7; 1025], false);
            peer.data(asked, 3073, &[7; 1023], true);
        },
    ];
    for answer in answers {
        let dir = directory(512);
        fake_server(dir.path(), answer);
        let daemon = start(dir, "", &[]);
        let mut frontend = connect(&daemon, 1, 16);
        assert!(read(&mut frontend, 8192).is_err());
        let told = daemon.output();
        assert!(told.contains("sent a part of a read twice"), "{told}");
    }
}

#[test]
fn parts_of_a_read_come_in_any_order() {
    let dir = directory(512);
    fake_server(dir.path(), |peer, asked| {
        for (part, last) in [(3, false), (1, false), (0, false), (2, true)] {
            peer.data(asked, part * 1024, &[part as u8; 1024], last);
        }
    });
    let daemon = start(dir, "", &[]);
    let data = read(&mut connect(&daemon, 1, 16), 8192).expect("read");
    assert!(
        data.chunks(1024)
            .zip(0..)
            .all(|(part, byte)| part == [byte; 1024])
    );
}

#[test]
fn an_error_fails_the_read_only() {
    let dir = directory(512);
    fake_server(dir.path(), |peer, asked| peer.fail(asked, EIO));
    let daemon = start(dir, "", &[]);
    let mut frontend = connect(&daemon, 1, 16);
    assert_eq!(read(&mut frontend, 8192), Err(-libc::EIO));
    assert_eq!(read(&mut frontend, 0), Ok(vec![0; BLOCK]));
}

#[test]
fn only_write_zeroes_can_be_unsupported() {
    let dir = directory(512);
    fake_server(dir.path(), |peer, asked| peer.fail(asked, ENOTSUP));
    let daemon = start(dir, ",discard=unmap", &[]);
    let mut frontend = connect(&daemon, 1, 16);
    let (offset, len) = (8192, BLOCK as u64);
    let data = vec![1; BLOCK];
    for (op, expected) in [
        (Op::Read { offset, len: BLOCK }, -libc::EIO),
        (Op::Write { offset, data }, -libc::EIO),
        (Op::Flush, -libc::EIO),
        (Op::Discard { offset, len }, 0),
    ] {
        assert_eq!(frontend.queue(0).run(&op).ret, expected, "{op:?}");
    }
    let told = daemon.output();
    assert!(!told.contains("UNSUPP"), "{told}");
    let unmap = true;
    let zeroes = Op::WriteZeroes { offset, len, unmap };
    assert_eq!(frontend.queue(0).run(&zeroes).ret, -libc::ENOTSUP);
    let told = daemon.output();
    assert!(
        told.contains("the guest is told that the disk cannot do this (UNSUPP)"),
        "{told}"
    );
}

#[test]
fn zeroes_are_written_if_the_server_cannot_make_them() {
    let dir = directory(512);
    fake_server(dir.path(), |peer, asked| match asked.kind {
        WRITE_ZEROES => peer.fail(asked, ENOTSUP),
        _ => peer.succeed(asked),
    });
    let daemon = start(dir, ",detect-zeroes=on", &[]);
    assert_eq!(write(&mut connect(&daemon, 1, 16), 8192, 0), 0);
}

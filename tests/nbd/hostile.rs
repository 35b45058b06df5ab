//! Answers that no good server gives.

use crate::fake::{Asked, EIO, Peer, fake};
use crate::server::{BLOCK, connect, directory, read, start};

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

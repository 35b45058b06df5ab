//! A hostile NBD server: any bytes in the handshake, and any replies to requests of any ranges.
#![no_main]

use std::io::{self, Cursor, Read, Write};

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use vhost_user_blk::nbd::{Decoded, Event, Expected, HEADER_MAX, Replies, decode, negotiate};

#[derive(Arbitrary, Debug)]
enum Input<'a> {
    /// What the server says.
    Handshake(&'a [u8]),
    /// The form of replies, the ranges of the reads, and the replies. A cookie is the index of a request.
    Replies(u8, Vec<Option<(u64, u32)>>, &'a [u8]),
}

fuzz_target!(|input: Input<'_>| match input {
    Input::Handshake(says) => handshake(says),
    Input::Replies(form, requests, says) => replies(form, &requests, says),
});

struct Stream<'a>(Cursor<&'a [u8]>);

impl Read for Stream<'_> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        assert!(to.len() <= 64 << 10, "a length from the server is not limited");
        self.0.read(to)
    }
}

impl Write for Stream<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn handshake(says: &[u8]) {
    match negotiate(&mut Stream(Cursor::new(says)), "export") {
        Ok(export) => {
            assert!(export.min_block.is_power_of_two() && export.max_block >= export.min_block);
            assert!(export.max_block.is_multiple_of(export.min_block) && export.max_block <= 32 << 20);
            assert!(i64::try_from(export.size).is_ok());
        }
        Err(error) => assert!(!error.to_string().contains(['\n', '\0'])),
    }
}

fn replies(form: u8, requests: &[Option<(u64, u32)>], mut says: &[u8]) {
    let form = [Replies::Simple, Replies::Structured, Replies::Extended][usize::from(form % 3)];
    let find = |cookie| {
        let request = usize::try_from(cookie).ok().and_then(|index| requests.get(index));
        request.map(|read| Expected { read: *read })
    };
    loop {
        match decode(says, form, find) {
            Err(_) => return,
            Ok(Decoded::More(needed)) => {
                return assert!(needed > says.len() && needed <= HEADER_MAX);
            }
            Ok(Decoded::Header(len, event)) => {
                let skipped = check(requests, event);
                says = says[len..].get(skipped as usize..).unwrap_or_default();
            }
        }
    }
}

/// Checks a part of an answer against its request. Returns the number of bytes that follow it.
fn check(requests: &[Option<(u64, u32)>], event: Event) -> u32 {
    let read = |cookie: u64| requests[usize::try_from(cookie).expect("an index")];
    match event {
        Event::Data { cookie, at, len, .. } | Event::Hole { cookie, at, len, .. } => {
            let (_, whole) = read(cookie).expect("data is for reads");
            assert!(u64::from(at) + u64::from(len) <= whole.into());
            if matches!(event, Event::Data { .. }) {
                len
            } else {
                0
            }
        }
        Event::Error {
            cookie, error, skip, ..
        } => {
            read(cookie);
            assert!(error != 0 && skip <= 64 << 10);
            skip
        }
        Event::Done { cookie } => {
            read(cookie);
            0
        }
    }
}

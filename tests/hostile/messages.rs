//! Every message, and some undefined ones, with each wrong header, length and number of descriptors.

use std::os::fd::AsRawFd;

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::arena::Arena;
use testkit::raw::Verdict;

const NEED_REPLY: u32 = 1 << 3;

/// Returns the numbers of all vhost-user messages, and some undefined numbers.
fn requests() -> impl Iterator<Item = u32> {
    (0..=46).chain([100, 1 << 31, u32::MAX])
}

fn send_each(name: &str, flags: u32, payload: &[u8], fds: usize, check: impl Fn(u32, &Verdict)) {
    let mut arena = Arena::new();
    let events: Vec<EventFd> = (0..fds)
        .map(|_| EventFd::new(EFD_NONBLOCK).expect("make an eventfd"))
        .collect();
    let fds: Vec<i32> = events.iter().map(AsRawFd::as_raw_fd).collect();
    for request in requests() {
        arena.client(&format!("request {request} {name}"), |client| {
            let size = u32::try_from(payload.len()).expect("small");
            let header = [request, flags, size];
            check(request, &client.provoke(header, payload, &fds));
        });
    }
}

fn survive(name: &str, payload: &[u8], fds: usize) {
    send_each(name, 1 | NEED_REPLY, payload, fds, |_, _| ());
}

#[test]
fn payloads_of_any_length_and_content() {
    survive("without a payload", &[], 0);
    survive("with a zero", &[0; 8], 0);
    survive("with the largest number", &[0xff; 8], 0);
}

#[test]
fn payloads_of_more_lengths() {
    survive("with 12 bytes", &[0xff; 12], 0);
    survive("with 40 bytes", &[0xff; 40], 0);
    survive("with as much as there may be", &[0xff; 4096], 0);
}

#[test]
fn unexpected_descriptors() {
    survive("with a descriptor and no payload", &[], 1);
    survive("with two descriptors", &[0; 40], 2);
    send_each(
        "with too many descriptors",
        1 | NEED_REPLY,
        &[0; 8],
        33,
        |request, verdict| {
            assert_eq!(*verdict, Verdict::Closed, "request {request}");
        },
    );
}

#[test]
fn headers_with_wrong_flags() {
    for (name, flags) in [
        ("with version 0", NEED_REPLY),
        ("with version 2", 2 | NEED_REPLY),
        ("with a flag that nobody has defined", 1 | NEED_REPLY | 1 << 4),
    ] {
        send_each(name, flags, &[0; 8], 0, |request, verdict| {
            assert_eq!(*verdict, Verdict::Closed, "request {request}");
        });
    }
}

#[test]
fn answers_from_the_frontend() {
    send_each("as an answer", 1 | 1 << 2, &[0; 8], 0, |_, _| ());
}

#[test]
fn sizes_that_no_message_has() {
    let mut arena = Arena::new();
    for size in [4097, 1 << 16, 1 << 31, u32::MAX - 11, u32::MAX] {
        for request in requests().filter(|request| request % 3 == 0) {
            arena.client(&format!("request {request} of {size} bytes"), |client| {
                let verdict = client.provoke([request, 1 | NEED_REPLY, size], &[], &[]);
                assert_eq!(verdict, Verdict::Closed);
            });
        }
    }
}

#[test]
fn messages_that_are_never_finished() {
    let mut arena = Arena::new();
    let event = EventFd::new(EFD_NONBLOCK).expect("make an eventfd");
    for request in requests().filter(|request| request % 2 == 1) {
        let whole = [request, 1 | NEED_REPLY, 40].map(u32::to_ne_bytes).concat();
        let whole = [whole, vec![0; 39]].concat();
        for len in [3, 12, 51] {
            arena.client(&format!("{len} bytes of request {request}"), |client| {
                let fds = [event.as_raw_fd()];
                client.send_bytes(&[&whole[..len]], &fds).expect("send a part");
            });
        }
    }
}

//! File descriptors that clients pass: named ones and sets.

use std::fs::File;
use std::io::{IoSlice, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde_json::{Value, json};

use crate::client::Client;
use crate::server::Server;
use testkit::process::wait_for;

fn pass(client: &Client, bytes: &[u8], fds: &[BorrowedFd<'_>]) {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(64))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(control.push(SendAncillaryMessage::ScmRights(fds)));
    let sent = sendmsg(
        client.socket(),
        &[IoSlice::new(bytes)],
        &mut control,
        SendFlags::empty(),
    );
    assert_eq!(sent, Ok(bytes.len()));
}

/// Runs a command with a descriptor, and returns the answer.
pub(crate) fn ask_with(client: &mut Client, command: &Value, fds: &[BorrowedFd<'_>]) -> Value {
    pass(client, command.to_string().as_bytes(), fds);
    client.next()
}

fn pipe() -> (File, OwnedFd) {
    let (reader, writer) = std::io::pipe().expect("make a pipe");
    (OwnedFd::from(reader).into(), writer.into())
}

/// Waits for the other end to be closed. Returns whether it was closed without data.
fn is_closed(mut reader: File) -> bool {
    wait_for("the other end to be closed", || reader.read(&mut [0; 1]).ok()) == 0
}

#[test]
fn named_descriptors_last_as_long_as_their_client() {
    let server = Server::start();
    let (mut client, mut other) = (server.connect(), server.connect());
    let getfd = json!({"execute": "getfd", "arguments": {"fdname": "a"}});
    assert_eq!(client.ask(&getfd)["error"]["class"], "GenericError");
    let (reader, writer) = pipe();
    assert_eq!(
        ask_with(&mut client, &getfd, &[writer.as_fd()]),
        json!({"return": {}})
    );
    drop(writer);
    let closefd = json!({"execute": "closefd", "arguments": {"fdname": "a"}});
    assert_eq!(other.ask(&closefd)["error"]["class"], "GenericError");
    assert_eq!(client.ask(&closefd), json!({"return": {}}));
    assert!(is_closed(reader));
    let (reader, writer) = pipe();
    assert_eq!(
        ask_with(&mut client, &getfd, &[writer.as_fd()]),
        json!({"return": {}})
    );
    drop((writer, client));
    assert!(is_closed(reader));
    let digit = json!({"execute": "getfd", "arguments": {"fdname": "1a"}});
    assert_eq!(
        ask_with(&mut other, &digit, &[other_end().as_fd()])["error"]["class"],
        "GenericError"
    );
}

fn other_end() -> OwnedFd {
    pipe().1
}

#[test]
fn sets_are_shared_until_the_last_client_leaves() {
    let server = Server::start();
    let (mut client, mut other) = (server.connect(), server.connect());
    let file = tempfile::tempfile().expect("make a file");
    let add = json!({"execute": "add-fd", "arguments": {"opaque": "mine"}});
    let added = ask_with(&mut client, &add, &[file.as_fd()])["return"].take();
    let id = added["fdset-id"].clone();
    let sets = other.run("query-fdsets", &json!({}));
    assert_eq!(
        sets,
        json!([{"fdset-id": id, "fds": [{"fd": added["fd"], "opaque": "mine"}]}])
    );
    let path = format!("/dev/fdset/{id}");
    assert!(
        server
            .fdsets
            .open(&path, true, false, false)
            .expect("a set's path")
            .is_ok()
    );
    drop(client);
    assert_eq!(other.run("query-fdsets", &json!({})), sets);
    drop(other);
    wait_for("the sets to be closed", || {
        server
            .fdsets
            .open(&path, true, false, false)
            .expect("a set's path")
            .is_err()
            .then_some(())
    });
}

#[test]
fn sets_grow_and_shrink() {
    let server = Server::start();
    let mut client = server.connect();
    let (reader, writer) = pipe();
    let add = json!({"execute": "add-fd", "arguments": {"fdset-id": 5}});
    let first = ask_with(&mut client, &add, &[writer.as_fd()])["return"].take();
    let second = ask_with(&mut client, &add, &[writer.as_fd()])["return"].take();
    assert_eq!((&first["fdset-id"], &second["fdset-id"]), (&json!(5), &json!(5)));
    client.run("remove-fd", &json!({"fdset-id": 5, "fd": first["fd"]}));
    client.refusal("remove-fd", &json!({"fdset-id": 5, "fd": first["fd"]}));
    client.run("remove-fd", &json!({"fdset-id": 5}));
    client.refusal("remove-fd", &json!({"fdset-id": 5}));
    assert_eq!(client.run("query-fdsets", &json!({})), json!([]));
    drop(writer);
    assert!(is_closed(reader));
    let negative = json!({"execute": "add-fd", "arguments": {"fdset-id": -1}});
    assert_eq!(
        ask_with(&mut client, &negative, &[other_end().as_fd()])["error"]["class"],
        "GenericError"
    );
}

/// `qemu.qmp` sends the descriptor with a byte of its own, before the command.
#[test]
fn a_descriptor_may_precede_its_command() {
    let server = Server::start();
    let mut client = server.connect();
    pass(&client, b" ", &[other_end().as_fd()]);
    client.run("getfd", &json!({"fdname": "a"}));
    // Each command takes one.
    client.refusal("getfd", &json!({"fdname": "b"}));
}

#[test]
fn unused_and_surplus_descriptors_are_closed() {
    let server = Server::start();
    let mut client = server.connect();
    let (reader, writer) = pipe();
    // These are more descriptors than the monitor keeps, and no command uses them.
    for _ in 0..10 {
        pass(&client, b" ", &[writer.as_fd(); 40]);
    }
    drop(writer);
    let (_, last) = pipe();
    pass(&client, b" ", &[last.as_fd()]);
    client.run("query-version", &json!({}));
    assert!(is_closed(reader));
}

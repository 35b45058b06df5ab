//! The daemon with a monitor, in its sandbox.

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use serde_json::json;
use testkit::daemon::Daemon;
use testkit::process::threads;

use crate::client::Client;
use crate::descriptors::ask_with;
use crate::schema;

pub(crate) const MONITOR: [&str; 4] = [
    "--chardev",
    "socket,id=m,path=qmp.sock,server=on,wait=off",
    "--monitor",
    "chardev=m",
];

/// Starts a daemon with a monitor at `qmp.sock`.
pub(crate) fn start_with(options: &[&str]) -> Daemon {
    Daemon::start(&[0; 1 << 16], &[&MONITOR[..], options].concat())
}

pub(crate) fn start(options: &[&str]) -> (Daemon, PathBuf) {
    let daemon = start_with(options);
    let socket = daemon.dir().join("qmp.sock");
    (daemon, socket)
}

#[test]
fn clients_are_served_inside_the_sandbox() {
    let (mut daemon, socket) = start(&[]);
    let mode = fs::metadata(&socket).expect("the socket").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let mut client = Client::connect(&socket);
    let file = tempfile::tempfile().expect("make a file");
    let getfd = json!({"execute": "getfd", "arguments": {"fdname": "a"}});
    assert_eq!(
        ask_with(&mut client, &getfd, &[file.as_fd()]),
        json!({"return": {}})
    );
    let add = json!({"execute": "add-fd"});
    assert!(ask_with(&mut client, &add, &[file.as_fd()])["return"]["fd"].is_number());
    client.send("complete and utter garbage\n");
    assert_eq!(client.next()["error"]["class"], "GenericError");
    // By now the monitor has made every system call that clients can cause.
    let monitor = threads(daemon.pid())
        .into_iter()
        .find(|thread| thread["Name"] == "monitor");
    assert_eq!(monitor.expect("a thread")["Seccomp"], "2");
    drop(client);
    Client::connect(&socket).run("query-version", &json!({}));
    assert!(daemon.is_alive());
}

#[test]
fn the_schema_of_all_commands_is_true() {
    // Images and sockets are opened after the start.
    let options = [&MONITOR[..], &["--sandbox", "off"]].concat();
    let mut daemon = Daemon::start(&[0; 1 << 16], &options);
    let mut client = Client::connect(&daemon.dir().join("qmp.sock"));
    schema::check(&mut client);
    schema::take_what_the_schema_says(&mut client, &["qmp_capabilities", "quit"]);
    assert!(daemon.is_alive());
}

#[test]
fn quit_ends_the_daemon() {
    let (mut daemon, socket) = start(&[]);
    let mut client = Client::connect(&socket);
    client.send("{'execute': 'quit'}");
    assert_eq!(client.next(), json!({"return": {}}));
    let event = client.next();
    assert_eq!(
        (&event["event"], &event["data"]["reason"]),
        (&json!("SHUTDOWN"), &json!("host-qmp-quit"))
    );
    assert_eq!(client.next()["event"], "BLOCK_EXPORT_DELETED");
    assert_eq!(client.try_next(), None);
    let exit = daemon.wait_for_exit();
    assert!(exit.status.success(), "{}", exit.output);
    assert!(!socket.exists() && !daemon.socket().exists());
}

#[test]
fn clients_learn_of_a_signal() {
    let (mut daemon, socket) = start(&[]);
    let mut client = Client::connect(&socket);
    let exit = daemon.stop_with(libc::SIGTERM);
    assert!(exit.status.success(), "{}", exit.output);
    assert_eq!(client.next()["data"]["reason"], "host-signal");
    assert_eq!(client.next()["event"], "BLOCK_EXPORT_DELETED");
    assert_eq!(client.try_next(), None);
}

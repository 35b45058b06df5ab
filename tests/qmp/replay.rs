//! The same session with qemu-storage-daemon and with our daemon.

use std::fs::File;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use testkit::daemon::binary;
use testkit::process::{Process, wait_for};
use testkit::skip::skipped;

use crate::client::Client;

const SESSION: &str = include_str!("session.txt");
/// Members that every export of the session has.
const EXPORT: &str = r#""type": "vhost-user-blk", "addr": {"type": "unix", "path": "DIR/v1.sock"}"#;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Peer {
    Qsd,
    Ours,
}

/// A command with its outcome for one of the two daemons.
struct Step<'a> {
    command: &'a str,
    arguments: Value,
    events: Vec<&'a str>,
    outcome: Outcome<'a>,
}

enum Outcome<'a> {
    Ok,
    Result(Value),
    Error(&'a str),
}

fn parse<'a>(line: &'a str, peer: Peer, dir: &Path) -> Step<'a> {
    let (request, outcome) = line.split_once(" => ").expect("an outcome");
    let (command, arguments) = request.split_once(' ').unwrap_or((request, "{}"));
    let dir = dir.to_str().expect("text");
    let arguments = arguments.replace("EXPORT", EXPORT).replace("DIR", dir);
    let outcome = match (outcome.split_once(" ;; "), peer) {
        // The reason follows after two spaces.
        (Some((_, ours)), Peer::Ours) => ours.split("  ").next().unwrap_or(ours),
        (Some((theirs, _)), Peer::Qsd) => theirs,
        (None, _) => outcome,
    };
    let is_event = |word: &&str| word.chars().all(|c| c == '_' || c.is_ascii_uppercase());
    let events: Vec<_> = outcome.split(' ').take_while(is_event).collect();
    let rest = outcome[events.iter().map(|event| event.len() + 1).sum::<usize>()..].trim();
    Step {
        command,
        arguments: serde_json::from_str(&arguments).unwrap_or_else(|error| panic!("{line}: {error}")),
        events,
        outcome: match rest.strip_prefix("= ") {
            Some(result) => Outcome::Result(serde_json::from_str(result).expect("JSON")),
            None if rest == "ok" => Outcome::Ok,
            None => Outcome::Error(rest),
        },
    }
}

/// Sorts lists, because each daemon has its own order.
fn sorted(value: &Value) -> Value {
    match value {
        Value::Array(list) => {
            let mut list: Vec<_> = list.iter().map(sorted).collect();
            list.sort_by_key(ToString::to_string);
            list.into()
        }
        other => other.clone(),
    }
}

fn play(client: &mut Client, line: &str, peer: Peer, dir: &Path) {
    let step = parse(line, peer, dir);
    client.send(json!({"execute": step.command, "arguments": step.arguments, "id": line}).to_string());
    for event in step.events {
        assert_eq!(client.next()["event"], event, "{peer:?}: {line}");
    }
    let answer = client.next();
    assert_eq!(answer["id"], line, "{peer:?}: {answer}");
    let error = answer["error"]["class"].as_str();
    match step.outcome {
        Outcome::Ok => assert_eq!(error, None, "{peer:?}: {line}: {answer}"),
        Outcome::Error(class) => assert_eq!(error, Some(class), "{peer:?}: {line}: {answer}"),
        Outcome::Result(result) => {
            assert_eq!(
                sorted(&answer["return"]),
                sorted(&result),
                "{peer:?}: {line}: {answer}"
            );
        }
    }
}

fn replay(mut command: Command, peer: Peer) {
    let dir = tempfile::tempdir().expect("make a directory");
    for (name, mib) in [("disk.img", 64), ("small.img", 1)] {
        let image = File::create(dir.path().join(name)).expect("make an image");
        image.set_len(mib << 20).expect("size it");
    }
    let socket = dir.path().join("qmp.sock");
    let chardev = format!("socket,id=m,path={},server=on,wait=off", socket.display());
    command
        .args(["--chardev", &chardev, "--monitor", "chardev=m"])
        .stdout(Stdio::null());
    let (mut process, ()) = Process::start("the storage daemon", &mut command, |_| ());
    // One connection only: QEMU may refuse a second one while it has not seen the end of the first.
    let connection = wait_for("the monitor", || {
        assert!(process.ended().is_none(), "{peer:?} has ended");
        UnixStream::connect(&socket).ok()
    });
    let mut client = Client::negotiate(connection);
    for line in SESSION
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
    {
        play(&mut client, line, peer, dir.path());
    }
    if peer == Peer::Ours {
        assert_eq!(client.next()["event"], "SHUTDOWN");
    }
    assert_eq!(client.try_next(), None, "{peer:?}");
    assert!(process.wait().success(), "{peer:?}");
    let left = ["qmp.sock", "v1.sock", "v2.sock"].map(|name| dir.path().join(name).exists());
    assert_eq!(left, [false; 3], "{peer:?} leaves sockets");
}

#[test]
fn the_session_goes_as_recorded() {
    let mut ours = Command::new(binary());
    // Paths are opened after the start.
    ours.args(["--sandbox", "off"]);
    replay(ours, Peer::Ours);
}

#[test]
fn qemu_storage_daemon_does_the_same() {
    let qsd = Command::new("qemu-storage-daemon").arg("--version").output();
    match qsd {
        Ok(version) if String::from_utf8_lossy(&version.stdout).contains("version 10.") => {
            replay(Command::new("qemu-storage-daemon"), Peer::Qsd);
        }
        Ok(_) => skipped("qemu-storage-daemon is not of version 10"),
        Err(_) => skipped("there is no qemu-storage-daemon"),
    }
}

//! Disks on servers that QMP clients add and remove.

use std::sync::mpsc;
use std::time::{Duration, Instant};

use serde_json::json;
use tempfile::TempDir;
use testkit::daemon::Daemon;
use testkit::qmp::Qmp;

use crate::fake::{DISCONNECT, fake};
use crate::server::{BLOCK, connect, directory, has, long_form, qemu_nbd, read, write};

const MIB: u64 = 1 << 20;

/// Starts a daemon with a disk on the server and a monitor.
fn start(dir: TempDir) -> (Daemon, Qmp) {
    let monitor = [
        "--chardev",
        "socket,id=m,path=qmp.sock,server=on,wait=off",
        "--monitor",
        "chardev=m",
    ];
    let disk = long_form(",reconnect-delay=100");
    let args: Vec<&str> = disk.iter().map(String::as_str).chain(monitor).collect();
    let daemon = Daemon::start_with(dir, &args);
    let qmp = Qmp::connect(&daemon.dir().join("qmp.sock"));
    (daemon, qmp)
}

#[test]
fn clients_add_exports_that_were_named_before() {
    if !has("qemu-nbd") {
        return;
    }
    let dir = directory(MIB);
    let _server = qemu_nbd(dir.path(), &[]);
    let (daemon, mut qmp) = start(dir);
    let node = |name: &str, export: &str| json!({"driver": "nbd", "node-name": name, "export": export, "server": {"type": "unix", "path": "nbd.sock"}});
    assert_eq!(write(&mut connect(&daemon, 1, 16), 0, 3), 0);
    qmp.execute("block-export-del", &json!({"id": "e"}));
    qmp.execute("blockdev-del", &json!({"node-name": "n"}));
    qmp.execute("blockdev-add", &node("again", "disk"));
    let refused = qmp.try_execute("blockdev-add", &node("other", "other"));
    let told = refused.expect_err("refused").to_string();
    // Without Landlock, names can be used by a process without a sandbox only.
    assert!(told.contains("named when it started"), "{told}");
    let nodes = qmp.execute("query-named-block-nodes", &json!({})).to_string();
    assert!(nodes.contains("again") && !nodes.contains("\"other\""), "{nodes}");
}

#[test]
fn a_server_is_told_of_an_orderly_end() {
    for removed in [true, false] {
        let dir = TempDir::new().expect("a directory");
        let (last, heard) = mpsc::channel();
        fake(dir.path(), move |_, mut peer| {
            let mut kind = None;
            while let Some(asked) = peer.next() {
                peer.succeed(&asked);
                kind = Some(asked.kind);
            }
            let _ = last.send(kind);
        });
        let (mut daemon, mut qmp) = start(dir);
        assert_eq!(read(&mut connect(&daemon, 1, 16), 0), Ok(vec![0; BLOCK]));
        if removed {
            qmp.execute("block-export-del", &json!({"id": "e"}));
            qmp.execute("blockdev-del", &json!({"node-name": "n"}));
        } else {
            daemon.terminate();
        }
        let kind = heard.recv_timeout(Duration::from_secs(60)).expect("an end");
        assert_eq!(kind, Some(DISCONNECT), "removed: {removed}");
    }
}

#[test]
fn a_silent_server_keeps_neither_clients_nor_removals() {
    if !has("qemu-nbd") {
        return;
    }
    let dir = directory(MIB);
    let server = qemu_nbd(dir.path(), &[]);
    let (mut daemon, mut qmp) = start(dir);
    let mut frontend = connect(&daemon, 1, 16);
    assert_eq!(read(&mut frontend, 0), Ok(vec![0; BLOCK]));
    server.signal(libc::SIGSTOP);
    frontend.queue(0).submit(
        &testkit::frontend::Op::Read {
            offset: 0,
            len: BLOCK,
        },
        0,
    );
    frontend.queue(0).kick();
    let mut waiting = Qmp::connect(&daemon.dir().join("qmp.sock"));
    let node = json!({"driver": "nbd", "node-name": "m", "export": "disk", "server": {"type": "unix", "path": "nbd.sock"}});
    waiting.send("blockdev-add", &node);
    // Another client does not wait with it.
    let begin = Instant::now();
    let nodes = qmp.execute("query-named-block-nodes", &json!({})).to_string();
    assert!(!nodes.contains("\"m\"") && begin.elapsed() < Duration::from_secs(5));
    qmp.execute("block-export-del", &json!({"id": "e", "mode": "hard"}));
    assert!(begin.elapsed() < Duration::from_secs(8), "{:?}", begin.elapsed());
    let exit = daemon.terminate();
    server.signal(libc::SIGCONT);
    assert!(exit.took < Duration::from_secs(5), "{:?}", exit.took);
}

#[test]
fn a_node_is_reopened_under_a_disk_that_works() {
    if !has("qemu-nbd") {
        return;
    }
    let dir = directory(MIB);
    let _server = qemu_nbd(dir.path(), &[]);
    let (daemon, mut qmp) = start(dir);
    let mut frontend = connect(&daemon, 1, 16);
    let node = |more: serde_json::Value| {
        let mut node = json!({"driver": "nbd", "node-name": "n", "export": "disk", "server": {"type": "unix", "path": "nbd.sock"}});
        for (key, value) in more.as_object().into_iter().flatten() {
            node[key] = value.clone();
        }
        json!({"options": [node]})
    };
    for round in 0..10_u8 {
        for slot in 0..16 {
            let (offset, data) = (slot * BLOCK as u64, vec![round; BLOCK]);
            frontend
                .queue(0)
                .submit(&testkit::frontend::Op::Write { offset, data }, 0);
        }
        frontend.queue(0).kick();
        qmp.execute(
            "blockdev-reopen",
            &node(json!({"reconnect-delay": round, "discard": "unmap"})),
        );
        assert!(frontend.queue(0).drain().iter().all(|done| done.ret == 0));
        assert_eq!(read(&mut frontend, 15 * BLOCK as u64), Ok(vec![round; BLOCK]));
    }
    for (change, name) in [
        (json!({"export": "other"}), "export"),
        (
            json!({"server": {"type": "unix", "path": "other.sock"}}),
            "server",
        ),
    ] {
        let refused = qmp.try_execute("blockdev-reopen", &node(change));
        let told = refused.expect_err("refused").to_string();
        assert!(told.contains(name), "{told}");
    }
    assert_eq!(write(&mut frontend, 0, 3), 0);
}

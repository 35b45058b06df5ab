//! `blockdev-reopen` of nodes under a disk that works.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use serde_json::{Value, json};
use testkit::daemon::Daemon;
use testkit::frontend::{Frontend, Op, all_features};
use vhost_user_blk::storage::{ImageLock, OpenOptions, RawFile};

use crate::client::Client;
use crate::nodes::{export, node, start};

const BLOCK: usize = 4096;

/// Starts a writable disk `e` on `t`, a throttle node above `r`, a raw node above the file `f`.
fn serve() -> (Daemon, Client, Frontend) {
    let (daemon, mut client) = start();
    for group in ["g1", "g2"] {
        client.run("object-add", &json!({"qom-type": "throttle-group", "id": group}));
    }
    client.run("blockdev-add", &file(&json!({})));
    client.run("blockdev-add", &raw(&json!({})));
    client.run("blockdev-add", &throttle("g1", &json!({})));
    export(&mut client, "e", "t", &json!({"writable": true}));
    let socket = daemon.dir().join("e.sock");
    let disk = Frontend::connect(&socket, 1, 16, all_features()).expect("connect");
    (daemon, client, disk)
}

fn with(mut options: Value, more: &Value) -> Value {
    for (key, value) in more.as_object().into_iter().flatten() {
        options[key] = value.clone();
    }
    options
}

fn file(more: &Value) -> Value {
    with(json!({"driver": "file", "node-name": "f", "filename": "a"}), more)
}

fn raw(more: &Value) -> Value {
    with(json!({"driver": "raw", "node-name": "r", "file": "f"}), more)
}

fn throttle(group: &str, more: &Value) -> Value {
    let options = json!({"driver": "throttle", "node-name": "t", "throttle-group": group, "file": "r"});
    with(options, more)
}

fn reopen(client: &mut Client, list: &[Value]) {
    client.run("blockdev-reopen", &json!({"options": list}));
}

fn refused(client: &mut Client, list: &[Value]) -> String {
    let (class, desc) = client.refusal("blockdev-reopen", &json!({"options": list}));
    assert_eq!(class, "GenericError");
    desc
}

/// Reads a block of equal bytes.
fn read(disk: &mut Frontend, offset: u64) -> u8 {
    let done = disk.queue(0).run(&Op::Read { offset, len: BLOCK });
    let byte = done.data[0];
    assert!(done.ret == 0 && done.data == [byte; BLOCK]);
    byte
}

fn write(disk: &mut Frontend, offset: u64, byte: u8) {
    let data = vec![byte; BLOCK];
    assert_eq!(disk.queue(0).run(&Op::Write { offset, data }).ret, 0);
}

/// Returns whether another process could write to the image.
pub(crate) fn is_unlocked(daemon: &Daemon) -> bool {
    let options = OpenOptions {
        path: daemon.dir().join("a"),
        ..OpenOptions::default()
    };
    ImageLock::acquire(&RawFile::open(&options).expect("open the image")).is_ok()
}

#[test]
fn a_disk_works_while_its_nodes_are_reopened() {
    let (daemon, mut client, mut disk) = serve();
    let direct = |on| file(&json!({"cache": {"direct": on}}));
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                assert!(!is_unlocked(&daemon), "the image was unlocked");
            }
        });
        let guest = scope.spawn(|| {
            let mut rounds = 0_u8;
            while !stop.load(Ordering::Relaxed) {
                let offset = u64::from(rounds % 16) * BLOCK as u64;
                write(&mut disk, offset, rounds);
                assert_eq!(read(&mut disk, offset), rounds);
                rounds = rounds.wrapping_add(1);
            }
            rounds
        });
        for round in 0..20 {
            reopen(&mut client, &[direct(round % 2 == 0)]);
            let group = if round % 3 == 0 { "g1" } else { "g2" };
            reopen(&mut client, &[throttle(group, &json!({})), raw(&json!({}))]);
        }
        stop.store(true, Ordering::Relaxed);
        watcher.join().expect("the image stayed locked");
        guest.join().expect("the disk worked");
    });
    assert_eq!(node(&mut client, "f")["cache"]["direct"], false);
    client.run("block-export-del", &json!({"id": "e"}));
    assert!(is_unlocked(&daemon), "the old lock outlives its disk");
}

#[test]
fn a_node_with_writers_cannot_become_read_only() {
    let (_daemon, mut client, mut disk) = serve();
    for (name, options) in [
        ("f", file(&json!({"read-only": true}))),
        ("r", raw(&json!({"read-only": true}))),
        ("t", throttle("g1", &json!({"read-only": true}))),
    ] {
        assert_eq!(
            refused(&mut client, &[options]),
            format!("Read-only block node '{name}' cannot support read-write users")
        );
    }
    write(&mut disk, 0, 9);
    // A disk that only reads does not mind.
    drop(disk);
    client.run("block-export-del", &json!({"id": "e"}));
    export(&mut client, "e", "t", &json!({}));
    for read_only in [true, false] {
        reopen(&mut client, &[file(&json!({"read-only": read_only}))]);
        assert_eq!(node(&mut client, "f")["ro"], read_only);
    }
}

#[test]
fn a_refused_reopen_changes_nothing() {
    let (daemon, mut client, mut disk) = serve();
    let direct = file(&json!({"cache": {"direct": true}}));
    for (bad, why) in [
        (throttle("g3", &json!({})), "Throttle group 'g3' does not exist"),
        (
            json!({"driver": "raw", "node-name": "nope", "file": "f"}),
            "Failed to find node with node-name='nope'",
        ),
        (
            json!({"driver": "file", "node-name": "f", "filename": "b"}),
            "Cannot change the option 'filename'",
        ),
        (
            file(&json!({"aio": "io_uring"})),
            "Cannot change the option 'aio'",
        ),
        (file(&json!({"mmap": false})), "Cannot change the option 'mmap'"),
        (
            file(&json!({"locking": "off"})),
            "Cannot change the option 'locking'",
        ),
        (
            raw(&json!({"active": false})),
            "Cannot change the option 'active'",
        ),
        (
            raw(&json!({"offset": 2 << 20})),
            "Offset (2097152) cannot be greater than size of the containing file (1048576)",
        ),
    ] {
        assert_eq!(refused(&mut client, &[direct.clone(), bad]), why);
    }
    // The image that the name leads to must still be the same one.
    std::fs::rename(daemon.dir().join("a"), daemon.dir().join("b")).expect("rename the image");
    std::fs::write(daemon.dir().join("a"), vec![8; 1 << 20]).expect("write another image");
    let why = refused(&mut client, &[direct]);
    assert_eq!(why, "a is another image now");
    assert_eq!(node(&mut client, "f")["cache"]["direct"], false);
    assert_eq!(read(&mut disk, 0), 7);
}

#[test]
fn requests_leave_a_group_with_their_disk() {
    let (_daemon, mut client, mut disk) = serve();
    // At a byte a second, the requests would take days.
    let limits = json!({"path": "/objects/g1", "property": "limits", "value": {"bps-total": 1}});
    client.run("qom-set", &limits);
    assert_eq!(node(&mut client, "t")["bps"], 1);
    for tag in 0..8 {
        disk.queue(0).submit(
            &Op::Read {
                offset: 0,
                len: BLOCK,
            },
            tag,
        );
    }
    disk.queue(0).kick();
    reopen(&mut client, &[throttle("g2", &json!({}))]);
    assert_eq!(disk.queue(0).drain().len(), 8);
    read(&mut disk, 0);
    client.run("object-del", &json!({"id": "g1"}));
    client.refusal("object-del", &json!({"id": "g2"}));
}

#[test]
fn another_part_of_an_image_appears_under_a_disk() {
    let (daemon, mut client, mut disk) = serve();
    write(&mut disk, BLOCK as u64, 5);
    reopen(&mut client, &[raw(&json!({"offset": BLOCK}))]);
    assert_eq!(read(&mut disk, 0), 5);
    assert_eq!(
        disk.config().capacity.to_native(),
        ((1 << 20) - BLOCK as u64) / 512
    );
    assert!(!is_unlocked(&daemon));
}

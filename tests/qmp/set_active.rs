//! `blockdev-set-active`: two daemons use an image in turns.

use std::os::unix::fs::symlink;

use serde_json::{Value, json};
use testkit::daemon::{Daemon, HAND_OVER};
use testkit::frontend::{Frontend, Op, all_features};

use crate::client::Client;
use crate::nodes::{export, node, start, start_with};
use crate::reopen::is_unlocked;

const BLOCK: usize = 4096;
const MIB: u64 = 1 << 20;

fn add(client: &mut Client, active: bool) {
    let file = json!({"driver": "file", "node-name": "f", "filename": "a", "active": active});
    client.run("blockdev-add", &file);
    let raw = json!({"driver": "raw", "node-name": "r", "file": "f", "active": active});
    client.run("blockdev-add", &raw);
}

fn serve(client: &mut Client) {
    export(
        client,
        "e",
        "r",
        &json!({"writable": true, "allow-inactive": true}),
    );
}

fn connect(daemon: &Daemon) -> Frontend {
    Frontend::connect(&daemon.dir().join("e.sock"), 1, 4, all_features()).expect("connect")
}

fn node_active(name: &str, active: bool) -> Value {
    json!({"node-name": name, "active": active})
}

fn activity(client: &mut Client) -> [Value; 2] {
    ["f", "r"].map(|name| node(client, name)["active"].take())
}

fn write(disk: &mut Frontend, byte: u8) -> i32 {
    let data = vec![byte; BLOCK];
    disk.queue(0).run(&Op::Write { offset: 0, data }).ret
}

fn first_byte(disk: &mut Frontend) -> u8 {
    let done = disk.queue(0).run(&Op::Read {
        offset: 0,
        len: BLOCK,
    });
    assert_eq!(done.ret, 0);
    done.data[0]
}

#[test]
fn an_image_changes_hands_by_command() {
    let (here, mut source) = start();
    let (there, mut target) = start();
    std::fs::remove_file(there.dir().join("a")).expect("remove the image");
    symlink(here.dir().join("a"), there.dir().join("a")).expect("link to the image");
    add(&mut source, true);
    serve(&mut source);
    add(&mut target, false);
    serve(&mut target);
    assert_eq!(activity(&mut target), [json!(false), json!(false)]);
    let mut disk = connect(&here);
    assert_eq!(write(&mut disk, 1), 0);
    let (_, desc) = target.refusal("blockdev-set-active", &json!({"active": true}));
    assert!(desc.contains("in use"), "{desc}");
    assert_eq!(activity(&mut target), [json!(false), json!(false)]);

    source.run("blockdev-set-active", &node_active("r", false));
    assert_eq!(activity(&mut source), [json!(false), json!(false)]);
    assert!(is_unlocked(&here));
    assert_eq!((write(&mut disk, 2), first_byte(&mut disk)), (-libc::EIO, 1));
    let image = std::fs::OpenOptions::new().write(true).open(here.dir().join("a"));
    image
        .and_then(|image| image.set_len(2 * MIB))
        .expect("another process resizes the image");
    target.run("blockdev-set-active", &node_active("r", true));
    assert_eq!(activity(&mut target), [json!(true), json!(true)]);
    assert_eq!(node(&mut target, "r")["image"]["virtual-size"], 2 * MIB);
    assert!(!is_unlocked(&here));
    let (_, desc) = source.refusal("blockdev-set-active", &node_active("r", true));
    assert!(desc.contains("in use"), "{desc}");
    let mut other = connect(&there);
    assert_eq!(write(&mut other, 3), 0);

    target.run("blockdev-set-active", &node_active("r", false));
    source.run("blockdev-set-active", &node_active("r", true));
    assert_eq!(disk.config().capacity.to_native(), 2 * MIB / 512);
    assert_eq!(first_byte(&mut disk), 3);
    assert_eq!(write(&mut disk, 4), 0);
}

#[test]
fn a_ring_starts_without_its_image_after_a_command() {
    let (daemon, mut client) = start();
    add(&mut client, true);
    serve(&mut client);
    client.run("blockdev-set-active", &node_active("r", false));
    let mut disk = connect(&daemon);
    assert_eq!(write(&mut disk, 1), -libc::EIO);
    assert!(is_unlocked(&daemon));
    client.run("blockdev-set-active", &node_active("r", true));
    assert_eq!(write(&mut disk, 1), 0);
}

#[test]
fn nodes_are_active_as_in_qemu() {
    let (daemon, mut client) = start();
    add(&mut client, true);
    let refused = |client: &mut Client, arguments: &Value| {
        let (class, desc) = client.refusal("blockdev-set-active", arguments);
        assert_eq!(class, "GenericError");
        desc
    };
    let desc = refused(&mut client, &node_active("nope", true));
    assert_eq!(desc, "Failed to find node with node-name='nope'");
    let desc = refused(&mut client, &node_active("f", false));
    assert_eq!(desc, "Node has active parent node");
    client.run("blockdev-set-active", &node_active("r", false));
    assert_eq!(activity(&mut client), [json!(false), json!(false)]);
    let size = json!({"node-name": "f", "size": 2 * MIB});
    let (_, desc) = client.refusal("block_resize", &size);
    assert_eq!(desc, "Permission 'resize' unavailable on inactive node");
    client.run("blockdev-set-active", &node_active("f", true));
    assert_eq!(activity(&mut client), [json!(true), json!(false)]);
    client.run("blockdev-set-active", &node_active("f", false));
    client.run("blockdev-set-active", &node_active("f", false));
    // An export that does not allow inactive nodes activates them, and keeps them active.
    export(&mut client, "e", "r", &json!({"writable": true}));
    assert_eq!(activity(&mut client), [json!(true), json!(true)]);
    assert!(!is_unlocked(&daemon));
    let desc = refused(&mut client, &node_active("r", false));
    assert_eq!(desc, "Failed to inactivate node: Operation not permitted");
    let desc = refused(&mut client, &json!({"active": false}));
    assert_eq!(desc, "Failed to inactivate all nodes: Operation not permitted");
    client.run("block-export-del", &json!({"id": "e"}));
    client.run("blockdev-set-active", &node_active("r", false));
}

#[test]
fn inactive_disks_are_taken_over() {
    let (mut daemon, mut client) = start_with(&["--hand-over", HAND_OVER]);
    add(&mut client, true);
    serve(&mut client);
    let mut disk = connect(&daemon);
    assert_eq!(write(&mut disk, 1), 0);
    client.run("blockdev-set-active", &node_active("r", false));
    for _ in 0..2 {
        drop(client);
        daemon.take_over(&[]);
        client = Client::connect(&daemon.dir().join("qmp.sock"));
        assert_eq!(activity(&mut client), [json!(false), json!(false)]);
        assert!(is_unlocked(&daemon));
        assert_eq!((write(&mut disk, 2), first_byte(&mut disk)), (-libc::EIO, 1));
    }
    client.run("blockdev-set-active", &node_active("r", true));
    assert_eq!(write(&mut disk, 2), 0);
    assert!(!is_unlocked(&daemon));
}

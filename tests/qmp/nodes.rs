//! Block nodes over QMP, outside of the sandbox: what they show and what they refuse, in QEMU's words.

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;

use serde_json::{Value, json};
use testkit::daemon::Daemon;
use testkit::frontend::{Frontend, Op, all_features};

use crate::client::Client;
use crate::daemon::MONITOR;
use crate::descriptors::ask_with;

const MIB: u64 = 1 << 20;

/// Starts a daemon that may open files, and a client. The file `a` is an image of a MiB.
pub(crate) fn start() -> (Daemon, Client) {
    start_with(&[])
}

/// Starts a daemon with these options, too.
pub(crate) fn start_with(options: &[&str]) -> (Daemon, Client) {
    let daemon = Daemon::start(
        &[0; 1 << 16],
        &[&MONITOR[..], &["--sandbox", "off"], options].concat(),
    );
    fs::write(daemon.dir().join("a"), vec![7; 1 << 20]).expect("write an image");
    let client = Client::connect(&daemon.dir().join("qmp.sock"));
    (daemon, client)
}

fn add(client: &mut Client, node: &Value) {
    client.run("blockdev-add", node);
}

pub(crate) fn export(client: &mut Client, id: &str, node: &str, more: &Value) {
    let mut options = json!({
        "type": "vhost-user-blk", "id": id, "node-name": node, "addr": {"type": "unix", "path": format!("{id}.sock")}
    });
    for (key, value) in more.as_object().into_iter().flatten() {
        options[key] = value.clone();
    }
    client.run("block-export-add", &options);
}

/// Returns what is shown of a node.
pub(crate) fn node(client: &mut Client, name: &str) -> Value {
    let nodes = client.run("query-named-block-nodes", &json!({}));
    let nodes = nodes.as_array().into_iter().flatten();
    let mut found = nodes.filter(|node| node["node-name"] == name);
    found.next().unwrap_or_else(|| panic!("no node {name}")).clone()
}

fn size(client: &mut Client, name: &str) -> Value {
    node(client, name)["image"]["virtual-size"].take()
}

fn resize(name: &str, size: u64) -> Value {
    json!({"node-name": name, "size": size})
}

#[test]
fn images_have_the_size_that_they_take() {
    let (daemon, mut client) = start();
    let sparse = fs::File::create(daemon.dir().join("sparse")).expect("make an image");
    sparse.set_len(MIB).expect("enlarge it");
    let null = json!({"driver": "null-co", "node-name": "null", "size": MIB});
    add(&mut client, &null);
    for image in ["a", "sparse"] {
        let file = json!({"driver": "file", "node-name": image, "filename": image});
        add(&mut client, &file);
    }
    let part = json!({"driver": "raw", "node-name": "part", "file": "a", "offset": 4096});
    add(&mut client, &part);
    let allocated = |image: &str| {
        let meta = fs::metadata(daemon.dir().join(image)).expect("the image");
        meta.blocks() * 512
    };
    for (name, expected) in [
        ("a", allocated("a")),
        ("sparse", allocated("sparse")),
        ("part", allocated("a")),
        ("null", 0),
    ] {
        assert_eq!(
            node(&mut client, name)["image"]["actual-size"],
            expected,
            "{name}"
        );
    }
    assert!(allocated("a") >= MIB && allocated("sparse") < MIB);
}

#[test]
fn parts_are_shown_and_resized_as_in_qemu() {
    let (daemon, mut client) = start();
    add(
        &mut client,
        &json!({"driver": "file", "node-name": "f", "filename": "a"}),
    );
    add(
        &mut client,
        &json!({"driver": "raw", "node-name": "rest", "file": "f", "offset": 4096}),
    );
    add(
        &mut client,
        &json!({"driver": "raw", "node-name": "plain", "file": "rest"}),
    );
    assert_eq!(size(&mut client, "plain"), MIB - 4096);
    let name = r#"json:{"driver":"raw","file":{"driver":"file","filename":"a"},"offset":4096}"#;
    assert_eq!(
        node(&mut client, "plain")["file"],
        r#"json:{"driver":"raw","file":"#.to_owned() + &name[5..] + "}"
    );
    assert_eq!(node(&mut client, "rest")["file"], name);
    assert_eq!(node(&mut client, "f")["file"], "a");

    export(&mut client, "e", "plain", &json!({"writable": true}));
    let disk = Frontend::connect(&daemon.dir().join("e.sock"), 1, 4, all_features()).expect("connect");
    client.run("block_resize", &resize("plain", 2 * MIB));
    assert_eq!(
        fs::metadata(daemon.dir().join("a")).expect("the image").len(),
        2 * MIB + 4096
    );
    assert_eq!(disk.config().capacity.to_native(), 2 * MIB / 512);

    add(
        &mut client,
        &json!({"driver": "raw", "node-name": "fixed", "file": "f", "offset": 512, "size": 1024}),
    );
    let (_, desc) = client.refusal("block_resize", &resize("fixed", 2048));
    assert_eq!(desc, "Cannot resize fixed-size raw disks");
    let (_, desc) = client.refusal("block_resize", &resize("plain", MIB));
    assert_eq!(
        desc,
        "Permission conflict on node 'f': permissions 'resize' are both required by node 'rest' (uses node 'f' as 'file' \
         child) and unshared by node 'fixed' (uses node 'f' as 'file' child)."
    );
    client.run("blockdev-del", &json!({"node-name": "fixed"}));
    client.run("block_resize", &resize("plain", MIB));
}

#[test]
fn nodes_made_with_their_parent_go_with_it() {
    let (_daemon, mut client) = start();
    let below = json!({"driver": "file", "node-name": "f", "filename": "a"});
    add(
        &mut client,
        &json!({"driver": "raw", "node-name": "r", "file": below}),
    );
    let del = |name: &str| json!({"node-name": name});
    let (_, desc) = client.refusal("blockdev-del", &del("f"));
    assert_eq!(desc, "Node 'f' is not owned by the monitor");
    export(&mut client, "e", "f", &json!({}));
    let (_, desc) = client.refusal("blockdev-del", &del("r"));
    assert_eq!(desc, "Node 'f' is in use by export 'e'");
    client.run("block-export-del", &json!({"id": "e"}));
    client.run("blockdev-del", &del("r"));
    client.refusal("blockdev-del", &del("f"));
    add(
        &mut client,
        &json!({"driver": "file", "node-name": "f", "filename": "a"}),
    );
    // The name of a node below is taken, too.
    let same = json!({"driver": "raw", "node-name": "x", "file": {"driver": "file", "node-name": "x", "filename": "a"}});
    let (_, desc) = client.refusal("blockdev-add", &same);
    assert_eq!(desc, "Duplicate nodes with node-name='x'");
    let names = client.run("query-named-block-nodes", &json!({}));
    let names: Vec<_> = names
        .as_array()
        .into_iter()
        .flatten()
        .map(|node| node["node-name"].clone())
        .collect();
    assert_eq!(names, ["disk", "f"]);
}

#[test]
fn a_set_that_is_gone_cannot_be_opened() {
    let (daemon, mut client) = start();
    let image = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(daemon.dir().join("a"));
    let add_fd = json!({"execute": "add-fd", "arguments": {"fdset-id": 3}});
    let added = ask_with(&mut client, &add_fd, &[image.expect("open the image").as_fd()]);
    assert_eq!(added["return"]["fdset-id"], 3, "{added}");
    client.run("remove-fd", &json!({"fdset-id": 3}));
    let node = json!({"driver": "file", "node-name": "f", "filename": "/dev/fdset/3"});
    let (class, desc) = client.refusal("blockdev-add", &node);
    assert_eq!(class, "GenericError");
    assert!(desc.contains("no set of descriptors /dev/fdset/3"), "{desc}");
    let names = client.run("query-named-block-nodes", &json!({}));
    assert_eq!(names.as_array().map(Vec::len), Some(1));
}

#[test]
fn all_exports_of_a_node_are_resized() {
    let (daemon, mut client) = start();
    add(
        &mut client,
        &json!({"driver": "file", "node-name": "f", "filename": "a"}),
    );
    for (id, queues, size) in [("one", 1, 16), ("two", 2, 64)] {
        export(
            &mut client,
            id,
            "f",
            &json!({"num-queues": queues, "queue-size": size}),
        );
    }
    let connect = |id: &str, queues, depth| {
        let socket = daemon.dir().join(format!("{id}.sock"));
        Frontend::connect(&socket, queues, depth, all_features()).expect("connect")
    };
    let (mut one, mut two) = (connect("one", 1, 4), connect("two", 2, 16));
    client.run("block_resize", &resize("f", 2 * MIB));
    for disk in [&one, &two] {
        assert_eq!(disk.config().capacity.to_native(), 2 * MIB / 512);
    }
    let last = Op::Read {
        offset: 2 * MIB - 4096,
        len: 4096,
    };
    for queue in [one.queue(0), two.queue(1)] {
        let done = queue.run(&last);
        assert!(done.ret == 0 && done.data == [0; 4096]);
    }
}

#[test]
fn a_new_size_consists_of_the_blocks_of_each_export() {
    let (_daemon, mut client) = start();
    add(
        &mut client,
        &json!({"driver": "file", "node-name": "f", "filename": "a"}),
    );
    export(&mut client, "e", "f", &json!({"logical-block-size": 4096}));
    let (class, desc) = client.refusal("block_resize", &resize("f", MIB + 512));
    assert_eq!(class, "GenericError");
    assert_eq!(
        desc,
        "export 'e' has logical blocks of 4096 bytes, and the new size, 1049088 bytes, is not a multiple of that"
    );
    assert_eq!(size(&mut client, "f"), MIB);
    client.run("block_resize", &resize("f", MIB + 4096));
    client.run("block-export-del", &json!({"id": "e"}));
    client.run("block_resize", &resize("f", MIB + 512));
}

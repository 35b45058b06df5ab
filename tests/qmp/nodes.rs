//! Block nodes over QMP, outside of the sandbox: what they show and what they refuse, in QEMU's words.

use std::fs;

use serde_json::{Value, json};
use testkit::daemon::Daemon;
use testkit::frontend::{Frontend, all_features};

use crate::client::Client;
use crate::daemon::MONITOR;

const MIB: u64 = 1 << 20;

/// Starts a daemon that may open files, and a client. The file `a` is an image of a MiB.
pub(crate) fn start() -> (Daemon, Client) {
    let daemon = Daemon::start(&[0; 1 << 16], &[&MONITOR[..], &["--sandbox", "off"]].concat());
    fs::write(daemon.dir().join("a"), vec![7; 1 << 20]).expect("write an image");
    let client = Client::connect(&daemon.dir().join("qmp.sock"));
    (daemon, client)
}

fn add(client: &mut Client, node: Value) {
    client.run("blockdev-add", &node);
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
fn parts_are_shown_and_resized_as_in_qemu() {
    let (daemon, mut client) = start();
    add(
        &mut client,
        json!({"driver": "file", "node-name": "f", "filename": "a"}),
    );
    add(
        &mut client,
        json!({"driver": "raw", "node-name": "rest", "file": "f", "offset": 4096}),
    );
    add(
        &mut client,
        json!({"driver": "raw", "node-name": "plain", "file": "rest"}),
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
        json!({"driver": "raw", "node-name": "fixed", "file": "f", "offset": 512, "size": 1024}),
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
        json!({"driver": "raw", "node-name": "r", "file": below}),
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
        json!({"driver": "file", "node-name": "f", "filename": "a"}),
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

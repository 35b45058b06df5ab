//! A file system that hangs holds up the command that needs it, and nothing else.

use serde_json::{Value, json};
use testkit::frontend::{Frontend, Op, all_features};
use testkit::fuse::StalledFile;
use testkit::process::wait_for;
use testkit::skip::skipped;

use crate::client::Client;
use crate::nodes::{export, start};

fn stalled() -> Option<StalledFile> {
    StalledFile::mount_slow(1 << 20)
        .inspect_err(|error| skipped(format_args!("no FUSE file system can be mounted: {error}")))
        .ok()
}

fn slow(file: &StalledFile) -> Value {
    json!({"driver": "file", "node-name": "slow", "filename": file.path(), "locking": "off"})
}

/// Another client adds a disk, uses it, and removes it.
fn others_go_on(client: &mut Client, dir: &std::path::Path) {
    let node = json!({"driver": "file", "node-name": "f", "filename": "a"});
    client.run("blockdev-add", &node);
    export(client, "e", "f", &json!({"writable": true}));
    let mut disk = Frontend::connect(&dir.join("e.sock"), 1, 4, all_features()).expect("connect");
    assert_eq!(disk.queue(0).run(&Op::Flush).ret, 0);
    drop(disk);
    client.run("block_resize", &json!({"node-name": "f", "size": 1 << 21}));
    client.run("block_resize", &json!({"node-name": "f", "size": 1 << 20}));
    client.run("block-export-del", &json!({"id": "e"}));
    client.run("blockdev-del", &json!({"node-name": "f"}));
}

#[test]
fn a_file_system_that_hangs_holds_up_nobody_else() {
    let Some(file) = stalled() else { return };
    let (daemon, mut client) = start();
    let _end = file.let_go_at_the_end();
    let mut waiting = Client::connect(&daemon.dir().join("qmp.sock"));
    let name = json!({"node-name": "slow"});
    let size = json!({"node-name": "slow", "size": 1 << 21});
    for (command, arguments) in [
        ("blockdev-add", &slow(&file)),
        ("block_resize", &size),
        ("blockdev-del", &name),
    ] {
        file.stall();
        waiting.send(json!({"execute": command, "arguments": arguments}).to_string());
        wait_for("a call that hangs", || file.has_reader().then_some(()));
        others_go_on(&mut client, daemon.dir());
        if command == "block_resize" {
            let (class, desc) = client.refusal("blockdev-del", &name);
            assert_eq!(class, "GenericError");
            assert_eq!(desc, "Node 'slow' is busy: 'block_resize' has not ended");
        }
        file.let_go();
        let answer = std::iter::repeat_with(|| waiting.next()).find(|line| line.get("event").is_none());
        assert_eq!(answer, Some(json!({"return": {}})), "{command}");
    }
}

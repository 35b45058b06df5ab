//! Disks that are being removed while requests are in flight.

use std::path::Path;

use serde_json::{Value, json};
use testkit::frontend::{Frontend, Op, all_features};
use testkit::process::wait_for;

use crate::client::Client;
use crate::nodes::{export, start};

const BLOCK: usize = 4096;

/// Adds a disk whose reads take `delay`, and sends it a read.
fn read_slowly(client: &mut Client, dir: &Path, delay: &str) -> Frontend {
    client.run(
        "blockdev-add",
        &json!({"driver": "file", "node-name": "slow", "filename": "a"}),
    );
    let fault = json!({"inject": [format!("read:delay={delay}")]});
    export(client, "e", "slow", &fault);
    let mut disk = Frontend::connect(&dir.join("e.sock"), 1, 4, all_features()).expect("connect");
    disk.queue(0).submit(
        &Op::Read {
            offset: 0,
            len: BLOCK,
        },
        0,
    );
    disk.queue(0).kick();
    wait_for("the IOThread to take the request", || {
        let disks = client.run("query-blockstats", &json!({}));
        let slow = disks.as_array()?.iter().find(|disk| disk["qdev"] == "e")?;
        (slow["x-export"]["total"]["kicks"].as_u64()? > 0).then_some(())
    });
    disk
}

fn removal(mode: &str) -> String {
    json!({"execute": "block-export-del", "arguments": {"id": "e", "mode": mode}}).to_string() + "\n"
}

/// Expects the event of the removal, and its answer.
fn sees_the_removal(client: &mut Client) {
    let is_removal = |line: &Value| line["event"] == "BLOCK_EXPORT_DELETED" && line["data"]["id"] == "e";
    while !is_removal(&client.next()) {}
    assert_eq!(client.next(), json!({"return": {}}));
}

#[test]
fn the_socket_of_a_stuck_disk_is_free_after_its_removal() {
    let (daemon, mut client) = start();
    let _stuck = read_slowly(&mut client, daemon.dir(), "60s");
    client.send(removal("hard"));
    sees_the_removal(&mut client);
    assert!(!daemon.dir().join("e.sock").exists());
    client.run(
        "blockdev-add",
        &json!({"driver": "null-co", "node-name": "new", "size": 1 << 20}),
    );
    export(&mut client, "e", "new", &Value::Null);
    let mut disk = Frontend::connect(&daemon.dir().join("e.sock"), 1, 4, all_features()).expect("connect");
    assert_eq!(
        disk.queue(0)
            .run(&Op::Read {
                offset: 0,
                len: BLOCK
            })
            .ret,
        0
    );
}

#[test]
fn a_removal_that_waits_is_finished_when_the_process_ends() {
    let (mut daemon, mut client) = start();
    let mut disk = read_slowly(&mut client, daemon.dir(), "500ms");
    let mut patient = Client::connect(&daemon.dir().join("qmp.sock"));
    patient.send(removal("safe"));
    wait_for("the removal", || {
        let exports = client.run("query-block-exports", &json!({}));
        let mut exports = exports.as_array()?.iter();
        let waits = exports
            .find(|export| export["id"] == "e")
            .map(|export| export["shutting-down"] == true);
        waits.unwrap_or(true).then_some(())
    });
    let exit = daemon.terminate();
    assert!(exit.status.success(), "{}", exit.output);
    let done = disk.queue(0).drain();
    assert!(done.len() == 1 && done[0].ret == 0 && done[0].data == [7; BLOCK]);
    sees_the_removal(&mut patient);
}

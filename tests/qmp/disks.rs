//! Disks that are being served: their events, statistics and changes.

use serde_json::{Value, json};
use testkit::daemon::Daemon;
use testkit::frontend::{Frontend, Op, all_features};
use testkit::vm::{HEADER, Outcome, Vm, readable};

use crate::client::Client;
use crate::daemon::MONITOR;

const LEN: usize = 4096;

/// Starts a daemon with a monitor, a client, and a frontend.
fn start(options: &[&str]) -> (Daemon, Client, Frontend) {
    let daemon = Daemon::start(&[7; 1 << 20], &[&MONITOR[..], options].concat());
    let mut client = Client::connect(&daemon.dir().join("qmp.sock"));
    client.sees_own_events = true;
    let frontend = Frontend::connect(&daemon.socket(), 1, 8, all_features()).expect("connect");
    (daemon, client, frontend)
}

/// Waits for an event of this name, and returns its data.
fn event(client: &mut Client, name: &str) -> Value {
    loop {
        let mut line = client.next();
        if line["event"] == name {
            return line["data"].take();
        }
    }
}

#[test]
fn frontends_are_announced_and_counted() {
    let (_daemon, mut client, mut frontend) = start(&[]);
    let data = event(&mut client, "__vhost-user-blk_FRONTEND_CONNECTED");
    assert_eq!(data["pid"], std::process::id());
    let id = data["id"].clone();
    for offset in [0, 8192] {
        assert_eq!(frontend.queue(0).run(&Op::Read { offset, len: LEN }).ret, 0);
    }
    let data = vec![1; LEN];
    assert_eq!(frontend.queue(0).run(&Op::Write { offset: 0, data }).ret, 0);
    let stats = client.run("query-blockstats", &json!({}))[0].take();
    assert_eq!(stats["qdev"], id);
    assert_eq!(
        (&stats["stats"]["rd_operations"], &stats["stats"]["wr_operations"]),
        (&json!(2), &json!(1))
    );
    assert_eq!(
        (&stats["stats"]["rd_bytes"], &stats["stats"]["wr_bytes"]),
        (&json!(2 * LEN), &json!(LEN))
    );
    let bins = stats["stats"]["rd_latency_histogram"]["bins"]
        .as_array()
        .expect("bins");
    assert_eq!(bins.iter().filter_map(Value::as_u64).sum::<u64>(), 2);
    assert_ne!(stats["stats"]["wr_total_time_ns"], 0);
    drop(frontend);
    assert_eq!(
        event(&mut client, "__vhost-user-blk_FRONTEND_DISCONNECTED")["id"],
        id
    );
}

#[test]
fn requests_for_missing_blocks_are_counted_as_invalid() {
    let (_daemon, mut client, mut frontend) = start(&[]);
    let end = 1 << 20;
    let (data, offset) = (vec![1; LEN], end - 512);
    let beyond = [
        Op::Read {
            offset: end,
            len: LEN,
        },
        Op::Read { offset, len: LEN },
        Op::Write { offset, data },
        Op::WriteZeroes {
            offset,
            len: LEN as u64,
            unmap: false,
        },
    ];
    for op in &beyond {
        assert_ne!(frontend.queue(0).run(op).ret, 0);
    }
    assert_eq!(frontend.queue(0).run(&Op::Read { offset: 0, len: LEN }).ret, 0);
    let stats = client.run("query-blockstats", &json!({}))[0]["stats"].take();
    let counts = |kind: &str| ["rd", "wr", "unmap"].map(|op| stats[format!("{kind}{op}_operations")].clone());
    assert_eq!(counts("invalid_"), [json!(2), json!(1), json!(1)]);
    assert_eq!(counts("failed_"), [json!(0), json!(0), json!(0)]);
    assert_eq!(counts(""), [json!(1), json!(0), json!(0)]);
}

#[test]
fn operations_are_counted_if_they_succeed() {
    let (_daemon, mut client, mut frontend) = start(&["--inject", "write:eio,count=2"]);
    let write = |offset| Op::Write {
        offset,
        data: vec![1; LEN],
    };
    let failed = (0..5).filter(|_| frontend.queue(0).run(&write(0)).ret != 0);
    assert_eq!(failed.count(), 2);
    let stats = client.run("query-blockstats", &json!({}))[0]["stats"].take();
    let of = |name: &str| stats[name].clone();
    assert_eq!(
        [of("wr_operations"), of("failed_wr_operations"), of("wr_bytes")],
        [json!(3), json!(2), json!(3 * LEN)]
    );
    // Neither failed nor invalid requests have latencies here.
    assert_eq!(
        [of("account_failed"), of("account_invalid")],
        [json!(false), json!(false)]
    );
    let bins = stats["wr_latency_histogram"]["bins"].as_array().expect("bins");
    assert_eq!(bins.iter().filter_map(Value::as_u64).sum::<u64>(), 3);
}

#[test]
fn each_kind_of_failure_is_reported_at_once() {
    let (_daemon, mut client, mut frontend) = start(&["--inject", "write:eio", "--inject", "read:eio"]);
    let data = vec![1; LEN];
    assert_ne!(frontend.queue(0).run(&Op::Write { offset: 0, data }).ret, 0);
    assert_ne!(frontend.queue(0).run(&Op::Read { offset: 0, len: LEN }).ret, 0);
    for op in ["write", "read"] {
        assert_eq!(event(&mut client, "BLOCK_IO_ERROR")["operation"], op);
    }
}

#[test]
fn the_last_failure_of_a_second_is_reported() {
    let rules = ["--inject", "write:eio,count=5", "--inject", "write:enospc"];
    let (_daemon, mut client, mut frontend) = start(&[&rules[..], &["--werror", "report"]].concat());
    for _ in 0..6 {
        let data = vec![1; LEN];
        assert_ne!(frontend.queue(0).run(&Op::Write { offset: 0, data }).ret, 0);
    }
    // Nothing happens in between.
    for no_space in [false, true] {
        assert_eq!(event(&mut client, "BLOCK_IO_ERROR")["nospace"], no_space);
    }
}

#[test]
fn failed_requests_are_reported() {
    let (_daemon, mut client, mut frontend) = start(&["--inject", "read:eio"]);
    assert_ne!(frontend.queue(0).run(&Op::Read { offset: 0, len: LEN }).ret, 0);
    let data = event(&mut client, "BLOCK_IO_ERROR");
    let facts = ["operation", "action", "nospace"].map(|name| data[name].clone());
    assert_eq!(facts, [json!("read"), json!("report"), json!(false)]);
}

#[test]
fn full_disks_are_reported_until_there_is_room() {
    let (_daemon, mut client, mut frontend) = start(&["--inject", "write:enospc,count=2"]);
    let data = vec![1; LEN];
    assert_eq!(frontend.queue(0).run(&Op::Write { offset: 0, data }).ret, 0);
    let data = event(&mut client, "BLOCK_IO_ERROR");
    let facts = ["operation", "action", "nospace"].map(|name| data[name].clone());
    assert_eq!(facts, [json!("write"), json!("stop"), json!(true)]);
    event(&mut client, "__vhost-user-blk_DISK_HELD");
    event(&mut client, "__vhost-user-blk_DISK_RESUMED");
}

#[test]
fn late_requests_are_reported() {
    let (_daemon, mut client, mut frontend) = start(&["--inject", "read:delay=2s", "--io-timeout", "1"]);
    assert_eq!(frontend.queue(0).run(&Op::Read { offset: 0, len: LEN }).ret, 0);
    let data = event(&mut client, "__vhost-user-blk_REQUEST_LATE");
    assert_eq!((&data["operation"], &data["queue"]), (&json!("read"), &json!(0)));
}

#[test]
fn broken_rings_are_reported() {
    let daemon = Daemon::start(&[7; 1 << 20], &[&MONITOR[..], &["--num-queues", "2"]].concat());
    let mut client = Client::connect(&daemon.dir().join("qmp.sock"));
    client.sees_own_events = true;
    let mut vm = Vm::start(&daemon, 2);
    // There is no byte for the status.
    vm.send(1, &[readable(HEADER, 16)]);
    assert_eq!(vm.outcome(1), Outcome::Broken);
    let data = event(&mut client, "__vhost-user-blk_RING_BROKEN");
    assert_eq!(data["queue"], 1);
    let reason = data["reason"].as_str().expect("a text");
    assert!(reason.contains("no writable byte for the status"), "{reason}");
}

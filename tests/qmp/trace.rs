//! Slow requests, and where their time went.

use serde_json::{Value, json};
use tempfile::tempdir;
use testkit::daemon::Daemon;
use testkit::frontend::{Frontend, Op, all_features};

use crate::client::Client;
use crate::daemon::MONITOR;

const LEN: usize = 4096;
const TRACE: &str = "__vhost-user-blk_trace-requests";
/// The time that the storage of disk `slow` takes, in nanoseconds.
const LATENCY: u64 = 30_000_000;

/// Starts a disk `limited`, whose throttle group admits 20 requests per second, and a disk `slow`.
fn start() -> (Daemon, Client) {
    let slow = format!("null-aio,node-name=n,size=1M,latency-ns={LATENCY}");
    let args = [
        "--object",
        "throttle-group,id=g,limits.iops-total=20",
        "--blockdev",
        "null-co,node-name=m,size=1M",
        "--blockdev",
        "throttle,node-name=t,throttle-group=g,file=m",
        "--blockdev",
        &slow,
        "--export",
        "vhost-user-blk,id=limited,node-name=t,addr.type=unix,addr.path=limited.sock",
        "--export",
        "vhost-user-blk,id=slow,node-name=n,addr.type=unix,addr.path=slow.sock",
    ];
    let daemon = Daemon::start_with(
        tempdir().expect("make a directory"),
        &[&MONITOR[..], &args].concat(),
    );
    let mut client = Client::connect(&daemon.dir().join("qmp.sock"));
    client.sees_own_events = true;
    (daemon, client)
}

fn connect(daemon: &Daemon, id: &str) -> Frontend {
    let socket = daemon.dir().join(format!("{id}.sock"));
    Frontend::connect(&socket, 1, 8, all_features()).expect("connect")
}

fn read(frontend: &mut Frontend, offset: u64) {
    assert_eq!(frontend.queue(0).run(&Op::Read { offset, len: LEN }).ret, 0);
}

fn trace(client: &mut Client, id: &str, seconds: u64) {
    client.run(
        TRACE,
        &json!({"id": id, "slower-than-ns": 10_000_000, "seconds": seconds}),
    );
}

/// Waits for the report of a slow request of this disk.
fn slow_request(client: &mut Client, id: &str) -> Value {
    loop {
        let mut line = client.next();
        if line["event"] == "__vhost-user-blk_REQUEST_SLOW" && line["data"]["id"] == id {
            return line["data"].take();
        }
    }
}

fn nanos(request: &Value, stage: &str) -> u64 {
    request[stage]
        .as_u64()
        .unwrap_or_else(|| panic!("no {stage} in {request}"))
}

#[test]
fn slow_requests_say_where_their_time_went() {
    let (daemon, mut client) = start();
    trace(&mut client, "slow", 60);
    read(&mut connect(&daemon, "slow"), 8192);
    let request = slow_request(&mut client, "slow");
    assert_eq!(
        [&request["operation"], &request["offset"], &request["bytes"]],
        [&json!("read"), &json!(8192), &json!(LEN)]
    );
    assert!(nanos(&request, "storage-ns") >= LATENCY, "{request}");
    assert_eq!(nanos(&request, "throttled-ns"), 0, "{request}");

    trace(&mut client, "limited", 60);
    let mut frontend = connect(&daemon, "limited");
    (0..8).for_each(|tag| frontend.queue(0).submit(&Op::Read { offset: 0, len: LEN }, tag));
    frontend.queue(0).kick();
    frontend.queue(0).drain();
    let request = slow_request(&mut client, "limited");
    assert!(nanos(&request, "throttled-ns") >= 10_000_000, "{request}");
}

#[test]
fn only_a_disk_that_is_traced_reports_requests() {
    let (daemon, mut client) = start();
    let mut frontend = connect(&daemon, "slow");
    read(&mut frontend, 0);
    trace(&mut client, "slow", 60);
    trace(&mut client, "slow", 0);
    read(&mut frontend, 4096);
    trace(&mut client, "limited", 60);
    read(&mut frontend, 8192);
    trace(&mut client, "slow", 60);
    read(&mut frontend, 12288);
    assert_eq!(slow_request(&mut client, "slow")["offset"], 12288);
}

#[test]
fn disks_that_cannot_be_traced_are_named() {
    let (_daemon, mut client) = start();
    let wish = |id: &str, seconds: u64| json!({"id": id, "slower-than-ns": 0, "seconds": seconds});
    let (_, reason) = client.refusal(TRACE, &wish("other", 1));
    assert_eq!(reason, "Export 'other' is not found");
    let (_, reason) = client.refusal(TRACE, &wish("slow", 3601));
    assert!(reason.contains("from 0 to 3600"), "{reason}");
}

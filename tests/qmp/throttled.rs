//! The end of disks whose requests wait for their throttle group: nothing waits for the limit.

use serde_json::json;
use tempfile::tempdir;
use testkit::daemon::Daemon;
use testkit::frontend::{Frontend, Op, all_features};
use testkit::process::wait_for;

use crate::client::Client;
use crate::daemon::MONITOR;

/// Requests per disk. At the limit of ten bytes a second, each takes minutes.
const REQUESTS: usize = 8;

/// Starts two disks, `a` and `b`, of one group on two IOThreads.
fn start() -> Daemon {
    let args = [
        "--object",
        "throttle-group,id=g,limits.bps-total=10",
        "--object",
        "iothread,id=x",
        "--object",
        "iothread,id=y",
        "--blockdev",
        "null-co,node-name=m,size=1M",
        "--blockdev",
        "null-co,node-name=n,size=1M",
        "--blockdev",
        "throttle,node-name=s,throttle-group=g,file=m",
        "--blockdev",
        "throttle,node-name=t,throttle-group=g,file=n",
        "--export",
        "vhost-user-blk,id=a,node-name=s,addr.type=unix,addr.path=a.sock,writable=on,iothread=x",
        "--export",
        "vhost-user-blk,id=b,node-name=t,addr.type=unix,addr.path=b.sock,writable=on,iothread=y",
    ];
    Daemon::start_with(
        tempdir().expect("make a directory"),
        &[&MONITOR[..], &args].concat(),
    )
}

fn connect(daemon: &Daemon, socket: &str) -> Frontend {
    Frontend::connect(&daemon.dir().join(socket), 1, REQUESTS, all_features()).expect("connect")
}

fn submit(frontend: &mut Frontend) {
    let read = Op::Read { offset: 0, len: 4096 };
    (0..REQUESTS).for_each(|tag| frontend.queue(0).submit(&read, tag));
    frontend.queue(0).kick();
}

fn throttled(client: &mut Client, id: &str) -> u64 {
    let disks = client.run("query-blockstats", &json!({}));
    let disk = disks
        .as_array()
        .and_then(|disks| disks.iter().find(|disk| disk["qdev"] == id));
    disk.map_or(0, |disk| {
        disk["x-export"]["total"]["throttled"].as_u64().expect("a number")
    })
}

fn wait_until_throttled(client: &mut Client, id: &str) {
    wait_for("throttled requests", || {
        (throttled(client, id) >= 7).then_some(())
    });
}

#[test]
fn throttled_disks_are_removed_at_once() {
    for mode in ["safe", "hard"] {
        let mut daemon = start();
        let mut client = Client::connect(&daemon.dir().join("qmp.sock"));
        let (mut a, mut b) = (connect(&daemon, "a.sock"), connect(&daemon, "b.sock"));
        // The first disk keeps the time for the group.
        submit(&mut a);
        wait_until_throttled(&mut client, "a");
        submit(&mut b);
        wait_until_throttled(&mut client, "b");
        client.run("block-export-del", &json!({"id": "a", "mode": mode}));
        assert!(throttled(&mut client, "b") >= 7, "the other disk waits on");
        let limits = json!({"path": "/objects/g", "property": "limits", "value": {"bps-total": 0}});
        client.run("qom-set", &limits);
        wait_for("the other disk's requests", || {
            (throttled(&mut client, "b") == 0).then_some(())
        });
        drop((a, b));
        assert!(daemon.terminate().status.success());
    }
}

#[test]
fn throttled_requests_delay_neither_disconnection_nor_sigterm() {
    let mut daemon = start();
    let mut client = Client::connect(&daemon.dir().join("qmp.sock"));
    let mut frontend = connect(&daemon, "a.sock");
    submit(&mut frontend);
    wait_until_throttled(&mut client, "a");
    drop(frontend);
    wait_for("the end of the connection", || {
        (throttled(&mut client, "a") == 0).then_some(())
    });
    let mut frontend = connect(&daemon, "a.sock");
    submit(&mut frontend);
    wait_until_throttled(&mut client, "a");
    let exit = daemon.terminate();
    assert!(exit.status.success(), "{}", exit.output);
}

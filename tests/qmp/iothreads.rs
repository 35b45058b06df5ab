//! Properties of IOThreads that change while they serve disks.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use testkit::daemon::Daemon;
use testkit::frontend::{Frontend, Op, all_features};

use crate::client::Client;
use crate::daemon::start;

/// A deadline in case of a hang.
const DEADLINE: Duration = Duration::from_secs(60);

/// Returns the number of workers of the first IOThread.
fn workers(client: &mut Client) -> u64 {
    let iothreads = client.run("query-iothreads", &json!({}));
    iothreads[0]["x-figures"]["pool-threads"]
        .as_u64()
        .expect("a number")
}

#[test]
fn the_pool_of_a_running_iothread_follows_its_limits() {
    let (daemon, socket) = start(&[]);
    let mut client = Client::connect(&socket);
    let mut frontend = Frontend::connect(&daemon.socket(), 1, 4, all_features()).expect("connect");
    let set = |client: &mut Client, property: &str, value: u64| {
        let path = "/objects/iothread0";
        client.run(
            "qom-set",
            &json!({"path": path, "property": property, "value": value}),
        );
        let get = json!({"path": path, "property": property});
        assert_eq!(client.run("qom-get", &get), Value::from(value));
    };
    for (min, max) in [(7, 9), (2, 3), (12, 12)] {
        // One after the other, so that no pair is impossible.
        set(&mut client, "thread-pool-min", 0);
        set(&mut client, "thread-pool-max", max);
        set(&mut client, "thread-pool-min", min);
        let start = Instant::now();
        while !(min..=max).contains(&workers(&mut client)) {
            assert!(start.elapsed() < DEADLINE, "{min} to {max} workers");
        }
        let done = frontend.queue(0).run(&Op::Flush);
        assert_eq!(done.ret, 0);
    }
}

#[test]
fn an_iothread_that_no_export_names_is_shown() {
    let dir = tempfile::tempdir().expect("make a directory");
    let daemon = Daemon::start_with(
        dir,
        &[
            "--chardev",
            "socket,id=m,path=qmp.sock,server=on,wait=off",
            "--monitor",
            "chardev=m",
            "--blockdev",
            "null-co,node-name=n,size=1M",
            "--export",
            "vhost-user-blk,id=e,node-name=n,addr.type=unix,addr.path=vhost-user-blk.sock",
        ],
    );
    let mut client = Client::connect(&daemon.dir().join("qmp.sock"));
    let iothreads = client.run("query-iothreads", &json!({}));
    assert_eq!(iothreads.as_array().map(Vec::len), Some(1), "{iothreads}");
    assert_eq!(iothreads[0]["id"], "iothread");
    assert!(iothreads[0]["x-figures"]["cpu-ns"].is_u64(), "{iothreads}");
}

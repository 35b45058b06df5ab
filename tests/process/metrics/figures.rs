//! The figures of disks, queues and IOThreads.

use std::collections::BTreeSet;

use testkit::daemon::Daemon;
use testkit::frontend::{Done, Frontend, Op, all_features};
use testkit::metrics::{Metrics, scrape};
use testkit::process::wait_for;

use super::{UNIX, connect, start};

const BLOCK: usize = 4096;
const DOCUMENT: &str = include_str!("../../../docs/metrics.md");

fn read(offset: u64) -> Op {
    Op::Read { offset, len: BLOCK }
}

fn run(frontend: &mut Frontend, queue: usize, op: &Op) -> Done {
    frontend.queue(queue).run(op)
}

#[test]
fn metrics_count_what_frontends_did() {
    let options = [
        "--num-queues",
        "2",
        "--inject",
        "write:eio:sector=8",
        "--werror",
        "report",
    ];
    let daemon = start(&[&options[..], &["--sandbox", "on", "--poll-max-ns", "0"]].concat());
    let idle = scrape(connect(&daemon));
    let disk = [("disk", "disk")];
    assert_eq!(idle.value("vhost_user_blk_frontend_connected", &disk), 0.0);
    let none = idle.values("vhost_user_blk_request_duration_seconds_count", &[]);
    assert!(none.is_empty(), "{none:?}");

    let mut frontend = Frontend::connect(&daemon.socket(), 2, 4, all_features()).expect("connect");
    (0..3).for_each(|n| assert_eq!(run(&mut frontend, 0, &read(n * 4096)).ret, 0));
    let data = vec![1; BLOCK];
    let write = |offset| Op::Write {
        offset,
        data: data.clone(),
    };
    assert_eq!(run(&mut frontend, 0, &write(0)).ret, 0);
    assert_ne!(run(&mut frontend, 0, &write(4096)).ret, 0, "injected");
    assert_ne!(run(&mut frontend, 0, &read(1 << 40)).ret, 0, "beyond the disk");
    assert_eq!(run(&mut frontend, 1, &Op::Flush).ret, 0);
    let zeroes = Op::WriteZeroes {
        offset: 0,
        len: 8192,
        unmap: false,
    };
    assert_eq!(run(&mut frontend, 1, &zeroes).ret, 0);

    let page = figures_of(&daemon, &[3, 2, 1, 1, 1]);
    check_requests(&page);
    for queue in ["0", "1"] {
        let of = [("disk", "disk"), ("queue", queue)];
        let value = |name: &str| page.value(&format!("vhost_user_blk_{name}"), &of);
        assert!(value("kicks_total") + value("poll_hits_total") >= 1.0);
        assert!(value("notifications_total") >= value("completions_per_notification_count"));
        assert_eq!(value("in_flight_requests"), 0.0);
        let running = [of[0], of[1], ("state", "running")];
        assert_eq!(page.value("vhost_user_blk_ring_state", &running), 1.0);
    }
    assert_eq!(page.value("vhost_user_blk_frontend_connected", &disk), 1.0);
    assert_eq!(
        page.value("vhost_user_blk_frontend_connections_total", &disk),
        1.0
    );
    drop(frontend);
    wait_for("the end of the connection", || {
        let page = scrape(connect(&daemon));
        (page.value("vhost_user_blk_frontend_connected", &disk) == 0.0).then_some(())
    });
}

/// Waits until the page shows these numbers of reads, writes, flushes, unmaps, and other requests: it may be a moment
/// old.
fn figures_of(daemon: &Daemon, expected: &[u64; 5]) -> Metrics {
    wait_for("the figures", || {
        let page = scrape(connect(daemon));
        let requests = |operation| {
            let values = page.values("vhost_user_blk_requests_total", &[("operation", operation)]);
            values.iter().sum::<f64>()
        };
        let found = ["read", "write", "flush", "unmap", "other"].map(requests);
        (found == expected.map(|n| n as f64)).then_some(page)
    })
}

fn check_requests(page: &Metrics) {
    let of = |queue, operation| [("disk", "disk"), ("queue", queue), ("operation", operation)];
    let value =
        |name: &str, queue, operation| page.value(&format!("vhost_user_blk_{name}"), &of(queue, operation));
    for (name, queue, operation, expected) in [
        ("requests_total", "0", "read", 3.0),
        ("requests_total", "0", "flush", 0.0),
        ("requests_total", "1", "flush", 1.0),
        ("transferred_bytes_total", "0", "read", 3.0 * 4096.0),
        ("transferred_bytes_total", "0", "write", 4096.0),
        ("transferred_bytes_total", "1", "unmap", 8192.0),
        ("request_errors_total", "0", "read", 0.0),
        ("request_errors_total", "0", "write", 1.0),
        ("request_errors_total", "0", "other", 1.0),
        ("request_errors_total", "1", "unmap", 0.0),
        ("request_duration_seconds_count", "0", "read", 3.0),
        ("request_duration_seconds_count", "0", "write", 1.0),
        ("request_duration_seconds_count", "1", "unmap", 1.0),
    ] {
        assert_eq!(
            value(name, queue, operation),
            expected,
            "{name} {queue} {operation}"
        );
    }
    assert!(value("request_duration_seconds_sum", "0", "read") > 0.0);
}

#[test]
fn disks_have_the_names_of_their_images() {
    let dir = tempfile::tempdir().expect("make a directory");
    std::fs::write(dir.path().join("a.img"), [0; 1 << 20]).expect("write an image");
    let mut args = vec!["--object", "throttle-group,id=g"];
    for node in [
        "file,node-name=f,filename=a.img,read-only=on",
        "null-co,node-name=n,size=1M",
        "null-co,node-name=m,size=1M",
        "throttle,node-name=t,throttle-group=g,file=m",
    ] {
        args.extend(["--blockdev", node]);
    }
    for export in [
        "vhost-user-blk,id=x0,node-name=f,addr.type=unix,addr.path=x0.sock",
        "vhost-user-blk,id=x1,node-name=n,addr.type=unix,addr.path=x1.sock",
        "vhost-user-blk,id=x2,node-name=t,addr.type=unix,addr.path=x2.sock",
    ] {
        args.extend(["--export", export]);
    }
    let daemon = Daemon::start_with(dir, &[&UNIX[..], &args].concat());
    let page = scrape(connect(&daemon));
    for (disk, image) in [("x0", "a.img"), ("x1", "null"), ("x2", "null")] {
        let labels = [("disk", disk), ("image", image)];
        assert_eq!(page.values("vhost_user_blk_disk_info", &labels), [1.0], "{disk}");
    }
}

#[test]
fn throttled_and_held_requests_are_shown() {
    let dir = tempfile::tempdir().expect("make a directory");
    let options = [
        "--object",
        "throttle-group,id=g,limits.iops-total=1",
        "--object",
        "iothread,id=io",
        "--blockdev",
        "null-co,node-name=n,size=1M",
        "--blockdev",
        "throttle,node-name=t,throttle-group=g,file=n",
        "--export",
        "vhost-user-blk,id=limited,node-name=t,addr.type=unix,addr.path=s,writable=on,iothread=io",
        "--blockdev",
        "null-co,node-name=m,size=1M",
        "--export",
        "vhost-user-blk,id=nospace,node-name=m,addr.type=unix,addr.path=f,writable=on,iothread=io,\
         inject.0=write:enospc",
    ];
    let mut daemon = Daemon::start_with(dir, &[&UNIX[..], &options].concat());
    let connect_to =
        |socket: &str| Frontend::connect(&daemon.dir().join(socket), 1, 8, all_features()).expect("connect");
    let (mut slow, mut full) = (connect_to("s"), connect_to("f"));
    (0..5).for_each(|tag| slow.queue(0).submit(&read(0), tag));
    slow.queue(0).kick();
    let data = vec![0; BLOCK];
    (0..3).for_each(|tag| {
        full.queue(0).submit(
            &Op::Write {
                offset: 0,
                data: data.clone(),
            },
            tag,
        )
    });
    full.queue(0).kick();
    wait_for("waiting requests", || {
        let page = scrape(connect(&daemon));
        let value = |name: &str, disk| page.value(&format!("vhost_user_blk_{name}"), &[("disk", disk)]);
        let waiting = value("throttled_requests", "limited");
        let held = value("held_requests", "nospace");
        if waiting < 1.0 || held < 3.0 {
            return None;
        }
        assert!(value("requests_throttled_total", "limited") >= waiting);
        assert_eq!(value("requests_held_total", "nospace"), 3.0);
        assert_eq!(value("throttled_requests", "nospace"), 0.0);
        assert_eq!(value("in_flight_requests", "nospace"), 3.0);
        assert!((waiting..=5.0).contains(&value("in_flight_requests", "limited")));
        Some(())
    });
    assert!(daemon.count("total", "throttled_ever") >= 3);
    drop((slow, full));
    assert!(daemon.terminate().status.success());
}

#[test]
fn iothreads_have_figures_of_their_own() {
    let daemon = start(&[
        "--iothreads",
        "2",
        "--num-queues",
        "2",
        "--aio",
        "threads",
        "--thread-pool-min",
        "3",
    ]);
    let mut frontend = Frontend::connect(&daemon.socket(), 2, 4, all_features()).expect("connect");
    assert_eq!(run(&mut frontend, 1, &read(0)).ret, 0);
    wait_for("workers", || {
        let page = scrape(connect(&daemon));
        let value =
            |name: &str, iothread| page.value(&format!("vhost_user_blk_{name}"), &[("iothread", iothread)]);
        let all = ["iothread0", "iothread1"].iter().all(|iothread| {
            let [threads, idle] =
                ["threads", "idle_threads"].map(|name| value(&format!("thread_pool_{name}"), iothread));
            assert!(value("iothread_cpu_seconds_total", iothread) > 0.0);
            assert!(value("iothread_sleeps_total", iothread) >= 1.0);
            assert!(value("iothread_polls_total", iothread) >= value("iothread_poll_hits_total", iothread));
            threads >= 3.0 && idle >= 3.0
        });
        all.then_some(())
    });
}

#[test]
fn the_document_lists_all_metrics() {
    let daemon = start(&[]);
    let suffix = |kind: &str| match kind {
        "counter" => "_total",
        "info" => "_info",
        _ => "",
    };
    let page = scrape(connect(&daemon));
    let real: BTreeSet<(String, String)> = page
        .families
        .into_iter()
        .map(|(name, kind)| (format!("{name}{}", suffix(&kind)), kind))
        .collect();
    let row = |line: &str| {
        let mut cells = line.strip_prefix("| `")?.split(" | ");
        let name = cells.next()?.trim_end_matches('`').to_owned();
        Some((name, cells.next()?.to_owned()))
    };
    let documented: BTreeSet<_> = DOCUMENT.lines().filter_map(row).collect();
    assert_eq!(documented, real, "docs/metrics.md (left) and the page differ");
}

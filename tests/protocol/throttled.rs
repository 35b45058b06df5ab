//! Requests that wait for their throttle group while something happens to their ring. The limits are so low that waiting
//! for them takes an hour, except in the last test.

use std::collections::BTreeSet;
use std::fs;

use serde_json::json;
use tempfile::tempdir;
use testkit::daemon::{Daemon, IMAGE, SOCKET};
use testkit::frontend::{Frontend, Op, all_features};
use testkit::inflight::Inflight;
use testkit::process::wait_for;
use testkit::qmp::Qmp;
use testkit::raw::{Answer, msg};
use testkit::vm::{DATA, EVENT_IDX, Vm};

use super::stop::{BYTES, OUT, put, take, tracked};

/// Writes, of which the first one finds an empty bucket.
const WRITES: u16 = 5;
const LIMITS: &str = "limits.bps-total=10";

/// Serves an image of zeroes behind a throttle group.
fn throttled() -> Daemon {
    let dir = tempdir().expect("make a directory");
    fs::write(dir.path().join(IMAGE), [0; 1 << 16]).expect("write the image");
    let file = format!("file,node-name=f,filename={IMAGE}");
    let export =
        format!("vhost-user-blk,id=a,node-name=t,addr.type=unix,addr.path={SOCKET},writable=on,iothread=io");
    Daemon::start_with(
        dir,
        &[
            "--object",
            "iothread,id=io",
            "--object",
            &format!("throttle-group,id=g,{LIMITS}"),
            "--blockdev",
            &file,
            "--blockdev",
            "throttle,node-name=t,throttle-group=g,file=f",
            "--export",
            &export,
        ],
    )
}

/// Puts writes with data of their own into the ring, and waits until all but the first one wait for the limit.
fn load(vm: &mut Vm, region: &Inflight) {
    for i in 0..WRITES {
        let bytes = BYTES as usize;
        let at = DATA + u64::from(i) * u64::from(BYTES);
        vm.poke(at, &vec![data(i); bytes]);
        put(vm, i, OUT, BYTES);
    }
    vm.kick(0);
    let all_but_first = (1..WRITES).map(|i| 3 * i).collect::<Vec<_>>();
    wait_for("throttled writes", || {
        (region.marked(0) == all_but_first).then_some(())
    });
}

fn data(i: u16) -> u8 {
    0x10 + u8::try_from(i).expect("a few")
}

fn assert_written(daemon: &Daemon) {
    let image = daemon.image();
    for i in 0..WRITES {
        let at = usize::from(i) * BYTES as usize;
        assert!(
            image[at..at + BYTES as usize].iter().all(|byte| *byte == data(i)),
            "write {i}"
        );
    }
}

/// Checks that each write was answered once, and is tracked no longer.
fn assert_answered(vm: &mut Vm, region: &Inflight) {
    let heads: BTreeSet<u32> = (0..WRITES).map(|_| take(vm)).collect();
    assert_eq!(heads, (0..WRITES).map(|i| 3 * u32::from(i)).collect());
    assert_eq!(vm.take_used(0), None);
    assert!(region.marked(0).is_empty());
}

#[test]
fn a_stopping_ring_does_not_wait_for_its_limit() {
    let mut daemon = throttled();
    let (mut vm, region) = tracked(&daemon, 16);
    load(&mut vm, &region);
    let base = vm.client.stop_ring(0).expect("the stop is answered");
    assert_eq!(base, u32::from(WRITES), "no write is left to a successor");
    assert_answered(&mut vm, &region);
    assert_written(&daemon);
    // The writes were charged, so the next one waits.
    assert_eq!(region.set(&mut vm.client), Answer::Ack);
    vm.restart_rings();
    put(&mut vm, 0, OUT, BYTES);
    vm.kick(0);
    wait_for("the write to be taken", || {
        (region.marked(0) == [0]).then_some(())
    });
    vm.client.stop_ring(0).expect("the stop is answered");
    assert!(region.marked(0).is_empty());
    assert!(daemon.terminate().status.success());
}

#[test]
fn a_killed_daemon_loses_no_throttled_request() {
    let mut daemon = throttled();
    let (mut vm, region) = tracked(&daemon, 16);
    load(&mut vm, &region);
    daemon.restart(libc::SIGKILL);
    vm.reconnect(daemon.connect(), 0);
    assert_eq!(region.set(&mut vm.client), Answer::Ack);
    vm.share_memory();
    vm.restart_rings();
    let rest = (2..WRITES).map(|i| 3 * i).collect::<Vec<_>>();
    wait_for("the first of them", || (region.marked(0) == rest).then_some(()));
    vm.client.stop_ring(0).expect("the stop is answered");
    assert_answered(&mut vm, &region);
    assert_written(&daemon);
}

#[test]
fn an_untracked_connection_ends_with_throttled_requests() {
    let daemon = throttled();
    for _ in 0..3 {
        let mut vm = Vm::start_with(&daemon, 1, 16, EVENT_IDX);
        for i in 0..WRITES {
            put(&mut vm, i, OUT, BYTES);
        }
        vm.kick(0);
        // No message waits for the limit, either.
        assert_eq!(vm.client.ask(msg::SET_VRING_ENABLE, &[0; 8], &[]), Answer::Ack);
        drop(vm);
    }
    Vm::start(&daemon, 1);
}

#[test]
fn a_migration_takes_throttled_requests_along() {
    let source = throttled();
    let (mut vm, region) = tracked(&source, 16);
    load(&mut vm, &region);
    let dir = tempdir().expect("make a directory");
    let image = source.image_path();
    let image = image.to_str().expect("the path is UTF-8");
    let args = ["--socket-path", SOCKET, "--blk-file", image, "--incoming"];
    let destination = Daemon::start_with(dir, &args);
    vm.client.stop_ring(0).expect("the stop is answered");
    assert_answered(&mut vm, &region);
    let mut frontend = Frontend::connect(&destination.socket(), 1, 1, all_features()).expect("connect");
    for i in 0..WRITES {
        let offset = u64::from(i) * u64::from(BYTES);
        let read = frontend.queue(0).run(&Op::Read { offset, len: 4096 });
        assert_eq!((read.ret, read.data), (0, vec![data(i); 4096]));
    }
}

#[test]
fn a_single_request_does_not_wait_for_a_long_queue() {
    let export = |id: &str| {
        format!(
            "vhost-user-blk,id={id},node-name=t{id},addr.type=unix,addr.path={id},writable=on,iothread=io"
        )
    };
    let (a, b) = (export("a"), export("b"));
    let args = [
        "--object=iothread,id=io",
        "--object=throttle-group,id=g,limits.bps-total=10",
        "--blockdev=null-co,node-name=na,size=1M",
        "--blockdev=null-co,node-name=nb,size=1M",
        "--blockdev=throttle,node-name=ta,throttle-group=g,file=na",
        "--blockdev=throttle,node-name=tb,throttle-group=g,file=nb",
        "--export",
        &a,
        "--export",
        &b,
        "--chardev=socket,id=m,path=qmp.sock,server=on,wait=off",
        "--monitor=chardev=m",
    ];
    let daemon = Daemon::start_with(tempdir().expect("make a directory"), &args);
    let connect = |id: &str, depth| {
        Frontend::connect(&daemon.dir().join(id), 1, depth, all_features()).expect("connect")
    };
    let (mut long, mut short) = (connect("a", 256), connect("b", 1));
    let read = Op::Read { offset: 0, len: 4096 };
    (0..256).for_each(|tag| long.queue(0).submit(&read, tag));
    long.queue(0).kick();
    // The first one is answered; the others wait, and so does the next disk's.
    assert_eq!(long.queue(0).wait().0.len(), 1);
    short.queue(0).submit(&read, 0);
    short.queue(0).kick();
    let mut qmp = Qmp::connect(&daemon.dir().join("qmp.sock"));
    let limits =
        json!({"path": "/objects/g", "property": "limits", "value": {"bps-total": 0, "iops-total": 10}});
    qmp.execute("qom-set", &limits);
    // At once, or after a tenth of a second. All requests of the other disk take 25 seconds.
    short.queue(0).drain();
    long.queue(0).reap();
    assert!(long.queue(0).in_flight() > 0, "it waited for the whole queue");
}

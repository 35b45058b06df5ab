//! Disks that are added and removed while another one works. Inside the sandbox, all files come as descriptors.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use serde_json::{Value, json};
use testkit::daemon::Daemon;
use testkit::frontend::{Frontend, Op, all_features};
use testkit::holdings::Holdings;
use testkit::metrics::scrape;
use testkit::process::{SetAtEnd, wait_for};
use testkit::skip::skipped;

use crate::client::Client;
use crate::daemon::start_with;
use crate::descriptors::ask_with;

const MIB: usize = 1 << 20;
const BLOCK: usize = 4096;
const ROUNDS: usize = 100;

/// Runs a command that must succeed.
fn run(client: &mut Client, command: &str, arguments: &Value) -> Value {
    client.run(command, arguments)
}

/// Passes an image and a socket to the daemon, and serves the image on the socket.
fn add(client: &mut Client, dir: &Path, socket: &str, blockdev: &Value, export: &Value) {
    let image = File::options().read(true).write(true).open(dir.join("hot.img"));
    let add = json!({"execute": "add-fd", "arguments": {"fdset-id": 7}});
    let added = ask_with(client, &add, &[image.expect("open the image").as_fd()]);
    assert_eq!(added["return"]["fdset-id"], 7, "{added}");
    let path = dir.join(socket);
    let _ = fs::remove_file(&path);
    let listener = UnixListener::bind(&path).expect("listen");
    let getfd = json!({"execute": "getfd", "arguments": {"fdname": "hot"}});
    let got = ask_with(client, &getfd, &[listener.as_fd()]);
    assert_eq!(got, json!({"return": {}}));
    let mut node = json!({"driver": "file", "node-name": "hot", "filename": "/dev/fdset/7"});
    merge(&mut node, blockdev);
    run(client, "blockdev-add", &node);
    run(client, "remove-fd", &json!({"fdset-id": 7}));
    let mut disk = json!({
        "type": "vhost-user-blk", "id": "hot", "node-name": "hot", "writable": true, "num-queues": 2,
        "addr": {"type": "fd", "str": "hot"}
    });
    merge(&mut disk, export);
    run(client, "block-export-add", &disk);
}

fn merge(options: &mut Value, more: &Value) {
    for (key, value) in more.as_object().expect("an object") {
        options[key] = value.clone();
    }
}

/// Removes the disk; the event comes before the answer.
fn remove(client: &mut Client, mode: &str) {
    let del = json!({"execute": "block-export-del", "arguments": {"id": "hot", "mode": mode}});
    client.send(format!("{del}\n"));
    let event = client.next();
    assert_eq!(
        (&event["event"], &event["data"]["id"]),
        (&json!("BLOCK_EXPORT_DELETED"), &json!("hot"))
    );
    assert_eq!(client.next(), json!({"return": {}}));
    run(client, "blockdev-del", &json!({"node-name": "hot"}));
}

fn write_and_read(frontend: &mut Frontend, queues: usize, byte: u8) {
    for queue in 0..queues {
        let offset = (queue * BLOCK) as u64;
        let data = vec![byte; BLOCK];
        assert_eq!(frontend.queue(queue).run(&Op::Write { offset, data }).ret, 0);
        let done = frontend.queue(queue).run(&Op::Read { offset, len: BLOCK });
        assert!(done.ret == 0 && done.data == [byte; BLOCK]);
        assert_eq!(frontend.queue(queue).run(&Op::Flush).ret, 0);
    }
}

fn daemon() -> (Daemon, Client) {
    let daemon = start_with(&["--sandbox", "on", "--thread-pool-max", "2"]);
    fs::write(daemon.dir().join("hot.img"), vec![0; MIB]).expect("make an image");
    let client = Client::connect(&daemon.dir().join("qmp.sock"));
    (daemon, client)
}

#[test]
fn an_image_stays_locked_while_its_frontend_is_away() {
    let (daemon, mut client) = daemon();
    let dir = daemon.dir().to_owned();
    add(&mut client, &dir, "hot.sock", &json!({}), &json!({}));
    let connect = || Frontend::connect(&dir.join("hot.sock"), 2, 4, all_features()).expect("connect");
    let frontend = connect();
    drop(frontend);
    wait_for("the frontend to be gone", || {
        daemon.output().contains("frontend left").then_some(())
    });
    for writable in [true, false] {
        let (socket, _peer) = UnixStream::pair().expect("make a socket pair");
        let getfd = json!({"execute": "getfd", "arguments": {"fdname": "twin"}});
        ask_with(&mut client, &getfd, &[socket.as_fd()]);
        let image = File::options().read(true).write(true).open(dir.join("hot.img"));
        let set = json!({"execute": "add-fd", "arguments": {"fdset-id": 8}});
        ask_with(&mut client, &set, &[image.expect("open the image").as_fd()]);
        let node = json!({"driver": "file", "node-name": "twin", "filename": "/dev/fdset/8"});
        client.run("blockdev-add", &node);
        let export = json!({
            "type": "vhost-user-blk", "id": "twin", "node-name": "twin", "writable": writable,
            "addr": {"type": "fd", "str": "twin"}
        });
        let (_, desc) = client.refusal("block-export-add", &export);
        assert!(
            desc.contains("is in use: another disk of this process uses it"),
            "{desc}"
        );
        client.run("blockdev-del", &json!({"node-name": "twin"}));
        client.run("remove-fd", &json!({"fdset-id": 8}));
    }
    write_and_read(&mut connect(), 2, 1);
}

#[test]
fn secrets_have_exactly_one_source() {
    let (_daemon, mut client) = daemon();
    let mut secret = |sources: Value| {
        let mut arguments = json!({"qom-type": "secret", "id": "s"});
        arguments
            .as_object_mut()
            .expect("an object")
            .extend(sources.as_object().expect("an object").clone());
        client.refusal("object-add", &arguments)
    };
    let error = |desc: &str| ("GenericError".to_owned(), desc.to_owned());
    assert_eq!(secret(json!({})), error("a secret needs 'data' or 'file'"));
    let both = json!({"data": "x", "file": "y"});
    assert_eq!(secret(both), error("a secret has 'data' or 'file', not both"));
    let arguments = json!({"qom-type": "secret", "id": "s", "data": "x"});
    client.run("object-add", &arguments);
}

#[test]
fn disks_are_added_inside_the_sandbox() {
    let (mut daemon, mut client) = daemon();
    let dir = daemon.dir().to_owned();
    run(
        &mut client,
        "object-add",
        &json!({"qom-type": "iothread", "id": "new", "poll-max-ns": 0}),
    );
    let direct = json!({"cache": {"direct": true}});
    let with_aio = |aio: &str| json!({"cache": {"direct": true}, "aio": aio});
    for (node, export) in [
        (json!({}), json!({"iothread": "iothread0"})),
        (json!({"aio": "threads"}), json!({"iothread": "new"})),
        (direct, json!({})),
        (with_aio("io_uring"), json!({"iothread": ["new", "iothread0"]})),
        (with_aio("native"), json!({"iothread": "new"})),
    ] {
        add(&mut client, &dir, "hot.sock", &node, &export);
        let mut frontend = Frontend::connect(&dir.join("hot.sock"), 2, 4, all_features()).expect("connect");
        write_and_read(&mut frontend, 2, 0x5a);
        assert!(daemon.is_alive());
        remove(&mut client, "hard");
    }
    run(
        &mut client,
        "blockdev-add",
        &json!({"driver": "null-co", "node-name": "null"}),
    );
    // Commands that the sandbox prevents are refused, and the daemon survives them.
    for (command, arguments) in [
        (
            "blockdev-add",
            json!({"driver": "file", "node-name": "n", "filename": "hot.img"}),
        ),
        (
            "block-export-add",
            json!({"type": "vhost-user-blk", "id": "e", "node-name": "null", "addr": {"type": "unix", "path": "s"}}),
        ),
    ] {
        let answer = client.ask(&json!({"execute": command, "arguments": arguments}));
        assert!(
            answer["error"]["desc"]
                .as_str()
                .is_some_and(|desc| desc.contains("sandbox")),
            "{answer}"
        );
    }
    run(&mut client, "object-del", &json!({"id": "new"}));
    assert!(daemon.terminate().status.success());
}

#[test]
fn qcow2_disks_are_added_inside_the_sandbox() {
    let (mut daemon, mut client) = daemon();
    let dir = daemon.dir().to_owned();
    let qemu_img = |args: &[&str]| {
        let run = Command::new("qemu-img").args(args).current_dir(&dir).output();
        run.is_ok_and(|output| output.status.success())
    };
    fs::write(dir.join("raw"), vec![7; MIB]).expect("write an image");
    if !qemu_img(&["convert", "-c", "-O", "qcow2", "raw", "base"]) {
        return skipped("no qemu-img");
    }
    assert!(qemu_img(&[
        "create", "-f", "qcow2", "-b", "base", "-F", "qcow2", "top"
    ]));
    for (number, name) in [(1, "base"), (2, "top")] {
        let image = File::open(dir.join(name)).expect("open an image");
        let add = json!({"execute": "add-fd", "arguments": {"fdset-id": number}});
        ask_with(&mut client, &add, &[image.as_fd()]);
    }
    let file = |number: u8| json!({"driver": "file", "filename": format!("/dev/fdset/{number}")});
    let mut node = |name: &str, number, more: &Value| {
        let mut node = json!({"driver": "qcow2", "node-name": name, "file": file(number), "read-only": true});
        merge(&mut node, more);
        client.ask(&json!({"execute": "blockdev-add", "arguments": node}))
    };
    assert_eq!(node("base", 1, &json!({"backing": null})), json!({"return": {}}));
    let refused = |answer: Value, words: &str| {
        let desc = answer["error"]["desc"].as_str().unwrap_or_default().to_owned();
        assert!(desc.contains(words), "{answer}");
    };
    refused(node("top", 2, &json!({})), "names the backing file 'base'");
    refused(
        node("top", 2, &json!({"follow-names": true})),
        "the sandbox keeps this process",
    );
    refused(
        node("top", 2, &json!({"read-only": false})),
        "has the right access mode",
    );
    refused(node("top", 99, &json!({})), "no set of descriptors /dev/fdset/99");
    refused(node("top", 2, &json!({"active": false})), "cannot be inactive");
    assert_eq!(node("top", 2, &json!({"backing": "base"})), json!({"return": {}}));
    let listener = UnixListener::bind(dir.join("hot.sock")).expect("listen");
    let getfd = json!({"execute": "getfd", "arguments": {"fdname": "hot"}});
    ask_with(&mut client, &getfd, &[listener.as_fd()]);
    let mut export = json!({
        "type": "vhost-user-blk", "id": "hot", "node-name": "top", "addr": {"type": "fd", "str": "hot"}, "writable": true
    });
    refused(
        client.ask(&json!({"execute": "block-export-add", "arguments": export})),
        "read-only",
    );
    // The refused command has taken the socket.
    let listener = listener.try_clone().expect("duplicate the socket");
    ask_with(&mut client, &getfd, &[listener.as_fd()]);
    export["writable"] = json!(false);
    run(&mut client, "block-export-add", &export);
    let mut frontend = Frontend::connect(&dir.join("hot.sock"), 1, 4, all_features()).expect("connect");
    let done = frontend.queue(0).run(&Op::Read {
        offset: 5000 / 512 * 512,
        len: 8192,
    });
    assert!(done.ret == 0 && done.data == [7; 8192]);
    for (command, arguments, words) in [
        (
            "blockdev-del",
            json!({"node-name": "base"}),
            "in use by node 'top'",
        ),
        (
            "block_resize",
            json!({"node-name": "base", "size": 2 * MIB}),
            "read-only",
        ),
        (
            "blockdev-reopen",
            json!({"options": [{"driver": "qcow2", "node-name": "top", "file": "x"}]}),
            "reopened",
        ),
    ] {
        refused(
            client.ask(&json!({"execute": command, "arguments": arguments})),
            words,
        );
    }
    drop(frontend);
    let del = json!({"execute": "block-export-del", "arguments": {"id": "hot", "mode": "hard"}});
    client.send(format!("{del}\n"));
    assert_eq!(client.next()["event"], "BLOCK_EXPORT_DELETED");
    assert_eq!(client.next(), json!({"return": {}}));
    for name in ["top", "base"] {
        run(&mut client, "blockdev-del", &json!({"node-name": name}));
    }
    assert!(daemon.terminate().status.success());
}

#[test]
fn hot_disks_come_and_go_beside_a_busy_one() {
    let (mut daemon, mut client) = daemon();
    let (dir, socket) = (daemon.dir().to_owned(), daemon.socket());
    let stop = AtomicBool::new(false);
    let pid = daemon.pid();
    thread::scope(|scope| {
        let _stop = SetAtEnd(&stop);
        let work = scope.spawn(|| {
            let mut frontend = Frontend::connect(&socket, 1, 4, all_features()).expect("connect");
            let mut rounds: u8 = 0;
            while !stop.load(Ordering::Relaxed) {
                rounds = rounds.wrapping_add(1);
                write_and_read(&mut frontend, 1, rounds);
            }
        });
        let mut come_and_go = |round: usize| {
            let direct = json!({"cache": {"direct": round % 2 == 1}});
            add(
                &mut client,
                &dir,
                "hot.sock",
                &direct,
                &json!({"iothread": "iothread0"}),
            );
            let mut frontend =
                Frontend::connect(&dir.join("hot.sock"), 2, 4, all_features()).expect("connect");
            write_and_read(&mut frontend, 2, u8::try_from(round % 256).expect("a byte"));
            remove(&mut client, if round.is_multiple_of(3) { "hard" } else { "safe" });
        };
        (0..8).for_each(&mut come_and_go);
        let mut limit = Holdings::of(pid);
        // Workers start and end by themselves.
        limit.threads += 4;
        (0..ROUNDS).for_each(&mut come_and_go);
        wait_for("removed disks to leave nothing behind", || {
            Holdings::of(pid).is_within(&limit).then_some(())
        });
        stop.store(true, Ordering::Relaxed);
        work.join().expect("the other disk works");
    });
    assert!(daemon.terminate().status.success());
}

#[test]
fn a_hard_removal_leaves_a_stuck_disk_behind() {
    let (mut daemon, mut client) = daemon();
    let dir = daemon.dir().to_owned();
    let stuck = json!({"inject": ["read:delay=20s"], "num-queues": 1, "iothread": "iothread0"});
    add(&mut client, &dir, "hot.sock", &json!({}), &stuck);
    let mut frontend = Frontend::connect(&dir.join("hot.sock"), 1, 64, all_features()).expect("connect");
    let queue = frontend.queue(0);
    for tag in 0..64 {
        queue.submit(&Op::Read { offset: 0, len: 512 }, tag);
    }
    queue.kick();
    wait_for("the IOThread to take the requests", || {
        let disks = run(&mut client, "query-blockstats", &json!({}));
        let hot = disks.as_array()?.iter().find(|disk| disk["qdev"] == "hot")?;
        (hot["x-export"]["total"]["kicks"].as_u64()? > 0).then_some(())
    });
    let del = |mode| {
        json!({"execute": "block-export-del", "arguments": {"id": "hot", "mode": mode}}).to_string() + "\n"
    };
    let mut patient = Client::connect(&dir.join("qmp.sock"));
    patient.send(del("safe"));
    wait_for("the removal", || {
        let exports = run(&mut client, "query-block-exports", &json!({}));
        let hot = exports.as_array()?.iter().find(|export| export["id"] == "hot")?;
        (hot["shutting-down"] == true).then_some(())
    });
    let again = json!({"id": "hot", "mode": "safe"});
    let (_, desc) = client.refusal("block-export-del", &again);
    assert_eq!(desc, "Export 'hot' is already shutting down");
    client.send(del("hard"));
    for client in [&mut client, &mut patient] {
        assert_eq!(client.next()["event"], "BLOCK_EXPORT_DELETED");
        assert_eq!(client.next(), json!({"return": {}}));
    }
    assert_eq!(
        run(&mut client, "query-block-exports", &json!({}))
            .as_array()
            .map(Vec::len),
        Some(1)
    );
    let del = json!({"execute": "blockdev-del", "arguments": {"node-name": "hot"}});
    assert_eq!(
        client.ask(&del)["error"]["class"],
        "GenericError",
        "it is still in use"
    );
    // The other disk still works.
    let mut other = Frontend::connect(&daemon.socket(), 1, 4, all_features()).expect("connect");
    write_and_read(&mut other, 1, 1);
    drop((other, frontend));
    assert_eq!(
        daemon.terminate().status.code(),
        Some(1),
        "requests are left behind"
    );
}

#[test]
fn metrics_show_hot_disks_while_they_exist() {
    let mut daemon = start_with(&["--sandbox", "on", "--metrics", "unix:metrics.sock"]);
    let dir = daemon.dir().to_owned();
    fs::write(dir.join("hot.img"), vec![0; MIB]).expect("make an image");
    let mut client = Client::connect(&dir.join("qmp.sock"));
    let shown = || {
        let page = scrape(UnixStream::connect(dir.join("metrics.sock")).expect("connect"));
        let one = |name: &str, label| page.values(&format!("vhost_user_blk_{name}"), &[label]).len();
        let disk = ("disk", "hot");
        let iothread = one("iothread_sleeps_total", ("iothread", "new"));
        (one("disk_info", disk), one("kicks_total", disk), iothread)
    };
    let wait_until = |expected| {
        // A page may be a moment old.
        wait_for("the metrics", || (shown() == expected).then_some(()));
    };
    for _ in 0..3 {
        wait_until((0, 0, 0));
        run(
            &mut client,
            "object-add",
            &json!({"qom-type": "iothread", "id": "new"}),
        );
        wait_until((0, 0, 1));
        add(
            &mut client,
            &dir,
            "hot.sock",
            &json!({}),
            &json!({"iothread": "new"}),
        );
        wait_until((1, 2, 1));
        let mut frontend = Frontend::connect(&dir.join("hot.sock"), 2, 4, all_features()).expect("connect");
        write_and_read(&mut frontend, 2, 1);
        remove(&mut client, "safe");
        wait_until((0, 0, 1));
        run(&mut client, "object-del", &json!({"id": "new"}));
    }
    wait_until((0, 0, 0));
    let iothreads = run(&mut client, "query-iothreads", &json!({}));
    assert!(
        iothreads[0]["x-figures"]["sleeps"]
            .as_u64()
            .is_some_and(|n| n > 0),
        "{iothreads}"
    );
    assert!(daemon.terminate().status.success());
}

//! Disks that are added by the names of their images and sockets, inside the sandbox, beneath `--sandbox-path`.

use std::fs::{self, File, Permissions};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect as connect_to, listen, socket_with,
};
use serde_json::{Value, json};
use tempfile::TempDir;
use testkit::daemon::{Daemon, IMAGE};
use testkit::frontend::{Frontend, Op, all_features};
use testkit::holdings::Holdings;
use testkit::loop_device::LoopDevice;
use testkit::process::{threads, wait_for};

use crate::client::Client;
use crate::daemon::MONITOR;
use crate::descriptors::ask_with;

const MIB: usize = 1 << 20;
const BLOCK: usize = 4096;

/// Makes a directory with an image outside and a directory `open` with one inside. It is on the file system of the build,
/// which supports O_DIRECT.
fn directory() -> TempDir {
    let dir = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).expect("make a directory");
    fs::create_dir(dir.path().join("open")).expect("make a directory");
    for image in [IMAGE, "outside.img", "open/hot.img", "open/other.img"] {
        fs::write(dir.path().join(image), vec![b'h'; MIB]).expect("write an image");
    }
    dir
}

fn start_in(dir: TempDir, options: &[&str]) -> (Daemon, Client) {
    let sandbox = [
        "--sandbox",
        "on",
        "--sandbox-path",
        "open",
        "--thread-pool-max",
        "2",
    ];
    let daemon = Daemon::start_in(dir, &[&MONITOR[..], &sandbox, options].concat());
    let client = Client::connect(&daemon.dir().join("qmp.sock"));
    (daemon, client)
}

fn start(options: &[&str]) -> (Daemon, Client) {
    start_in(directory(), options)
}

fn node(more: &Value) -> Value {
    merged(
        json!({"driver": "file", "node-name": "hot", "filename": "open/hot.img"}),
        more,
    )
}

fn export(more: &Value) -> Value {
    let export = json!({
        "type": "vhost-user-blk", "id": "hot", "node-name": "hot", "writable": true,
        "addr": {"type": "unix", "path": "open/hot.sock"}
    });
    merged(export, more)
}

fn merged(mut options: Value, more: &Value) -> Value {
    for (key, value) in more.as_object().into_iter().flatten() {
        options[key] = value.clone();
    }
    options
}

fn add(client: &mut Client, blockdev: &Value, more: &Value) {
    client.run("blockdev-add", &node(blockdev));
    client.run("block-export-add", &export(more));
}

fn remove(client: &mut Client) {
    client.run("block-export-del", &json!({"id": "hot"}));
    client.run("blockdev-del", &json!({"node-name": "hot"}));
}

/// Returns the reason why a node with this file is refused.
fn no_node(client: &mut Client, filename: &str) -> String {
    client
        .refusal("blockdev-add", &node(&json!({"filename": filename})))
        .1
}

/// Returns the reason why an export with this socket is refused.
fn no_export(client: &mut Client, path: &str) -> String {
    client
        .refusal(
            "block-export-add",
            &export(&json!({"addr": {"type": "unix", "path": path}})),
        )
        .1
}

fn connect(daemon: &Daemon) -> Frontend {
    Frontend::connect(&daemon.dir().join("open/hot.sock"), 1, 4, all_features()).expect("connect")
}

/// Reads the first block.
fn read(frontend: &mut Frontend) -> Vec<u8> {
    let read = Op::Read {
        offset: 0,
        len: BLOCK,
    };
    frontend.queue(0).run(&read).data
}

fn write_and_read(frontend: &mut Frontend, byte: u8) {
    let data = vec![byte; BLOCK];
    assert_eq!(frontend.queue(0).run(&Op::Write { offset: 0, data }).ret, 0);
    assert_eq!(frontend.queue(0).run(&Op::Flush).ret, 0);
    assert_eq!(read(frontend), [byte; BLOCK]);
}

/// Returns the process that opens names for this daemon.
fn helper(daemon: &Daemon) -> u32 {
    let of_daemon = |pid: &u32| {
        let status = threads_of(*pid);
        status.is_some_and(|(name, parent)| name == "sandbox-path" && parent == daemon.pid())
    };
    let processes = fs::read_dir("/proc").expect("list processes").flatten();
    let mut pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.find(of_daemon).expect("a helper")
}

/// Returns the name and the parent of a process.
fn threads_of(pid: u32) -> Option<(String, u32)> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let field = |name: &str| {
        status
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .map(str::trim)
    };
    Some((field("Name:")?.to_owned(), field("PPid:")?.parse().ok()?))
}

fn is_gone(pid: u32) -> bool {
    !Path::new(&format!("/proc/{pid}")).exists()
}

fn signal(pid: u32, signal: i32) {
    // SAFETY: takes numbers only.
    assert_eq!(unsafe { libc::kill(pid.cast_signed(), signal) }, 0);
}

#[test]
fn images_on_tmpfs_are_mapped_inside_the_sandbox() {
    let dir = TempDir::new_in("/dev/shm").expect("make a directory");
    fs::create_dir(dir.path().join("open")).expect("make a directory");
    for image in [IMAGE, "open/hot.img"] {
        fs::write(dir.path().join(image), vec![b'h'; MIB]).expect("write an image");
    }
    let (daemon, mut client) = start_in(dir, &[]);
    let maps = || fs::read_to_string(format!("/proc/{}/maps", daemon.pid())).expect("read the maps");
    assert!(maps().contains(IMAGE));
    for mmap in [true, false] {
        add(&mut client, &json!({"mmap": mmap}), &json!({}));
        assert_eq!(maps().contains("open/hot.img"), mmap);
        let mut frontend = connect(&daemon);
        for round in 0..3 {
            write_and_read(&mut frontend, round);
        }
        drop(frontend);
        remove(&mut client);
        // The IOThread drops its part of the disk a little later.
        wait_for("the mapping to end", || {
            (!maps().contains("open/hot.img")).then_some(())
        });
    }
}

#[test]
fn disks_are_added_by_name_with_each_engine() {
    let (mut daemon, mut client) = start(&[]);
    client.run("object-add", &json!({"qom-type": "iothread", "id": "new"}));
    let absolute = daemon.dir().join("open/hot.img");
    for (round, (blockdev, more)) in [
        (json!({}), json!({"iothread": "iothread0"})),
        (json!({"filename": absolute}), json!({"iothread": "new"})),
        (json!({"filename": "./open//../open/hot.img"}), json!({})),
        (json!({"aio": "threads"}), json!({})),
        (json!({"cache": {"direct": true}}), json!({"iothread": "new"})),
        (json!({"cache": {"direct": true}, "aio": "io_uring"}), json!({})),
        (
            json!({"cache": {"direct": true}, "aio": "native"}),
            json!({"iothread": "new"}),
        ),
        (json!({"locking": "off"}), json!({})),
    ]
    .into_iter()
    .enumerate()
    {
        // `open/..` leads out of the directory for a moment, which the kernel refuses.
        if blockdev["filename"] == "./open//../open/hot.img" {
            let refusal = no_node(&mut client, "./open//../open/hot.img");
            assert!(refusal.contains("--sandbox-path"), "{refusal}");
            continue;
        }
        add(&mut client, &blockdev, &more);
        write_and_read(&mut connect(&daemon), u8::try_from(round).expect("a byte"));
        remove(&mut client);
        assert!(!daemon.dir().join("open/hot.sock").exists(), "{blockdev}");
    }
    let raw = json!({
        "driver": "raw", "node-name": "hot", "read-only": true,
        "file": {"driver": "file", "filename": "open/other.img"}
    });
    client.run("blockdev-add", &raw);
    client.run("block-export-add", &export(&json!({"writable": false})));
    let mut frontend = connect(&daemon);
    let data = vec![0; BLOCK];
    assert_ne!(frontend.queue(0).run(&Op::Write { offset: 0, data }).ret, 0);
    assert_eq!(read(&mut frontend), [b'h'; BLOCK]);
    assert!(daemon.terminate().status.success());
    assert!(
        !daemon.dir().join("open/hot.sock").exists(),
        "the end removes sockets"
    );
}

/// The holdings of a disk do not depend on when it was added.
#[test]
fn a_disk_added_later_is_open_as_one_made_at_the_start() {
    let dir = directory();
    let image = dir.path().join("open/hot.img").canonicalize().expect("a path");
    let blockdev = "file,node-name=hot,filename=open/hot.img";
    let export_of = "vhost-user-blk,id=hot,node-name=hot,addr.type=unix,addr.path=open/hot.sock,writable=on";
    let early = [&MONITOR[..], &["--blockdev", blockdev, "--export", export_of]].concat();
    let open = |daemon: &Daemon| {
        Holdings::of(daemon.pid())
            .fds
            .get(image.to_str().expect("UTF-8"))
            .copied()
    };
    let mut daemon = Daemon::start_with(dir, &early);
    let expected = open(&daemon);
    assert!(expected >= Some(1), "{expected:?}");
    assert!(daemon.terminate().status.success());

    let (daemon, mut client) = start(&[]);
    let image = daemon.dir().join("open/hot.img").canonicalize().expect("a path");
    add(&mut client, &json!({}), &json!({}));
    let fds = Holdings::of(daemon.pid()).fds;
    assert_eq!(
        fds.get(image.to_str().expect("UTF-8")).copied(),
        expected,
        "{fds:#?}"
    );
    // The other process has kept nothing open.
    let held = Holdings::of(helper(&daemon)).fds;
    assert!(!held.keys().any(|name| name.ends_with(".img")), "{held:#?}");

    // QEMU's locks belong to the open file, which was opened by another process.
    let (_other, mut refused) = start_in(
        TempDir::new_in(env!("CARGO_TARGET_TMPDIR"))
            .map(fill)
            .expect("a directory"),
        &[],
    );
    let path = daemon.dir().join("open/hot.img");
    let link = json!({"filename": path});
    let (_, told) = refused.refusal("blockdev-add", &node(&link));
    assert!(told.contains("--sandbox-path"), "{told}");
    let second = node(&json!({"node-name": "second"}));
    client.run("blockdev-add", &second);
    let elsewhere = json!({"type": "unix", "path": "open/second.sock"});
    let (_, told) = client.refusal(
        "block-export-add",
        &export(&json!({"id": "second", "node-name": "second", "addr": elsewhere})),
    );
    assert!(told.contains("in use"), "{told}");
}

fn fill(dir: TempDir) -> TempDir {
    fs::create_dir(dir.path().join("open")).expect("make a directory");
    fs::write(dir.path().join(IMAGE), vec![0; MIB]).expect("write an image");
    dir
}

#[test]
fn the_socket_has_its_name_mode_and_group() {
    let (daemon, mut client) = start(&[]);
    let path = daemon.dir().join("open/hot.sock");
    let addr = json!({"addr": {"type": "unix", "path": path, "mode": "0640", "group": "root"}});
    add(&mut client, &json!({}), &addr);
    let metadata = fs::metadata(&path).expect("the socket");
    assert_eq!((metadata.mode() & 0o7777, metadata.gid()), (0o640, 0));
    let peer = UnixStream::connect(&path)
        .expect("it listens")
        .peer_addr()
        .expect("a name");
    assert_eq!(peer.as_pathname(), Some(&*path));
    remove(&mut client);
    client.run("blockdev-add", &node(&json!({})));
    let unknown = json!({"addr": {"type": "unix", "path": path, "group": "no-such-group"}});
    let (_, told) = client.refusal("block-export-add", &export(&unknown));
    assert!(
        told.contains("no-such-group") && told.contains("number"),
        "{told}"
    );
}

#[test]
fn names_outside_are_refused() {
    let (mut daemon, mut client) = start(&[]);
    let dir = daemon.dir().to_owned();
    symlink("../outside.img", dir.join("open/out")).expect("make a link");
    symlink(dir.join("outside.img"), dir.join("open/absolute")).expect("make a link");
    symlink("hot.img", dir.join("open/inside")).expect("make a link");
    symlink("..", dir.join("open/up")).expect("make a link");
    symlink("/proc/self/root", dir.join("open/magic")).expect("make a link");
    fs::create_dir(dir.join("open/sub")).expect("make a directory");
    symlink("sub", dir.join("open/down")).expect("make a link");
    for outside in [
        "outside.img",
        "/etc/passwd",
        "open/../outside.img",
        "open/sub/../../outside.img",
        "open/out",
        "open/absolute",
        "open/up/outside.img",
        "open/magic/etc/passwd",
        "open",
        "openx",
    ] {
        let refusal = no_node(&mut client, outside);
        let told = refusal.contains("--sandbox-path")
            || (outside.contains("magic") && refusal.contains("open/magic"));
        assert!(told, "{outside}: {refusal}");
    }
    for (odd, told) in [
        ("", "expects the path of a file"),
        ("open/sub", "is a special file"),
        ("open/missing", "No such file or directory"),
        ("open/hot.img/x", "Not a directory"),
    ] {
        let refusal = no_node(&mut client, odd);
        assert!(
            refusal.contains(odd) && refusal.contains(told),
            "{odd}: {refusal}"
        );
    }
    // A link that stays inside leads where it says.
    client.run("blockdev-add", &node(&json!({"filename": "open/inside"})));
    for outside in [
        "hot.sock",
        "/tmp/hot.sock",
        "open/../hot.sock",
        "open/up/hot.sock",
        "open/sub/../hot.sock",
    ] {
        let refusal = no_export(&mut client, outside);
        assert!(refusal.contains("--sandbox-path"), "{outside}: {refusal}");
    }
    for (odd, told) in [
        ("open/hot.img", "not a socket"),
        ("open/none/s", "No such file or directory"),
    ] {
        let refusal = no_export(&mut client, odd);
        assert!(
            refusal.contains(odd) && refusal.contains(told),
            "{odd}: {refusal}"
        );
    }
    let sockets = |dir: &Path| {
        let files = fs::read_dir(dir).expect("list").flatten();
        files
            .filter(|file| file.file_type().is_ok_and(|kind| kind.is_socket()))
            .count()
    };
    assert_eq!(
        (sockets(&dir), sockets(&dir.join("open"))),
        (2, 0),
        "none was made"
    );
    client.run(
        "block-export-add",
        &export(&json!({"addr": {"type": "unix", "path": "open/down/s"}})),
    );
    assert!(dir.join("open/sub/s").exists());
    assert!(daemon.is_alive());
}

#[test]
fn stale_sockets_are_replaced_and_used_ones_are_not() {
    let (daemon, mut client) = start(&[]);
    let path = daemon.dir().join("open/hot.sock");
    let busy = listen_for_few(&path);
    client.run("blockdev-add", &node(&json!({})));
    let refusal = no_export(&mut client, "open/hot.sock");
    assert!(refusal.contains("in use by process"), "{refusal}");
    // A full queue of connections is no reason to wait.
    let waiting: Vec<_> = (0..200).map_while(|_| nonblocking(&path)).collect();
    assert!(waiting.len() < 200, "the queue is full");
    let refusal = no_export(&mut client, "open/hot.sock");
    assert!(refusal.contains("in use by another process"), "{refusal}");
    drop((busy, waiting));
    client.run("block-export-add", &export(&json!({})));
    client.run(
        "blockdev-add",
        &json!({"driver": "null-co", "node-name": "other", "read-zeroes": true}),
    );
    let other = export(&json!({"id": "other", "node-name": "other"}));
    let refusal = client.refusal("block-export-add", &other).1;
    assert!(
        refusal.contains("this process serves socket open/hot.sock already"),
        "{refusal}"
    );
    write_and_read(&mut connect(&daemon), 3);
    // Somebody else's socket with the same name stays.
    fs::remove_file(&path).expect("remove the socket");
    let _other = UnixListener::bind(&path).expect("listen");
    remove(&mut client);
    client.run("blockdev-add", &node(&json!({})));
    assert!(path.exists() && no_export(&mut client, "open/hot.sock").contains("in use by process"));
}

/// Listens, with room for hardly any connection.
fn listen_for_few(path: &Path) -> OwnedFd {
    let socket = socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    );
    let socket = socket.expect("make a socket");
    bind(&socket, &SocketAddrUnix::new(path).expect("an address")).expect("bind");
    listen(&socket, 0).expect("listen");
    socket
}

/// Connects, unless that would have to wait.
fn nonblocking(path: &Path) -> Option<OwnedFd> {
    let socket = socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::NONBLOCK,
        None,
    )
    .ok()?;
    connect_to(&socket, &SocketAddrUnix::new(path).ok()?).ok()?;
    Some(socket)
}

#[test]
fn a_hundred_disks_leave_nothing_behind() {
    let (mut daemon, mut client) = start(&[]);
    let other = helper(&daemon);
    let mut come_and_go = |round: usize| {
        let direct = json!({"cache": {"direct": round % 2 == 1}});
        add(&mut client, &direct, &json!({"iothread": "iothread0"}));
        write_and_read(&mut connect(&daemon), u8::try_from(round % 256).expect("a byte"));
        remove(&mut client);
        // Mistakes leave nothing either.
        no_node(&mut client, "open/missing");
    };
    (0..8).for_each(&mut come_and_go);
    let (mut limit, of_helper) = (Holdings::of(daemon.pid()), Holdings::of(other));
    // Workers start and end by themselves.
    limit.threads += 4;
    (0..100).for_each(&mut come_and_go);
    daemon.wait_for_holdings(&limit);
    // The socket's file is removed before its directory is closed.
    wait_for("the helper to forget", || {
        Holdings::of(other).is_within(&of_helper).then_some(())
    });
    let files: Vec<_> = fs::read_dir(daemon.dir().join("open"))
        .expect("list")
        .flatten()
        .collect();
    assert_eq!(files.len(), 2, "{files:?}");
    assert!(daemon.terminate().status.success());
    wait_for("the end of the helper", || is_gone(other).then_some(()));
}

#[test]
fn the_daemon_survives_the_end_of_its_helper() {
    let (mut daemon, mut client) = start(&[]);
    add(&mut client, &json!({}), &json!({}));
    let other = helper(&daemon);
    signal(other, libc::SIGKILL);
    wait_for("the end of the helper", || is_gone(other).then_some(()));
    daemon.wait_for(|daemon| daemon.output().contains("ERROR"), "say so");
    // The disk that was added stays, and others can be added by descriptors.
    write_and_read(&mut connect(&daemon), 5);
    for _ in 0..2 {
        let refusal = client
            .refusal(
                "blockdev-add",
                &node(&json!({"node-name": "b", "filename": "open/other.img"})),
            )
            .1;
        assert!(refusal.contains("restart this daemon"), "{refusal}");
    }
    let image = File::open(daemon.dir().join("open/other.img")).expect("open the image");
    let add_fd = json!({"execute": "add-fd", "arguments": {"fdset-id": 1}});
    assert!(ask_with(&mut client, &add_fd, &[image.as_fd()])["return"].is_object());
    let blockdev = json!({"node-name": "b", "filename": "/dev/fdset/1", "read-only": true});
    client.run("blockdev-add", &node(&blockdev));
    let elsewhere = json!({"type": "unix", "path": "open/b.sock"});
    let second = export(&json!({"id": "b", "node-name": "b", "writable": false, "addr": elsewhere}));
    let refusal = client.refusal("block-export-add", &second).1;
    assert!(refusal.contains("restart this daemon"), "{refusal}");
    remove(&mut client);
    assert!(daemon.terminate().status.success());
    assert!(
        daemon.output().contains("cannot remove the socket file"),
        "{}",
        daemon.output()
    );
}

#[test]
fn the_helper_ends_with_its_daemon() {
    for how in [libc::SIGKILL, libc::SIGTERM] {
        let (mut daemon, mut client) = start(&[]);
        add(&mut client, &json!({}), &json!({}));
        let other = helper(&daemon);
        // As a service manager does.
        signal(other, libc::SIGTERM);
        daemon.stop_with(how);
        wait_for("the end of the helper", || is_gone(other).then_some(()));
        // As for the other sockets, a killed daemon leaves them, and the next one replaces them.
        assert_eq!(daemon.dir().join("open/hot.sock").exists(), how == libc::SIGKILL);
        daemon.start_again(&[&MONITOR[..], &["--sandbox-path", "open"]].concat());
        let mut client = wait_for("the next daemon", || {
            UnixStream::connect(daemon.dir().join("qmp.sock"))
                .is_ok()
                .then(|| Client::connect(&daemon.dir().join("qmp.sock")))
        });
        add(&mut client, &json!({}), &json!({}));
        write_and_read(&mut connect(&daemon), 9);
    }
}

/// As it would be in an `open` on a network file system whose server does not answer.
#[test]
fn nothing_waits_for_a_helper_that_hangs() {
    let (mut daemon, mut client) = start(&[]);
    let other = helper(&daemon);
    signal(other, libc::SIGSTOP);
    let command = json!({"execute": "blockdev-add", "arguments": node(&json!({}))});
    client.send(format!("{command}\n"));
    let mut second = Client::connect(&daemon.dir().join("qmp.sock"));
    assert_eq!(
        second
            .run("query-named-block-nodes", &json!({}))
            .as_array()
            .map(Vec::len),
        Some(1)
    );
    second.run("blockdev-add", &json!({"driver": "null-co", "node-name": "null"}));
    let begun = Instant::now();
    assert!(daemon.terminate().status.success());
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    signal(other, libc::SIGCONT);
    wait_for("the end of the helper", || is_gone(other).then_some(()));
}

#[test]
fn files_are_resized_and_devices_are_served() {
    let (mut daemon, mut client) = start(&[]);
    add(&mut client, &json!({}), &json!({}));
    client.run("block_resize", &json!({"node-name": "hot", "size": 2 * MIB}));
    assert_eq!(
        fs::metadata(daemon.dir().join("open/hot.img"))
            .expect("the image")
            .len(),
        2 * MIB as u64
    );
    remove(&mut client);
    assert!(daemon.terminate().status.success());

    let dir = directory();
    let Some(device) = LoopDevice::over(&dir.path().join("outside.img")) else {
        return;
    };
    let (daemon, mut client) = start_in(dir, &["--sandbox-path", "/dev"]);
    for direct in [false, true] {
        let blockdev = json!({
            "driver": "host_device", "filename": device.path(), "discard": "unmap", "cache": {"direct": direct}
        });
        add(&mut client, &blockdev, &json!({}));
        let mut frontend = connect(&daemon);
        write_and_read(&mut frontend, 6);
        assert_eq!(
            frontend
                .queue(0)
                .run(&Op::Discard {
                    offset: 0,
                    len: BLOCK as u64
                })
                .ret,
            0
        );
        drop(frontend);
        remove(&mut client);
    }
    // Other devices are no disks, and are not even opened.
    let refusal = no_node(&mut client, "/dev/null");
    assert!(refusal.contains("special file"), "{refusal}");
}

#[test]
fn nodes_are_reopened_by_name() {
    let (daemon, mut client) = start(&[]);
    client.run("blockdev-add", &node(&json!({})));
    let read_only = node(&json!({"read-only": true}));
    client.run("blockdev-reopen", &json!({"options": [read_only]}));
    let nodes = client.run("query-named-block-nodes", &json!({}));
    let hot = nodes
        .as_array()
        .into_iter()
        .flatten()
        .find(|node| node["node-name"] == "hot");
    assert_eq!(hot.map(|node| &node["ro"]), Some(&json!(true)), "{nodes}");
    let elsewhere = node(&json!({"filename": "outside.img"}));
    let (_, told) = client.refusal("blockdev-reopen", &json!({"options": [elsewhere]}));
    assert_eq!(told, "Cannot change the option 'filename'");
    drop(daemon);
}

/// The helper has no right that it does not need, and no file.
#[test]
fn the_helper_has_few_rights() {
    let (daemon, _client) = start(&[]);
    let other = helper(&daemon);
    let status = threads(other);
    assert_eq!(status.len(), 1, "{status:#?}");
    let status = &status[0];
    for (field, expected) in [
        ("Seccomp", "2"),
        ("NoNewPrivs", "1"),
        ("CapInh", "0000000000000000"),
    ] {
        assert_eq!(status[field], expected, "{field}");
    }
    // CHOWN, DAC_OVERRIDE and FOWNER, if the daemon had them.
    const KEPT: u64 = 0b1011;
    let capabilities = |field: &str| u64::from_str_radix(&status[field], 16).expect("a number");
    for field in ["CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        let left = if field == "CapBnd" || field == "CapAmb" {
            0
        } else {
            KEPT
        };
        assert_eq!(capabilities(field) & !left, 0, "{field}");
    }
    let fds = Holdings::of(other).fds;
    let open = daemon.dir().join("open").canonicalize().expect("a path");
    let known = [open.to_str().expect("UTF-8"), "socket"];
    let std = |name: &str| name == "/dev/null" || name.ends_with("/out") || name.ends_with("/err");
    assert!(
        fds.iter()
            .all(|(name, count)| std(name) || (known.contains(&&**name) && *count == 1)),
        "{fds:#?}"
    );
}

/// A daemon that switches to another user still adds disks that only root may open, in a directory of root's.
#[test]
fn the_user_does_not_matter_for_names() {
    // SAFETY: takes nothing and always succeeds.
    if unsafe { libc::geteuid() } != 0 {
        return testkit::skip::skipped("only root can become other users");
    }
    let dir = directory();
    fs::set_permissions(dir.path().join("open/hot.img"), Permissions::from_mode(0o600))
        .expect("close the image");
    let (mut daemon, mut client) = start_in(dir, &["--user", "12345:12346"]);
    let other = helper(&daemon);
    assert_eq!(threads(other)[0]["Uid"], "12345\t12345\t12345\t12345");
    add(&mut client, &json!({}), &json!({}));
    let socket = fs::metadata(daemon.dir().join("open/hot.sock")).expect("the socket");
    assert_eq!(
        (socket.uid(), socket.gid(), socket.mode() & 0o777),
        (12345, 12346, 0o600)
    );
    write_and_read(&mut connect(&daemon), 4);
    assert!(daemon.terminate().status.success());
    assert!(!daemon.dir().join("open/hot.sock").exists());
}

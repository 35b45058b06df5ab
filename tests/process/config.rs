//! The configuration file: the same setup as on a command line, the example, and refusals.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use tempfile::TempDir;
use testkit::daemon::{Daemon, run};
use testkit::frontend::{Frontend, Op, all_features};
use testkit::loop_device::LoopDevice;
use testkit::qmp::Qmp;
use testkit::words;

const MIB: usize = 1 << 20;

fn images(names: &[&str]) -> TempDir {
    let dir = tempfile::tempdir().expect("make a directory");
    for name in names {
        fs::write(dir.path().join(name), vec![name.as_bytes()[0]; MIB]).expect("write an image");
    }
    dir
}

/// The tables of a setup, each with the list that it belongs to.
fn setup() -> Vec<(&'static str, Value)> {
    vec![
        (
            "object",
            json!({"qom-type": "iothread", "id": "io0", "poll-max-ns": 0, "thread-pool-max": 8}),
        ),
        ("object", json!({"qom-type": "iothread", "id": "io1"})),
        (
            "object",
            json!({"qom-type": "throttle-group", "id": "t", "limits": {"iops-total": 5000, "bps-read": 1 << 30}}),
        ),
        (
            "blockdev",
            json!({"driver": "file", "node-name": "a", "filename": "a.img", "read-only": true,
                   "cache": {"no-flush": true}, "aio": "threads"}),
        ),
        (
            "blockdev",
            json!({"driver": "throttle", "node-name": "b", "throttle-group": "t",
                   "file": {"driver": "file", "node-name": "bf", "filename": "b,c=d.img", "discard": "unmap"}}),
        ),
        (
            "blockdev",
            json!({"driver": "null-co", "node-name": "n", "size": 1 << 20}),
        ),
        (
            "export",
            json!({"type": "vhost-user-blk", "id": "ea", "node-name": "a", "addr": {"type": "unix", "path": "a.sock"},
                   "iothread": "io0"}),
        ),
        (
            "export",
            json!({"type": "vhost-user-blk", "id": "eb", "node-name": "b", "writable": true, "num-queues": 3,
                   "addr": {"type": "unix", "path": "b.sock", "mode": "0666"}, "iothread": ["io0", "io1"],
                   "serial": "two", "logical-block-size": 4096}),
        ),
        (
            "export",
            json!({"type": "vhost-user-blk", "id": "en", "node-name": "n", "writable": true, "num-queues": 2,
                   "addr": {"type": "unix", "path": "n.sock"},
                   "iothread-vq-mapping": [{"iothread": "io0", "vqs": [1]}, {"iothread": "io1", "vqs": [0]}]}),
        ),
        (
            "chardev",
            json!({"backend": "socket", "id": "m", "path": "qmp.sock", "server": true, "wait": false}),
        ),
        ("monitor", json!({"chardev": "m", "mode": "control"})),
    ]
}

fn in_toml() -> String {
    let tables = setup()
        .into_iter()
        .map(|(list, options)| words::toml(list, &options));
    // The process-wide options come first, before any table.
    ["pidfile = \"pid\"\nstats = true\n".to_owned()]
        .into_iter()
        .chain(tables)
        .collect()
}

fn in_json() -> String {
    let mut file = json!({"pidfile": "pid", "stats": true});
    for (list, options) in setup() {
        match file[list].as_array_mut() {
            Some(tables) => tables.push(options),
            None => file[list] = json!([options]),
        }
    }
    file.to_string()
}

fn on_a_command_line() -> Vec<String> {
    let option = |(list, options): (&str, Value)| {
        let text = words::text(&options).expect("there are no empty lists");
        [format!("--{list}"), text]
    };
    let options = setup().into_iter().flat_map(option);
    options
        .chain(["--pidfile=pid".to_owned(), "--stats".to_owned()])
        .collect()
}

/// Returns the answers of a daemon that must not depend on how it was started.
fn answers(daemon: &Daemon) -> Vec<Value> {
    let mut qmp = Qmp::connect(&daemon.dir().join("qmp.sock"));
    let mut iothreads = qmp.execute("query-iothreads", &json!({}));
    for iothread in iothreads.as_array_mut().into_iter().flatten() {
        iothread["thread-id"] = Value::Null;
        iothread["x-figures"] = Value::Null;
    }
    let limits = json!({"path": "/objects/t", "property": "limits"});
    vec![
        iothreads,
        qmp.execute("query-named-block-nodes", &json!({})),
        qmp.execute("query-block-exports", &json!({})),
        qmp.execute("query-blockstats", &json!({})),
        qmp.execute("qom-list", &json!({"path": "/objects"})),
        qmp.execute("qom-get", &limits),
    ]
}

fn read_and_write(dir: &Path) {
    let connect = |socket: &str, queues| {
        Frontend::connect(&dir.join(socket), queues, 8, all_features()).expect("connect")
    };
    let mut frontend = connect("a.sock", 1);
    let done = frontend.queue(0).run(&Op::Read { offset: 0, len: 4096 });
    assert_eq!((done.ret, done.data), (0, vec![b'a'; 4096]));
    let mut frontend = connect("b.sock", 3);
    assert_eq!(frontend.config().blk_size.to_native(), 4096);
    let write = Op::Write {
        offset: 4096,
        data: vec![7; 4096],
    };
    assert_eq!(frontend.queue(2).run(&write).ret, 0);
}

#[test]
fn one_setup_is_the_same_in_all_notations() {
    let start = |text: Option<String>| {
        let dir = images(&["a.img", "b,c=d.img"]);
        let line = match text {
            Some(text) => {
                fs::write(dir.path().join("vm.conf"), text).expect("write the file");
                vec!["--config".to_owned(), "vm.conf".to_owned()]
            }
            None => on_a_command_line(),
        };
        let line: Vec<&str> = line.iter().map(String::as_str).collect();
        Daemon::start_with(dir, &line)
    };
    let found = [None, Some(in_toml()), Some(in_json())].map(|text| {
        let mut daemon = start(text);
        let answers = answers(&daemon);
        read_and_write(daemon.dir());
        let pid = fs::read_to_string(daemon.dir().join("pid")).expect("a pid file");
        assert_eq!(pid.trim(), daemon.pid().to_string());
        let exit = daemon.terminate();
        assert!(
            exit.status.success() && exit.output.contains("stats: disk=eb"),
            "{}",
            exit.output
        );
        answers
    });
    assert_eq!(found[0], found[1], "TOML");
    assert_eq!(found[0], found[2], "JSON");
    assert_eq!(found[0][0].as_array().map(Vec::len), Some(2), "{found:?}");
}

#[test]
fn the_command_line_adds_a_disk_to_a_file() {
    let dir = images(&["a.img", "b,c=d.img", "e.img"]);
    fs::write(dir.path().join("vm.toml"), in_toml()).expect("write the file");
    let line = [
        "--config",
        "vm.toml",
        "--pidfile",
        "other.pid",
        "--blockdev",
        "file,node-name=e,filename=e.img",
        "--export",
        "vhost-user-blk,id=ee,node-name=e,addr.type=unix,addr.path=e.sock,iothread=io1",
    ];
    let daemon = Daemon::start_with(dir, &line);
    let mut frontend =
        Frontend::connect(&daemon.dir().join("e.sock"), 1, 8, all_features()).expect("connect");
    assert_eq!(
        frontend.queue(0).run(&Op::Read { offset: 0, len: 512 }).data,
        [b'e'; 512]
    );
    assert!(daemon.dir().join("other.pid").exists() && !daemon.dir().join("pid").exists());
    assert_eq!(answers(&daemon)[2].as_array().map(Vec::len), Some(4));
}

/// The paths of the example become paths in a directory, and its user the one that runs the tests.
#[test]
fn the_example_serves_its_disks() {
    let dir = images(&["system.img", "data.img"]);
    let Some(device) = LoopDevice::over(&dir.path().join("system.img")) else {
        return;
    };
    let text = include_str!("../../packaging/vhost-user-blk.toml");
    let here = dir.path().to_str().expect("UTF-8");
    let mut changed = text.to_owned();
    for (from, to) in [
        ("user = \"vhost-user-blk\"", "user = \"root\""),
        ("/dev/vg0/system", device.path()),
        ("/var/lib/vhost-user-blk", here),
        ("/run/vhost-user-blk", here),
        ("group = \"kvm\"", "group = \"root\""),
    ] {
        assert!(changed.contains(from), "{from}");
        changed = changed.replace(from, to);
    }
    fs::write(dir.path().join("vm0.toml"), changed).expect("write the file");
    let mut daemon = Daemon::start_with(dir, &["--config", "vm0.toml"]);
    for (socket, queues, byte) in [("system.sock", 4, b's'), ("data.sock", 1, b'd')] {
        let mut frontend =
            Frontend::connect(&daemon.dir().join(socket), queues, 8, all_features()).expect("connect");
        assert_eq!(
            frontend.queue(0).run(&Op::Read { offset: 0, len: 4096 }).data,
            [byte; 4096]
        );
    }
    let mut qmp = Qmp::connect(&daemon.dir().join("qmp.sock"));
    assert_eq!(
        qmp.execute("query-block-exports", &json!({}))
            .as_array()
            .map(Vec::len),
        Some(2)
    );
    drop(qmp);
    assert!(daemon.terminate().status.success());
}

#[test]
fn refusals_name_file_line_and_table() {
    const NODE: &str = "\n[[blockdev]]\ndriver = 'file'\nnode-name = 'a'\n";
    const EXPORT: &str = "[[export]]\ntype = 'vhost-user-blk'\nid = 'e'\nnode-name = 'a'\n";
    let dir = images(&["a.img"]);
    let node = format!("{NODE}filename = 'a.img'\n");
    for (text, told, status) in [
        (
            format!("{NODE}filename = 'missing'\n"),
            "vm.conf:2: blockdev 'a': cannot open missing: ",
            1,
        ),
        (
            format!("{NODE}filename = 'a.img'\nread-only = 'yes'\n"),
            "vm.conf:6: blockdev 'a': Parameter 'read-only'",
            2,
        ),
        (
            format!("{node}{EXPORT}addr = {{ type = 'unix', path = 's' }}\nnum-queues = 2000\n"),
            "vm.conf:11: export 'e': Parameter 'num-queues' expects a number from 1 to 256",
            2,
        ),
        (
            format!("{node}{EXPORT}addr = {{ type = 'unix', path = 'nowhere/s' }}\n"),
            "vm.conf:6: export 'e': cannot listen on socket nowhere/s: there is no directory nowhere; correct that, or choose \
             another addr.path",
            1,
        ),
        (
            json!({"blockdev": [{"driver": "raw", "node-name": "r", "file": "no"}]}).to_string(),
            "vm.conf: blockdev 'r': ",
            2,
        ),
        (
            "user = 'no-such-user'\n".to_owned() + &node,
            "--user: there is no user no-such-user",
            2,
        ),
        (
            "sandbox = 'maybe'\n".to_owned() + &node,
            "vm.conf:1: sandbox: invalid value 'maybe'",
            2,
        ),
        ("\u{0}".to_owned(), "vm.conf:1: not valid TOML", 2),
    ] {
        fs::write(dir.path().join("vm.conf"), &text).expect("write the file");
        let exit = run(&["--config", "vm.conf"], dir.path());
        assert_eq!(exit.output.lines().count(), 1, "{text}: {}", exit.output);
        assert!(exit.output.contains(told), "{text}: {}", exit.output);
        assert_eq!(exit.status.code(), Some(status), "{text}: {}", exit.output);
        assert!(!dir.path().join("s").exists(), "{text} left a socket");
    }
    let exit = run(&["--config", "nowhere.toml"], dir.path());
    assert_eq!(
        (exit.status.code(), exit.output.lines().count()),
        (Some(2), 1),
        "{}",
        exit.output
    );
    assert!(
        exit.output
            .contains("nowhere.toml: cannot read the configuration"),
        "{}",
        exit.output
    );
}

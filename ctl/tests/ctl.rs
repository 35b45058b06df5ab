//! `vhost-user-blkctl` against a real daemon.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread;

use serde_json::Value;
use testkit::daemon::Daemon;
use testkit::frontend::{Frontend, Op, all_features};
use testkit::process::Process;

const MONITOR: [&str; 6] = [
    "--chardev",
    "socket,id=m,path=qmp.sock,server=on,wait=off",
    "--monitor",
    "chardev=m",
    "--sandbox",
    "on",
];

fn daemon(options: &[&str]) -> Daemon {
    Daemon::start(&[0; 1 << 16], &[&MONITOR[..], options].concat())
}

fn ctl(socket: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vhost-user-blkctl"));
    command
        .arg("--socket")
        .arg(socket)
        .args(args)
        .stdin(Stdio::null());
    command
}

fn run(daemon: &Daemon, args: &[&str]) -> Output {
    let mut command = ctl(&daemon.dir().join("qmp.sock"), args);
    command
        .current_dir(daemon.dir())
        .output()
        .expect("run the program")
}

/// Runs a command that succeeds, and returns its output.
fn ok(daemon: &Daemon, args: &[&str]) -> String {
    let output = run(daemon, args);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && error.is_empty(), "{args:?}: {error}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Runs a command that fails, and returns its error, which is one line.
fn refused(output: &Output) -> String {
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(
        error.starts_with("error: ") && error.lines().count() == 1,
        "{error}"
    );
    error
}

fn frontend(socket: &Path) -> Frontend {
    Frontend::connect(socket, 1, 16, all_features()).expect("connect")
}

#[test]
fn disks_are_listed_and_shown() {
    let daemon = daemon(&[]);
    let text = ok(&daemon, &["list"]);
    let line = text.lines().nth(1).expect("a disk");
    let words: Vec<&str> = line.split_whitespace().collect();
    assert_eq!(words, ["disk", "64", "KiB", "rw", "1", "-", "disk.img"]);

    let mut frontend = frontend(&daemon.socket());
    assert_eq!(frontend.queue(0).run(&Op::Flush).ret, 0);
    assert!(ok(&daemon, &["list"]).contains(&std::process::id().to_string()));
    let text = ok(&daemon, &["show", "disk"]);
    for part in [
        "image:      disk.img",
        "(65536 bytes)",
        "running",
        "flush",
        "process ",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let error = refused(&run(&daemon, &["show", "other"]));
    assert!(
        error.contains("there is no disk 'other': there are disk"),
        "{error}"
    );
}

#[test]
fn statistics_are_text_or_json() {
    let daemon = daemon(&[]);
    let mut frontend = frontend(&daemon.socket());
    assert_eq!(frontend.queue(0).run(&Op::Flush).ret, 0);
    assert!(ok(&daemon, &["stats"]).contains("LATENCY"));
    let json: Value = serde_json::from_str(&ok(&daemon, &["stats", "disk", "--json"])).expect("JSON");
    assert_eq!(json["disks"][0]["id"], "disk");
    assert_eq!(json["disks"][0]["total"]["flushes"], 1);
    assert_eq!(json["disks"][0]["frontend"]["pid"], std::process::id());
    assert!(json["iothreads"][0]["x-figures"]["cpu-ns"].is_number());
}

/// Starts a daemon that may use names in its own directory, without disks.
fn empty_daemon(options: &[&str]) -> (tempfile::TempDir, Process) {
    let dir = tempfile::tempdir().expect("make a directory");
    let mut command = Command::new(testkit::daemon::binary());
    command
        .args(MONITOR)
        .args(options)
        .arg("--sandbox-path")
        .arg(dir.path());
    command
        .current_dir(dir.path())
        .stdin(Stdio::null())
        .stderr(Stdio::null());
    let (process, ()) = Process::start("vhost-user-blk", &mut command, |_| ());
    let socket = dir.path().join("qmp.sock");
    testkit::process::wait_for("the daemon", || {
        std::os::unix::net::UnixStream::connect(&socket).ok()
    });
    (dir, process)
}

#[test]
fn disks_are_added_resized_limited_and_removed() {
    let groups = ["--object", "throttle-group,id=g,limits.iops-total=50"];
    let (dir, _daemon) = empty_daemon(&groups);
    let socket = dir.path().join("qmp.sock");
    let run = |args: &[&str]| {
        ctl(&socket, args)
            .current_dir(dir.path())
            .output()
            .expect("run the program")
    };
    let ok = |args: &[&str]| {
        let output = run(args);
        assert!(
            output.status.success(),
            "{args:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    fs::write(dir.path().join("a.img"), [0; 8192]).expect("write an image");
    let add = ["add", "a", "--file", "a.img", "--listen", "a.sock"];
    ok(&[&add[..], &["--num-queues", "2", "--throttle-group", "g"]].concat());
    let mut frontend = frontend(&dir.path().join("a.sock"));
    assert_eq!(frontend.queue(0).run(&Op::Flush).ret, 0);

    ok(&["resize", "a", "16K"]);
    assert_eq!(
        fs::metadata(dir.path().join("a.img")).expect("the image").len(),
        16384
    );
    assert!(ok(&["list"]).contains("16 KiB"));

    assert_eq!(ok(&["throttle", "g"]), "iops-total=50\n");
    assert_eq!(
        ok(&[
            "throttle",
            "g",
            "--iops",
            "0",
            "--bps",
            "1M",
            "--limit",
            "iops-read=7"
        ]),
        "bps-total=1048576\niops-read=7\n"
    );
    assert!(refused(&run(&["throttle", "none"])).contains("none"));
    assert!(refused(&run(&["throttle", "g", "--limit", "iops=7"])).contains("iops"));

    // A refused disk leaves no node.
    let again = ["add", "b", "--file", "a.img", "--listen", "b.sock"];
    refused(&run(&again));
    drop(frontend);
    ok(&["remove", "a"]);
    assert_eq!(ok(&["list"]).lines().count(), 1);
    assert!(!dir.path().join("a.sock").exists());
    ok(&again);
}

/// Makes images with qemu-img, or returns false where it is missing.
fn qemu_img(dir: &Path, commands: &[&[&str]]) -> bool {
    for arguments in commands {
        match Command::new("qemu-img")
            .args(*arguments)
            .current_dir(dir)
            .output()
        {
            Ok(output) => assert!(
                output.status.success(),
                "{arguments:?}: {}",
                String::from_utf8_lossy(&output.stderr)
            ),
            Err(_) => {
                testkit::skip::skipped("qemu-img is not installed");
                return false;
            }
        }
    }
    true
}

#[test]
fn formats_of_images_are_not_guessed() {
    let (dir, _daemon) = empty_daemon(&[]);
    let socket = dir.path().join("qmp.sock");
    let run = |args: &[&str]| {
        let mut command = ctl(&socket, args);
        command.current_dir(dir.path()).output().expect("run the program")
    };
    if !qemu_img(
        dir.path(),
        &[
            &["create", "-q", "-f", "qcow2", "-o", "size=1M", "base"],
            &[
                "create", "-q", "-f", "qcow2", "-b", "base", "-F", "qcow2", "middle",
            ],
            &[
                "create", "-q", "-f", "qcow2", "-b", "middle", "-F", "qcow2", "top",
            ],
        ],
    ) {
        return;
    }
    let add = ["add", "a", "--file", "top", "--listen", "a.sock"];
    let add = |options: &[&str]| run(&[&add[..], options].concat());
    let list = || String::from_utf8_lossy(&run(&["list"]).stdout).into_owned();
    for (options, told) in [
        (&[][..], "--format qcow2"),
        (&["--format", "qcow2"], "names the backing file 'middle'"),
        (&["--format", "raw", "--follow-names"], "--follow-names"),
        (
            &["--format", "qcow2", "--follow-names", "--throttle-group", "none"],
            "none",
        ),
    ] {
        let refusal = refused(&add(options));
        assert!(refusal.contains(told), "{refusal}");
        assert_eq!(list().lines().count(), 1, "{}", list());
    }
    let qcow2 = ["--format", "qcow2", "--follow-names"];
    for (options, size) in [(&["--format", "raw"][..], None), (&qcow2, Some("1 MiB"))] {
        let added = add(options);
        assert!(
            added.status.success(),
            "{}",
            String::from_utf8_lossy(&added.stderr)
        );
        assert!(size.is_none_or(|size| list().contains(size)), "{}", list());
        let mut frontend = frontend(&dir.path().join("a.sock"));
        let data = vec![7; 4096];
        let write = Op::Write { offset: 0, data };
        if size.is_some() {
            assert_eq!(frontend.queue(0).run(&write).ret, 0);
        }
        drop(frontend);
        let removed = run(&["remove", "a"]);
        assert!(
            removed.status.success(),
            "{}",
            String::from_utf8_lossy(&removed.stderr)
        );
    }
    assert!(qemu_img(
        dir.path(),
        &[&["check", "-q", "top"], &["check", "-q", "middle"]]
    ));
}

#[test]
fn top_without_a_terminal_is_explained() {
    let daemon = daemon(&[]);
    let told = refused(&run(&daemon, &["top"]));
    assert!(told.contains("top needs a terminal; 'top --once'"), "{told}");
}

#[test]
fn top_shows_the_rates_of_an_interval() {
    let daemon = daemon(&["--num-queues", "2", "--iothreads", "1"]);
    let socket = daemon.socket();
    let run = std::sync::atomic::AtomicBool::new(true);
    let text = thread::scope(|scope| {
        scope.spawn(|| {
            let mut frontend = Frontend::connect(&socket, 2, 16, all_features()).expect("connect");
            while run.load(std::sync::atomic::Ordering::Relaxed) {
                assert_eq!(frontend.queue(0).run(&Op::Flush).ret, 0);
            }
        });
        let text = ok(&daemon, &["top", "--once", "--interval", "0.5"]);
        run.store(false, std::sync::atomic::Ordering::Relaxed);
        text
    });
    let line = |name: &str| {
        let line = text
            .lines()
            .find(|line| line.split_whitespace().next() == Some(name));
        line.unwrap_or_else(|| panic!("{name}: {text}"))
            .split_whitespace()
            .collect::<Vec<_>>()
    };
    let number = |cell: &str| cell.parse::<f64>().unwrap_or_else(|_| panic!("{cell}: {text}"));
    assert!(
        number(line("disk")[1]) > 0.0 && number(line("0")[1]) > 0.0,
        "{text}"
    );
    assert_eq!(number(line("1")[1]), 0.0, "{text}");
    assert!(
        line("disk")[3].ends_with('s') && number(line("disk")[7]) >= 0.5,
        "{text}"
    );
    assert!(line("iothread0")[1].ends_with('%'), "{text}");
}

#[test]
fn trace_reports_slow_intervals_and_events() {
    let daemon = daemon(&["--inject", "flush:delay=30ms", "--inject", "read:eio"]);
    let socket = daemon.socket();
    let mut command = ctl(
        &daemon.dir().join("qmp.sock"),
        &["trace", "disk", "--interval", "0.5", "--count", "4"],
    );
    let child = command.stdout(Stdio::piped()).spawn().expect("run the program");
    let mut frontend = frontend(&socket);
    let output = thread::scope(|scope| {
        let output = scope.spawn(|| child.wait_with_output().expect("wait for the program"));
        while !output.is_finished() {
            assert_eq!(frontend.queue(0).run(&Op::Flush).ret, 0);
            frontend.queue(0).run(&Op::Read { offset: 0, len: 512 });
        }
        output.join().expect("it has ended")
    });
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success());
    assert!(
        text.contains("slow: queue=0 p50=") && text.contains("block io error: "),
        "{text}"
    );
    let slow = text
        .lines()
        .find(|line| line.contains(" slow flush: queue=0 took="));
    let slow = slow.unwrap_or_else(|| panic!("no slow request in {text}"));
    for stage in ["throttled=", "waited=", "storage=", "returned=", "published="] {
        assert!(slow.contains(stage), "{slow}");
    }
    let error = refused(&run(&daemon, &["trace", "other"]));
    assert!(error.contains("there is no disk"), "{error}");
}

#[test]
fn wrong_sockets_are_explained() {
    let daemon = daemon(&[]);
    let told = |socket: PathBuf| refused(&ctl(&socket, &["list"]).output().expect("run the program"));
    assert!(told(daemon.dir().join("none")).contains("name its socket with --socket"));
    assert!(told(daemon.socket()).contains("is not a QMP socket"));
    let file = daemon.dir().join("file");
    std::fs::write(&file, "").expect("write a file");
    for other in [file, daemon.dir().to_owned()] {
        let told = told(other);
        assert!(told.contains("this is not a socket"), "{told}");
    }
    let stale = daemon.dir().join("stale");
    drop(std::os::unix::net::UnixListener::bind(&stale).expect("listen"));
    assert!(told(stale).contains("start it again"));
}

//! The daemon as a service: messages to the manager, sockets by name, the log in the journal, and systemd's units.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;
use testkit::daemon::{IMAGE, binary};
use testkit::frontend::{Frontend, Op, all_features};
use testkit::process::{DEADLINE, Process, wait_for};
use testkit::qmp::Qmp;
use testkit::skip::skipped;
use testkit::target::image;

const UNITS: [&str; 3] = [
    "vhost-user-blk@.service",
    "vhost-user-blk@.socket",
    "vhost-user-blk.service",
];

/// A service manager that a daemon in its directory talks to.
struct Manager {
    dir: TempDir,
    socket: UnixDatagram,
}

impl Manager {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("make a directory");
        fs::write(dir.path().join(IMAGE), image()).expect("write the image");
        let socket = UnixDatagram::bind(dir.path().join("notify")).expect("listen");
        socket.set_read_timeout(Some(DEADLINE)).expect("limit the wait");
        Self { dir, socket }
    }

    fn start(&self, args: &[&str], variables: &[(&str, &str)]) -> Process {
        let mut command = Command::new(binary());
        command
            .args(["--sandbox", "on"])
            .args(args)
            .current_dir(self.dir.path())
            .env("NOTIFY_SOCKET", self.dir.path().join("notify"))
            .envs(variables.iter().copied())
            .stdin(Stdio::null())
            .stderr(Stdio::null());
        Process::start("vhost-user-blk", &mut command, |_| ()).0
    }

    fn next(&self) -> String {
        let mut message = [0; 256];
        let len = self.socket.recv(&mut message).expect("a message");
        String::from_utf8_lossy(&message[..len]).into_owned()
    }

    /// Waits for a message that is not from the watchdog.
    fn next_state(&self) -> String {
        loop {
            let message = self.next();
            if message != "WATCHDOG=1" {
                return message;
            }
        }
    }
}

const DISK: [&str; 4] = ["--socket-path", "s", "--blk-file", IMAGE];

#[test]
fn managers_learn_which_process_has_taken_over() {
    let manager = Manager::new();
    let mut old = manager.start(
        &[&DISK[..], &["--hand-over", "h"]].concat(),
        &[("WATCHDOG_USEC", "60000000")],
    );
    assert_eq!(manager.next_state(), "READY=1\nSTATUS=serving 1 disk");
    // As a process that the manager starts to reload the service: it has no socket of its own.
    let mut command = Command::new(binary());
    command
        .args(["--sandbox", "on", "--take-over", "h"])
        .current_dir(manager.dir.path());
    command
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .env_remove("NOTIFY_SOCKET");
    let mut new = Process::start("vhost-user-blk", &mut command, |_| ()).0;
    assert!(old.wait().success());
    // In this order: a manager does not listen to a process that it does not know.
    assert_eq!(manager.next_state(), format!("MAINPID={}", new.pid()));
    assert_eq!(manager.next_state(), "READY=1\nSTATUS=serving 1 disk");
    new.signal(libc::SIGTERM);
    assert_eq!(manager.next_state(), "STOPPING=1\nSTATUS=stopping: SIGTERM");
    assert!(new.wait().success());
}

/// Units that wait for the disk start once it accepts connections, and not before.
#[test]
fn managers_learn_of_start_reload_and_end() {
    let manager = Manager::new();
    let mut daemon = manager.start(&DISK, &[]);
    assert_eq!(manager.next(), "READY=1\nSTATUS=serving 1 disk");
    let socket = manager.dir.path().join("s");
    let mut frontend = Frontend::connect(&socket, 1, 4, all_features()).expect("connect at once");
    assert_eq!(frontend.queue(0).run(&Op::Flush).ret, 0);

    daemon.signal(libc::SIGHUP);
    let reloading = manager.next();
    let time = reloading.strip_prefix("RELOADING=1\nMONOTONIC_USEC=");
    let time: u64 = time.and_then(|time| time.parse().ok()).expect("a time");
    assert!(time > 0);
    assert_eq!(manager.next(), "READY=1\nSTATUS=serving 1 disk");

    daemon.signal(libc::SIGTERM);
    assert_eq!(manager.next(), "STOPPING=1\nSTATUS=stopping: SIGTERM");
    assert!(daemon.wait().success());
}

#[test]
fn managers_learn_the_number_of_disks() {
    let manager = Manager::new();
    let args = [
        "--chardev",
        "socket,id=q,path=q,server=on,wait=off",
        "--monitor",
        "chardev=q",
    ];
    let _daemon = manager.start(&args, &[]);
    assert_eq!(manager.next(), "READY=1\nSTATUS=serving 0 disks");
    let mut qmp = Qmp::connect(&manager.dir.path().join("q"));
    let socket = UnixListener::bind(manager.dir.path().join("s")).expect("listen");
    qmp.execute(
        "blockdev-add",
        &serde_json::json!({"driver": "null-co", "node-name": "n", "size": 4096}),
    );
    qmp.execute_with("getfd", &serde_json::json!({"fdname": "s"}), &socket);
    let export = serde_json::json!({"type": "vhost-user-blk", "id": "e", "node-name": "n", "addr": {"type": "fd", "str": "s"}});
    qmp.execute("block-export-add", &export);
    assert_eq!(manager.next(), "STATUS=serving 1 disk");
    qmp.execute("block-export-del", &serde_json::json!({"id": "e"}));
    assert_eq!(manager.next(), "STATUS=serving 0 disks");
}

#[test]
fn the_watchdog_is_fed_until_the_process_hangs() {
    let manager = Manager::new();
    let daemon = manager.start(&DISK, &[("WATCHDOG_USEC", "40000")]);
    assert_eq!(manager.next_state(), "READY=1\nSTATUS=serving 1 disk");
    for _ in 0..3 {
        assert_eq!(manager.next(), "WATCHDOG=1");
    }
    daemon.signal(libc::SIGSTOP);
    wait_for("the process to stop", || {
        let state = fs::read_to_string(format!("/proc/{}/stat", daemon.pid())).ok()?;
        state.contains(") T ").then_some(())
    });
    manager.socket.set_nonblocking(true).expect("do not wait");
    while manager.socket.recv(&mut [0; 256]).is_ok() {}
    let silent = manager.socket.recv(&mut [0; 256]).map_err(|error| error.kind());
    assert_eq!(silent, Err(io::ErrorKind::WouldBlock));
    manager.socket.set_nonblocking(false).expect("wait again");
    daemon.signal(libc::SIGCONT);
    assert_eq!(manager.next(), "WATCHDOG=1");
}

#[test]
fn the_watchdog_of_another_process_is_not_fed() {
    let manager = Manager::new();
    let variables = [("WATCHDOG_USEC", "1000"), ("WATCHDOG_PID", "1")];
    let daemon = manager.start(&DISK, &variables);
    assert_eq!(manager.next(), "READY=1\nSTATUS=serving 1 disk");
    daemon.signal(libc::SIGTERM);
    assert_eq!(manager.next(), "STOPPING=1\nSTATUS=stopping: SIGTERM");
}

/// Returns a command that starts the daemon with these sockets as descriptors 3, 4 and so on.
fn activated(dir: &Path, sockets: &[&UnixListener], names: &str, args: &[&str]) -> Command {
    // The shell keeps its pid when it becomes the daemon.
    let mut command = Command::new("sh");
    command
        .args(["-c", r#"export LISTEN_PID=$$; exec "$0" "$@""#])
        .arg(binary())
        .args(args)
        .current_dir(dir)
        .env("LISTEN_FDS", sockets.len().to_string())
        .env("LISTEN_FDNAMES", names)
        .stdin(Stdio::null());
    let sockets: Vec<i32> = sockets.iter().map(|socket| socket.as_raw_fd()).collect();
    // SAFETY: the closure makes async-signal-safe calls between fork and exec.
    unsafe {
        command.pre_exec(move || {
            // Out of the way first, because the numbers may overlap. Nothing else is left open.
            for (place, socket) in (60..).zip(&sockets) {
                libc::dup2(*socket, place);
            }
            for (place, number) in (60..).zip(3..).take(sockets.len()) {
                libc::dup2(place, number);
                libc::close(place);
            }
            Ok(())
        })
    };
    command
}

fn listeners(dir: &Path, names: &[&str]) -> Vec<UnixListener> {
    let listen = |name: &&str| UnixListener::bind(dir.join(name)).expect("listen");
    names.iter().map(listen).collect()
}

fn two_disks(dir: &Path, names: [&str; 2]) -> String {
    let disk = |(name, size): (&str, u64)| {
        format!(
            "[[blockdev]]\ndriver = \"null-co\"\nnode-name = \"{name}\"\nsize = {size}\n\
             [[export]]\ntype = \"vhost-user-blk\"\nid = \"{name}\"\nnode-name = \"{name}\"\n\
             addr = {{ type = \"fd\", str = \"{name}\" }}\n"
        )
    };
    let text = names
        .into_iter()
        .zip([1 << 20, 2 << 20])
        .map(disk)
        .collect::<String>();
    fs::write(dir.join("disks.toml"), &text).expect("write the file");
    "disks.toml".to_owned()
}

#[test]
fn exports_find_their_sockets_by_name() {
    let dir = tempfile::tempdir().expect("make a directory");
    let sockets = listeners(dir.path(), &["of-b", "unused", "of-a"]);
    let config = two_disks(dir.path(), ["a", "b"]);
    let log = File::create(dir.path().join("log")).expect("make a log");
    let mut command = activated(
        dir.path(),
        &sockets.iter().collect::<Vec<_>>(),
        "b:unused:a",
        &["--config", &config, "--sandbox", "on"],
    );
    let (mut daemon, ()) = Process::start("vhost-user-blk", command.stderr(log), |_| ());
    for (socket, sectors) in [("of-a", 2048), ("of-b", 4096)] {
        let frontend = Frontend::connect(&dir.path().join(socket), 1, 4, all_features()).expect("connect");
        let capacity = frontend.config().capacity;
        assert_eq!(capacity, sectors, "{socket}");
    }
    daemon.signal(libc::SIGTERM);
    assert!(daemon.wait().success());
    let log = fs::read_to_string(dir.path().join("log")).expect("read the log");
    assert!(
        log.contains("no export uses this socket") && log.contains("unused"),
        "{log}"
    );
}

fn activation_refusal(names: &str, disks: [&str; 2]) -> Output {
    let dir = tempfile::tempdir().expect("make a directory");
    let sockets = listeners(dir.path(), &["s0", "s1"]);
    let config = two_disks(dir.path(), disks);
    let sockets: Vec<&UnixListener> = sockets.iter().collect();
    let mut command = activated(dir.path(), &sockets, names, &["--config", &config]);
    command.output().expect("run the daemon")
}

#[test]
fn wrong_names_of_sockets_are_refused() {
    for (names, disks, told, status) in [
        ("x:x", ["x", "y"], "several sockets are named 'x'", 1),
        ("a:b", ["a", "c"], "no socket with the name c", 2),
        ("a:b", ["a", "c"], "(LISTEN_FDNAMES=a:b)", 2),
        ("a", ["a", "b"], "LISTEN_FDS: ", 1),
    ] {
        let output = activation_refusal(names, disks);
        let text = String::from_utf8_lossy(&output.stderr);
        let last = text.lines().last().unwrap_or_default();
        assert!(
            last.starts_with("error: ") && last.contains(told),
            "{names}: {text}"
        );
        assert_eq!(output.status.code(), Some(status), "{text}");
    }
}

/// Runs a daemon until SIGTERM, with stderr in a file, and returns what it wrote there.
fn log_of(options: &[&str], journal: bool) -> String {
    let manager = Manager::new();
    let path = manager.dir.path().join("log");
    let log = File::create(&path).expect("make a log");
    let meta = log.metadata().expect("look at the log");
    let stream = format!("{}:{}", meta.dev(), meta.ino() + u64::from(!journal));
    let mut command = Command::new(binary());
    command
        .args(DISK)
        .args(["--stats"])
        .args(options)
        .current_dir(manager.dir.path())
        .env("NOTIFY_SOCKET", manager.dir.path().join("notify"))
        .env("JOURNAL_STREAM", stream)
        .stdin(Stdio::null())
        .stderr(log);
    let (mut daemon, ()) = Process::start("vhost-user-blk", &mut command, |_| ());
    manager.next();
    daemon.signal(libc::SIGTERM);
    daemon.wait();
    fs::read_to_string(&path).expect("read the log")
}

#[test]
fn lines_for_the_journal_have_priorities() {
    let log = log_of(&["--sandbox", "off"], true);
    assert!(log.lines().all(|line| line.starts_with('<')), "{log}");
    assert!(log.contains("<4>no sandbox: "), "{log}");
    assert!(
        log.contains("<6>serving ") && log.contains("<6>stats: total: "),
        "{log}"
    );
    assert!(!log.contains('\x1b') && !log.contains("INFO"), "{log}");
    let elsewhere = log_of(&[], false);
    assert!(
        elsewhere.lines().all(|line| !line.starts_with('<')),
        "{elsewhere}"
    );
}

#[test]
fn a_refusal_in_the_journal_is_an_error() {
    let dir = tempfile::tempdir().expect("make a directory");
    let log = File::create(dir.path().join("log")).expect("make a log");
    let meta = log.metadata().expect("look at the log");
    let mut command = Command::new(binary());
    command
        .args(["--no-such-option"])
        .env("JOURNAL_STREAM", format!("{}:{}", meta.dev(), meta.ino()))
        .stdin(Stdio::null())
        .stderr(log);
    assert_eq!(command.status().expect("run the daemon").code(), Some(2));
    let log = fs::read_to_string(dir.path().join("log")).expect("read the log");
    assert!(log.starts_with("<3>error: ") && log.lines().count() == 1, "{log}");
}

#[test]
fn json_logs_have_an_object_per_line() {
    let log = log_of(&["--log-format", "json"], true);
    let lines: Vec<BTreeMap<String, Value>> = log
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
        .collect();
    let serving = lines
        .iter()
        .find(|line| line["message"] == "serving")
        .expect("a line");
    assert_eq!(serving["level"], "INFO");
    assert_eq!(serving["disk"], IMAGE);
    assert!(
        serving["timestamp"]
            .as_str()
            .is_some_and(|time| time.ends_with('Z'))
    );
    let is_total = |line: &BTreeMap<String, Value>| {
        line["message"]
            .as_str()
            .is_some_and(|text| text.starts_with("stats: total: "))
    };
    assert!(lines.iter().any(is_total), "{log}");
}

/// Copies the units to a directory, with this daemon instead of an installed one.
fn units() -> TempDir {
    let dir = tempfile::tempdir().expect("make a directory");
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/systemd");
    for unit in UNITS {
        let text = fs::read_to_string(from.join(unit)).expect("read a unit");
        let text = text.replace("/usr/bin/vhost-user-blk", &binary().display().to_string());
        fs::write(dir.path().join(unit), text).expect("write a unit");
    }
    dir
}

fn systemd_analyze(args: &[&str], dir: &Path) -> Option<Output> {
    let output = Command::new("systemd-analyze")
        .args(args)
        .current_dir(dir)
        .output();
    match output {
        Ok(output) => Some(output),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            skipped("systemd-analyze is not installed (package systemd)");
            None
        }
        Err(error) => panic!("systemd-analyze: {error}"),
    }
}

#[test]
fn systemd_finds_no_mistake_in_the_units() {
    let dir = units();
    let names = UNITS.map(|unit| {
        dir.path()
            .join(unit.replace("@.", "@disk0."))
            .display()
            .to_string()
    });
    let args = [&["verify", "--man=no"], &names.each_ref().map(String::as_str)[..]].concat();
    let Some(output) = systemd_analyze(&args, dir.path()) else {
        return;
    };
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.trim().is_empty(), "{text}");
}

/// systemd's figure goes from 0 (confined) to 10 (unconfined). The threshold is in tenths.
#[test]
fn systemd_sees_the_services_confined() {
    let dir = units();
    for (unit, threshold) in [
        ("vhost-user-blk@disk0.service", 40),
        ("vhost-user-blk.service", 50),
    ] {
        let path = dir.path().join(unit).display().to_string();
        let threshold = format!("--threshold={threshold}");
        let args = ["security", "--offline=yes", "--no-pager", &threshold, &path];
        let Some(output) = systemd_analyze(&args, dir.path()) else {
            return;
        };
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{unit}: {text}");
    }
}

//! Permissions to connect to the socket.

use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use testkit::daemon::{Daemon, binary, run};
use testkit::frontend::{Frontend, Op, all_features};
use testkit::process::{Process, wait_for};
use testkit::skip::skipped;
use testkit::target::image;

/// A user who owns nothing, and a group without members.
pub(crate) const STRANGER: u32 = 0x5eed_b10d;
const GROUP: u32 = 0x5eed_b10e;

/// Whether this process may become another user. Reports the test as skipped if not.
pub(crate) fn is_root() -> bool {
    // SAFETY: takes nothing and always succeeds.
    let root = unsafe { libc::geteuid() } == 0;
    if !root {
        skipped("only root can become other users");
    }
    root
}

/// Tries to connect as a user in a group.
fn connect_as(user: u32, group: u32, socket: PathBuf) -> io::Result<()> {
    let mut command = Command::new("true");
    command.uid(user).gid(group);
    // SAFETY: the closure makes one attempt to connect between fork and exec, and allocates nothing.
    unsafe { command.pre_exec(move || UnixStream::connect(&socket).map(drop)) };
    command.status().map(drop)
}

fn open_to_all(path: &Path) {
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("open the directory");
}

fn start(options: &[&str]) -> Daemon {
    let daemon = Daemon::start(&image(), options);
    open_to_all(daemon.dir());
    daemon
}

#[test]
fn by_default_only_the_owner_can_connect() {
    let daemon = start(&[]);
    let mode = fs::metadata(daemon.socket()).expect("the socket").mode();
    assert_eq!(mode & 0o7777, 0o600);
    drop(daemon.connect());
    if is_root() {
        let refused = connect_as(STRANGER, STRANGER, daemon.socket()).expect_err("a stranger connects");
        assert_eq!(refused.raw_os_error(), Some(libc::EACCES));
    }
}

#[test]
fn socket_mode_and_group_admit_others() {
    if !is_root() {
        return;
    }
    let group = GROUP.to_string();
    let daemon = start(&["--socket-mode", "0660", "--socket-group", &group]);
    let metadata = fs::metadata(daemon.socket()).expect("the socket");
    assert_eq!((metadata.mode() & 0o7777, metadata.gid()), (0o660, GROUP));
    connect_as(STRANGER, GROUP, daemon.socket()).expect("a member connects");
    assert!(connect_as(STRANGER, STRANGER, daemon.socket()).is_err());

    let daemon = start(&["--socket-mode", "666"]);
    connect_as(STRANGER, STRANGER, daemon.socket()).expect("everybody connects");
}

/// The socket has the requested mode with any umask.
#[test]
fn the_socket_mode_ignores_the_umask() {
    for umask in [0o000, 0o777] {
        let dir = tempfile::tempdir().expect("make a directory");
        fs::write(dir.path().join("disk.img"), image()).expect("write the image");
        let mut command = Command::new(binary());
        let log = fs::File::create(dir.path().join("err")).expect("make a log");
        command.args([
            "--socket-path",
            "s",
            "--blk-file",
            "disk.img",
            "--socket-mode",
            "0640",
        ]);
        command.current_dir(dir.path()).stderr(log);
        // SAFETY: the closure only sets the umask between fork and exec.
        unsafe {
            command.pre_exec(move || {
                libc::umask(umask);
                Ok(())
            })
        };
        let (_daemon, ()) = Process::start("vhost-user-blk", &mut command, |_| ());
        let socket = dir.path().join("s");
        wait_for("the socket", || UnixStream::connect(&socket).ok());
        assert_eq!(fs::metadata(&socket).expect("the socket").mode() & 0o7777, 0o640);
    }
}

#[test]
fn an_unknown_group_is_refused_by_name() {
    let dir = tempfile::tempdir().expect("make a directory");
    fs::write(dir.path().join("disk.img"), image()).expect("write the image");
    let args = [
        "--socket-path",
        "s",
        "--blk-file",
        "disk.img",
        "--socket-group",
        "no-such-group",
    ];
    let exit = run(&args, dir.path());
    assert_eq!(exit.status.code(), Some(2));
    assert_eq!(exit.output.lines().count(), 1, "{}", exit.output);
    assert!(
        exit.output
            .contains("--socket-group: there is no group no-such-group"),
        "{}",
        exit.output
    );
    assert!(!dir.path().join("s").exists());
}

/// Tools show the address that a socket was bound to, not where its file is now.
#[test]
fn the_socket_is_bound_under_the_requested_name() {
    let dir = tempfile::tempdir().expect("make a directory");
    fs::write(dir.path().join("disk.img"), image()).expect("write the image");
    let socket = dir.path().join("vhost-user-blk.sock");
    let name = socket.to_str().expect("the path is UTF-8");
    let daemon = Daemon::start_with(dir, &["--socket-path", name, "--blk-file", "disk.img"]);
    let peer = daemon.connect().peer_addr().expect("ask for the name");
    assert_eq!(peer.as_pathname(), Some(&*socket));
    let listed = fs::read_to_string("/proc/net/unix").expect("list sockets");
    assert!(listed.lines().any(|line| line.ends_with(name)), "{listed}");
}

/// Only the first daemon takes over a stale socket.
#[test]
fn only_one_of_several_starting_daemons_listens() {
    const DAEMONS: u8 = 4;
    for _ in 0..5 {
        let dir = tempfile::tempdir().expect("make a directory");
        drop(UnixListener::bind(dir.path().join("s")).expect("leave a stale socket"));
        let start = |number: u8| {
            let image = format!("{number}.img");
            fs::write(dir.path().join(&image), [number; 4096]).expect("write the image");
            let log = fs::File::create(dir.path().join(format!("{number}.log"))).expect("make a log");
            let mut command = Command::new(binary());
            command.args(["--socket-path", "s", "--blk-file", &image]);
            command.current_dir(dir.path()).stderr(log);
            Process::start("vhost-user-blk", &mut command, |_| ()).0
        };
        let mut daemons: Vec<Process> = (0..DAEMONS).map(start).collect();
        wait_for("all but one to give up", || {
            let running = daemons.iter_mut().filter_map(Process::ended).count();
            (running == usize::from(DAEMONS) - 1).then_some(())
        });
        let logs = (0..DAEMONS).map(|number| fs::read_to_string(dir.path().join(format!("{number}.log"))));
        let logs: Vec<String> = logs.map(|log| log.expect("read a log")).collect();
        let refused = logs
            .iter()
            .filter(|log| log.contains("socket s is in use by process"));
        assert_eq!(refused.count(), usize::from(DAEMONS) - 1, "{logs:#?}");
        let mut winner = daemons
            .into_iter()
            .zip(0..)
            .find_map(|(mut daemon, number)| daemon.ended().is_none().then_some((daemon, number)))
            .expect("one is left");
        let mut frontend = Frontend::connect(&dir.path().join("s"), 1, 4, all_features()).expect("connect");
        let read = frontend.queue(0).run(&Op::Read { offset: 0, len: 512 });
        assert_eq!(read.data, [winner.1; 512], "the path is the winner's");
        drop(frontend);
        winner.0.signal(libc::SIGTERM);
        winner.0.wait();
        assert!(!dir.path().join("s").exists());
    }
}

/// Another daemon may hold the directory's lock after it has checked the socket and before it replaces it.
#[test]
fn a_locked_directory_keeps_its_stale_socket() {
    let dir = tempfile::tempdir().expect("make a directory");
    fs::write(dir.path().join("disk.img"), image()).expect("write the image");
    drop(UnixListener::bind(dir.path().join("stale")).expect("leave a stale socket"));
    let directory = fs::File::open(dir.path()).expect("open the directory");
    // SAFETY: takes numbers only.
    assert_eq!(unsafe { libc::flock(directory.as_raw_fd(), libc::LOCK_EX) }, 0);
    let exit = run(&["--socket-path", "stale", "--blk-file", "disk.img"], dir.path());
    assert!(
        exit.output.contains("keeps its directory locked"),
        "{}",
        exit.output
    );
    assert_eq!((exit.status.code(), exit.output.lines().count()), (Some(1), 1));
    assert!(dir.path().join("stale").exists());
    // Without a stale socket no lock is needed: `bind` succeeds for only one daemon.
    let _daemon = Daemon::start_in(dir, &[]);
}

/// Gives a directory to the user that the daemon switches to.
pub(crate) fn give_to(path: &Path, user: u32) {
    chown(path, Some(user), None).expect("give the directory away");
}

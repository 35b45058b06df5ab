//! NBD servers, as child processes.

use std::net::TcpListener;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tempfile::TempDir;
use testkit::daemon::Daemon;
use testkit::frontend::{Frontend, Op, all_features};
use testkit::process::{Process, wait_for};
use testkit::skip::skipped;

pub(crate) const SOCKET: &str = "nbd.sock";
pub(crate) const IMAGE: &str = "disk.img";
/// The daemon's socket.
pub(crate) const DISK: &str = "vhost-user-blk.sock";
pub(crate) const URI: &str = "nbd+unix:///disk?socket=nbd.sock";
pub(crate) const BLOCK: usize = 4096;

/// Returns whether a program is installed. Otherwise the test is skipped.
pub(crate) fn has(program: &str) -> bool {
    let found = Command::new(program)
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    if found.is_err() {
        skipped(format!("{program} is not installed"));
    }
    found.is_ok()
}

/// Makes a directory with an image of this size.
pub(crate) fn directory(size: u64) -> TempDir {
    let dir = tempfile::tempdir().expect("make a directory");
    let image = std::fs::File::create(dir.path().join(IMAGE)).expect("make the image");
    image.set_len(size).expect("size the image");
    dir
}

/// Starts qemu-nbd on the image of a directory, and waits until it listens.
pub(crate) fn qemu_nbd(dir: &Path, options: &[&str]) -> Process {
    let socket = dir.join(SOCKET);
    let _ = std::fs::remove_file(&socket);
    let mut command = Command::new("qemu-nbd");
    command
        .args([
            "-t",
            "-f",
            "raw",
            "-x",
            "disk",
            "--shared=0",
            "--discard=unmap",
            "-k",
        ])
        .arg(&socket)
        .args(options)
        .arg(dir.join(IMAGE))
        .stderr(Stdio::null());
    let (server, ()) = Process::start("qemu-nbd", &mut command, |_| ());
    wait_for("qemu-nbd", || UnixStream::connect(&socket).ok());
    server
}

/// Starts nbdkit, and waits until it listens.
pub(crate) fn nbdkit(dir: &Path, options: &[&str]) -> Process {
    let socket = dir.join(SOCKET);
    let _ = std::fs::remove_file(&socket);
    let mut command = Command::new("nbdkit");
    command
        .args(["-f", "-U"])
        .arg(&socket)
        .args(options)
        .stderr(Stdio::null());
    let (server, ()) = Process::start("nbdkit", &mut command, |_| ());
    wait_for("nbdkit", || UnixStream::connect(&socket).ok());
    server
}

/// Starts qemu-nbd with a TCP socket that this test has opened. Returns the port.
pub(crate) fn qemu_nbd_on_tcp(dir: &Path) -> (Process, u16) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let mut command = Command::new("sh");
    command
        .args([
            "-c",
            "LISTEN_PID=$$ exec \"$@\"",
            "sh",
            "qemu-nbd",
            "-t",
            "-f",
            "raw",
            "-x",
            "disk",
        ])
        .arg(dir.join(IMAGE))
        .env("LISTEN_FDS", "1")
        .stderr(Stdio::null());
    let fd = listener.as_raw_fd();
    // SAFETY: dup2 is async-signal-safe. Descriptor 3 of the child is the first one that it inherits.
    unsafe {
        command.pre_exec(move || {
            // A descriptor that is 3 already is only passed on.
            let passed = match fd {
                3 => libc::fcntl(fd, libc::F_SETFD, 0) == 0,
                _ => libc::dup2(fd, 3) == 3,
            };
            passed.then_some(()).ok_or_else(std::io::Error::last_os_error)
        });
    }
    let (server, ()) = Process::start("qemu-nbd", &mut command, |_| ());
    (server, port)
}

/// The options of the long form for a disk on the server in the daemon's directory.
pub(crate) fn long_form(node: &str) -> Vec<String> {
    [
        "--blockdev".to_owned(),
        format!("driver=nbd,node-name=n,export=disk,server.type=unix,server.path=nbd.sock{node}"),
        "--export".to_owned(),
        format!("vhost-user-blk,id=e,node-name=n,addr.type=unix,addr.path={DISK},writable=on"),
    ]
    .into()
}

/// Starts a daemon with the long form's options.
pub(crate) fn start(dir: TempDir, node: &str, more: &[&str]) -> Daemon {
    let args = long_form(node);
    let args: Vec<&str> = args
        .iter()
        .map(String::as_str)
        .chain(more.iter().copied())
        .collect();
    Daemon::start_with(dir, &args)
}

pub(crate) fn image(daemon: &Daemon) -> PathBuf {
    daemon.dir().join(IMAGE)
}

pub(crate) fn connect(daemon: &Daemon, queues: usize, depth: usize) -> Frontend {
    Frontend::connect(&daemon.dir().join(DISK), queues, depth, all_features()).expect("connect")
}

pub(crate) fn read(frontend: &mut Frontend, offset: u64) -> Result<Vec<u8>, i32> {
    let done = frontend.queue(0).run(&Op::Read { offset, len: BLOCK });
    if done.ret == 0 {
        Ok(done.data)
    } else {
        Err(done.ret)
    }
}

pub(crate) fn write(frontend: &mut Frontend, offset: u64, byte: u8) -> i32 {
    let data = vec![byte; BLOCK];
    frontend.queue(0).run(&Op::Write { offset, data }).ret
}

//! NBD servers, as child processes.

use std::net::TcpListener;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use tempfile::TempDir;

use crate::daemon::IMAGE;
use crate::process::{Process, wait_for};
use crate::skip::skipped;

/// The server's socket in the daemon's directory.
pub const SOCKET: &str = "nbd.sock";

/// Returns whether a program is installed. Otherwise the test is skipped.
pub fn has(program: &str) -> bool {
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
pub fn directory(size: u64) -> TempDir {
    let dir = tempfile::tempdir().expect("make a directory");
    let image = std::fs::File::create(dir.path().join(IMAGE)).expect("make the image");
    image.set_len(size).expect("size the image");
    dir
}

/// Starts qemu-nbd on the image of a directory, and waits until it listens.
pub fn qemu_nbd(dir: &Path, options: &[&str]) -> Process {
    qemu_nbd_over(dir, &dir.join(IMAGE), options)
}

/// Starts qemu-nbd on an image, and waits until it listens.
pub fn qemu_nbd_over(dir: &Path, image: &Path, options: &[&str]) -> Process {
    qemu_nbd_at(
        &dir.join(SOCKET),
        image,
        &[&["--discard=unmap"], options].concat(),
    )
}

/// Starts qemu-nbd on an image and a socket, and waits until it listens. The export is `disk`.
pub fn qemu_nbd_at(socket: &Path, image: &Path, options: &[&str]) -> Process {
    let _ = std::fs::remove_file(socket);
    let mut command = Command::new("qemu-nbd");
    command
        .args(["-t", "-f", "raw", "-x", "disk", "--shared=0", "-k"])
        .arg(socket)
        .args(options)
        .arg(image)
        .stderr(Stdio::null());
    let (mut server, ()) = Process::start("qemu-nbd", &mut command, |_| ());
    wait_for("qemu-nbd", || {
        let ended = server.ended();
        assert!(ended.is_none(), "qemu-nbd has ended: {ended:?}");
        UnixStream::connect(socket).ok()
    });
    server
}

/// Starts nbdkit, and waits until it listens.
pub fn nbdkit(dir: &Path, options: &[&str]) -> Process {
    nbdkit_on(dir, SOCKET, options)
}

/// Starts nbdkit on a socket of this name, and waits until it listens.
pub fn nbdkit_on(dir: &Path, socket: &str, options: &[&str]) -> Process {
    let socket = dir.join(socket);
    let _ = std::fs::remove_file(&socket);
    let mut command = Command::new("nbdkit");
    command
        .args(["-f", "-U"])
        .arg(&socket)
        .args(options)
        .stderr(Stdio::null());
    let (server, ()) = Process::start("nbdkit", &mut command, |_| ());
    wait_for("nbdkit", || UnixStream::connect(&socket).ok());
    // Its plugins keep files in /tmp.
    server.asked_first()
}

/// Starts qemu-nbd with a TCP socket that this test has opened. Returns the port.
pub fn qemu_nbd_on_tcp(dir: &Path, options: &[&str]) -> (Process, u16) {
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
        .args(options)
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

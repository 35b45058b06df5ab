//! Operations that Landlock alone denies to a process without filters.

use std::fs::{self, File};
use std::io;
use std::net::TcpStream;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::path::Path;

use testkit::process::run_alone;
use vhost_user_blk::sandbox::{Keep, Mode, Sandbox, ThreadKind};

use super::probe::{Outcome, in_child};

#[test]
fn landlock_alone_denies_files_and_processes() {
    run_alone("sandbox::files::body_of_out_of_reach");
}

#[test]
#[ignore = "needs a process of its own"]
fn body_of_out_of_reach() {
    let (inside, outside) = (tempfile::tempdir(), tempfile::tempdir());
    let (inside, outside) = (inside.expect("a directory"), outside.expect("a directory"));
    for dir in [&inside, &outside] {
        fs::write(dir.path().join("file"), []).expect("make a file");
    }
    let name = SocketAddr::from_abstract_name(outside.path().as_os_str().as_encoded_bytes()).expect("a name");
    let _listener = UnixListener::bind_addr(&name).expect("listen");
    let image = File::options()
        .read(true)
        .write(true)
        .open(outside.path().join("file"));
    let image = image.expect("open the image");
    let found = in_child(|| {
        let socket = inside.path().join("socket");
        let keep = Keep {
            sockets: &[&socket],
            account: None,
        };
        Sandbox::new(Mode::On, keep).expect("a sandbox");
        assert_denied(outside.path(), inside.path());
        assert_eq!(
            denied(UnixStream::connect_addr(&name)),
            libc::EPERM,
            "an abstract socket"
        );
        // SAFETY: takes nothing.
        let parent = unsafe { libc::getppid() };
        // SAFETY: signal 0 is no signal.
        let signalled = unsafe { libc::kill(parent, 0) };
        assert_eq!((signalled, errno()), (-1, libc::EPERM), "a signal");
        // Files that are already open stay usable.
        image.set_len(4096).expect("resize the image");
        fs::remove_file(inside.path().join("file")).expect("remove a socket");
        0
    });
    assert_eq!(found, Outcome::Done);
}

fn assert_denied(outside: &Path, inside: &Path) {
    let denials = [
        ("read", denied(File::open(outside.join("file")))),
        ("read", denied(File::open("/etc/passwd"))),
        ("list", denied(fs::read_dir(outside))),
        ("list", denied(fs::read_dir(inside))),
        ("remove", denied(fs::remove_file(outside.join("file")))),
        ("make", denied(File::create(inside.join("new")))),
        (
            "rename",
            denied(fs::rename(inside.join("file"), inside.join("new"))),
        ),
        ("bind", denied(UnixListener::bind(inside.join("new")))),
        ("connect", denied(TcpStream::connect(("127.0.0.1", 1)))),
    ];
    for (what, errno) in denials {
        assert_eq!(errno, libc::EACCES, "{what}");
    }
}

fn denied<T>(result: io::Result<T>) -> i32 {
    result
        .err()
        .and_then(|error| error.raw_os_error())
        .unwrap_or_default()
}

fn errno() -> i32 {
    io::Error::last_os_error().raw_os_error().unwrap_or_default()
}

#[test]
fn a_sandbox_that_only_logs_lets_everything_pass() {
    run_alone("sandbox::files::body_of_logging");
}

#[test]
#[ignore = "needs a process of its own"]
fn body_of_logging() {
    let found = in_child(|| {
        let sandbox = Sandbox::new(Mode::Log, Keep::default()).expect("a sandbox");
        sandbox.enter(ThreadKind::Worker).expect("enter it");
        i32::from(UnixStream::pair().is_err())
    });
    assert_eq!(found, Outcome::Done);
}

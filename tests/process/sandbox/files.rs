//! Operations that Landlock alone denies to a process without filters.

use std::fs::{self, File};
use std::io;
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Mode as FileMode, OFlags, ResolveFlags, openat2, unlinkat};
use rustix::io::Errno;
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
fn a_helper_reaches_nothing_outside_its_directories() {
    run_alone("sandbox::files::body_of_the_helper");
}

/// A helper is asked by a daemon that may have been taken over, so it tries what an intruder would.
#[test]
#[ignore = "needs a process of its own"]
fn body_of_the_helper() {
    let (inside, outside) = (tempfile::tempdir(), tempfile::tempdir());
    let (inside, outside) = (inside.expect("a directory"), outside.expect("a directory"));
    for dir in [&inside, &outside] {
        fs::write(dir.path().join("file"), [7; 4096]).expect("make a file");
    }
    let directory = OwnedFd::from(File::open(inside.path()).expect("open a directory"));
    let attempts = || {
        Sandbox::confine_helper(Mode::On, &[directory], None).expect("confine it");
        let read_and_write = OFlags::RDWR | OFlags::CLOEXEC;
        // The kernel wants a mode for new files only.
        let mode = |flags: OFlags| match flags.contains(OFlags::CREATE) {
            true => FileMode::RUSR,
            false => FileMode::empty(),
        };
        let open = |path: &Path, flags| openat2(CWD, path, flags, mode(flags), ResolveFlags::empty());
        // What it is for.
        open(&inside.path().join("file"), read_and_write).expect("open an image");
        UnixListener::bind(inside.path().join("socket")).expect("make a socket");
        UnixStream::connect(inside.path().join("socket")).expect_err("it was closed");
        let remove = |path: &Path| unlinkat(CWD, path, AtFlags::empty());
        remove(&inside.path().join("socket")).expect("remove a socket");
        // What it is not for.
        let create = read_and_write | OFlags::CREATE;
        for (what, path, flags) in [
            ("read", Path::new("/etc/passwd"), OFlags::RDONLY),
            ("read", &outside.path().join("file"), OFlags::RDONLY),
            ("read its own memory", Path::new("/proc/self/mem"), OFlags::RDONLY),
            ("make a file inside", &inside.path().join("new"), create),
            ("make a file outside", &outside.path().join("new"), create),
        ] {
            assert_eq!(open(path, flags).err(), Some(Errno::ACCESS), "{what}");
        }
        assert_eq!(
            denied(UnixListener::bind(outside.path().join("s"))),
            libc::EACCES,
            "make a socket"
        );
        assert_eq!(
            remove(&outside.path().join("file")),
            Err(Errno::ACCESS),
            "remove a file"
        );
        assert_eq!(
            denied(File::open(inside.path().join("file"))),
            libc::EACCES,
            "openat"
        );
    };
    let found = in_child(|| {
        attempts();
        0
    });
    assert_eq!(found, Outcome::Done);
    for (what, number) in [
        ("make a directory", libc::SYS_mkdirat),
        ("rename", libc::SYS_renameat2),
        ("link", libc::SYS_linkat),
        ("make a device", libc::SYS_mknodat),
        ("mount", libc::SYS_mount),
        ("run a program", libc::SYS_execve),
        ("map a file", libc::SYS_remap_file_pages),
        ("accept a connection", libc::SYS_accept4),
        ("read a range", libc::SYS_preadv2),
        ("write a range", libc::SYS_pwrite64),
        ("poll", libc::SYS_ppoll),
    ] {
        let directory = OwnedFd::from(File::open(inside.path()).expect("open a directory"));
        let found = in_child(|| {
            Sandbox::confine_helper(Mode::On, &[directory], None).expect("confine it");
            // SAFETY: without arguments, no memory is involved.
            unsafe { libc::syscall(number, -1, 0, 0, 0, 0, 0) };
            0
        });
        assert_eq!(found, Outcome::Killed, "{what}");
    }
}

#[test]
fn a_connector_reaches_its_server_only() {
    run_alone("sandbox::files::body_of_the_connector");
}

#[test]
#[ignore = "needs a process of its own"]
fn body_of_the_connector() {
    let listen = || TcpListener::bind("127.0.0.1:0").expect("a port");
    let (server, other) = (listen(), listen());
    let port = |listener: &TcpListener| listener.local_addr().expect("an address").port();
    let ports = [port(&server), port(&other)];
    let dir = tempfile::tempdir().expect("a directory");
    let socket = dir.path().join("socket");
    let _listener = UnixListener::bind(&socket).expect("a socket");
    let tcp = || {
        Sandbox::confine_connector(Mode::On, None, &ports[..1], None).expect("confine it");
        TcpStream::connect(("127.0.0.1", ports[0])).expect("its server");
        let refused = denied(TcpStream::connect(("127.0.0.1", ports[1])));
        assert_eq!(refused, libc::EACCES, "another port");
        assert_eq!(denied(File::open("/etc/passwd")), libc::EACCES, "a file");
    };
    let unix = || {
        Sandbox::confine_connector(Mode::On, Some(&socket), &[], None).expect("confine it");
        UnixStream::connect(&socket).expect("its server");
        let refused = denied(TcpStream::connect(("127.0.0.1", ports[0])));
        assert_eq!(refused, libc::EACCES, "a port");
    };
    let attempts: [&dyn Fn(); 2] = [&tcp, &unix];
    for attempt in attempts {
        let found = in_child(|| {
            attempt();
            0
        });
        assert_eq!(found, Outcome::Done);
    }
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

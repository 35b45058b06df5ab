//! The command line: refused options and their messages, and the output for programs.

use std::fs::{self, Permissions};
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use testkit::daemon::{Daemon, Exit, IMAGE, SOCKET, binary, run, tool_options};
use testkit::frontend::{Frontend, Op, all_features};
use testkit::process::Process;
use testkit::skip::skipped;
use testkit::target::image;

fn directory() -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("make a directory");
    std::fs::write(dir.path().join("disk.img"), [0; 4096]).expect("write the image");
    std::fs::write(dir.path().join("odd.img"), [0; 1000]).expect("write an image");
    std::fs::write(dir.path().join("empty.img"), []).expect("write an image");
    dir
}

/// Checks that the program ends soon, with a message and without a socket.
fn refused(args: &[&str], dir: &Path) -> Exit {
    let exit = run(args, dir);
    assert!(
        exit.status.code().is_some_and(|code| code != 0 && code != 124),
        "{args:?}: {}",
        exit.status
    );
    assert!(!exit.output.contains("panicked"), "{args:?}: {}", exit.output);
    assert!(!dir.join("s").exists(), "{args:?} made a socket");
    assert_said_once(&exit.output);
    exit
}

/// Checks that no part of an error message is repeated.
fn assert_said_once(text: &str) {
    let parts: Vec<&str> = text.trim_end().split(": ").collect();
    for (i, part) in parts.iter().enumerate() {
        assert!(!parts[..i].contains(part), "'{part}' is said twice: {text}");
    }
}

#[test]
fn memory_is_registered_with_io_uring_only() {
    let dir = directory();
    for aio in ["auto", "threads"] {
        let args = [
            "--socket-path",
            "s",
            "--blk-file",
            "disk.img",
            "--register-memory",
            "--aio",
            aio,
        ];
        let exit = refused(&args, dir.path());
        let wanted = "--register-memory needs --direct or --aio io_uring";
        assert!(exit.output.contains(wanted), "{aio}: {}", exit.output);
    }
}

#[test]
fn invalid_options_are_refused() {
    let dir = directory();
    let bad: &[&[&str]] = &[
        &["--num-queues", "0"],
        &["--num-queues", "70000"],
        &["--num-queues=-1"],
        &["--queue-size", "0"],
        &["--queue-size", "3"],
        &["--queue-size", "2048"],
        &["--iothreads", "0"],
        &["--aio", "sync"],
        &["--notify", "sometimes"],
        &["--logical-block-size", "0"],
        &["--logical-block-size", "256"],
        &["--logical-block-size", "1000"],
        &["--serial", "123456789012345678901"],
        &["--thread-pool-max", "0"],
        &["--thread-pool-min", "5", "--thread-pool-max", "4"],
        &["--thread-pool-min", "65"],
        &["--no-such-option"],
        &["--fd", "3"],
        &["--format", "vmdk"],
        &["--aio", "native"],
        &["--request-merging", "perhaps"],
        &["--iothread-vq-mapping", "0:1"],
        &["--iothread-cpus", "1:0"],
        &["--sandbox", "perhaps"],
        &["--socket-mode", "0999"],
        &["--user", "no-such-user"],
        &["--socket-group", "no-such-group"],
    ];
    for options in bad {
        let args = [&["--socket-path", "s", "--blk-file", "disk.img"], *options].concat();
        let exit = refused(&args, dir.path());
        // The message names the option.
        let name = options[0].split('=').next().expect("there is a first part");
        assert!(exit.output.contains(name), "{options:?}: {}", exit.output);
        assert_eq!(exit.output.lines().count(), 1, "{options:?}: {}", exit.output);
        assert_eq!(exit.status.code(), Some(2), "{options:?}: {}", exit.output);
    }
}

#[test]
fn needed_options_are_asked_for() {
    let dir = directory();
    refused(&[], dir.path());
    assert!(
        refused(&["--socket-path", "s"], dir.path())
            .output
            .contains("--blk-file")
    );
    assert!(
        refused(&["--blk-file", "disk.img"], dir.path())
            .output
            .contains("--socket-path")
    );
}

#[test]
fn an_open_failure_is_one_line_with_path() {
    let dir = directory();
    let long = "x".repeat(120);
    symlink("gone.img", dir.path().join("link.img")).expect("link to nothing");
    symlink("loop.img", dir.path().join("loop.img")).expect("link to itself");
    let cases: &[(&[&str], &str)] = &[
        (
            &["--socket-path", "s", "--blk-file", "missing.img"],
            "cannot open missing.img: No such file or directory; 'truncate -s 10G missing.img' makes one",
        ),
        (
            &["--socket-path", "s", "--blk-file", "nowhere/disk.img"],
            "there is no directory nowhere",
        ),
        (
            &["--socket-path", "s", "--blk-file", "odd.img/disk.img"],
            "odd.img is not a directory",
        ),
        (
            &["--socket-path", "s", "--blk-file", "link.img"],
            "a symbolic link to gone.img, which does not exist",
        ),
        (
            &["--socket-path", "s", "--blk-file", "/dev/no-such-disk"],
            "there is no such device",
        ),
        (&["--socket-path", "s", "--blk-file", "odd.img"], "odd.img"),
        (
            &["--socket-path", "s", "--blk-file", "loop.img"],
            "cannot open loop.img: Too many levels of symbolic links",
        ),
        (&["--socket-path", "s", "--blk-file", "empty.img"], "empty.img"),
        (&["--socket-path", "s", "--blk-file", "."], "."),
        (&["--socket-path", "s", "--blk-file", "/dev/null"], "/dev/null"),
        (
            &["--socket-path", "nowhere/s", "--blk-file", "disk.img"],
            "cannot listen on socket nowhere/s: there is no directory nowhere",
        ),
        (
            &["--socket-path", "odd.img/s", "--blk-file", "disk.img"],
            "odd.img is not a directory",
        ),
        (
            &["--socket-path", &long, "--blk-file", "disk.img"],
            "120 bytes long, but a socket's path has at most 107",
        ),
        (
            &["--fd", "999", "--blk-file", "disk.img"],
            "--fd: file descriptor 999 is not open",
        ),
        (
            &["--fd", "0", "--blk-file", "disk.img"],
            "'--fd <FD>': 0, 1 and 2 are standard",
        ),
    ];
    for (args, named) in cases {
        let exit = refused(args, dir.path());
        assert_eq!(exit.output.lines().count(), 1, "{args:?}: {}", exit.output);
        assert!(exit.output.contains(named), "{args:?}: {}", exit.output);
    }
}

/// A raw disk must not begin like an image of another format.
#[test]
fn an_image_of_another_format_is_refused() {
    let dir = directory();
    if Command::new("qemu-img").arg("--version").output().is_err() {
        skipped("no qemu-img");
        return;
    }
    for (format, options, name) in [
        ("qcow2", "cluster_size=64k", "qcow2"),
        ("qcow", "", "qcow2"),
        ("vmdk", "subformat=monolithicSparse", "VMDK"),
        ("vmdk", "subformat=streamOptimized", "VMDK"),
        ("vmdk", "subformat=monolithicFlat", "VMDK"),
        ("vdi", "", "VDI"),
        ("vhdx", "", "VHDX"),
        ("vpc", "", "VHD"),
        ("vpc", "subformat=fixed", "VHD"),
        ("qed", "", "QED"),
        ("parallels", "", "Parallels"),
    ] {
        let path = dir.path().join("x");
        let mut command = Command::new("qemu-img");
        command.args(["create", "-q", "-f", format]);
        if !options.is_empty() {
            command.args(["-o", options]);
        }
        let made = command.arg(&path).arg("64M").output().expect("run qemu-img");
        assert!(made.status.success(), "{format}: {}", text_of(&made));
        // An image of odd size is refused for its format, not its size: extending it would not help.
        let exit = refused(&["--socket-path", "s", "--blk-file", "x"], dir.path());
        let told = format!("x looks like a {name} image");
        assert!(exit.output.contains(&told), "{format}: {}", exit.output);
        assert!(exit.output.contains("--format raw"), "{format}: {}", exit.output);
        assert_eq!(exit.status.code(), Some(1));
        assert_eq!(exit.output.lines().count(), 1, "{}", exit.output);
    }
}

/// The long form names each layer, so that nothing has to be guessed.
#[test]
fn a_blockdev_is_served_whatever_its_format() {
    for driver in [
        "driver=file,filename=disk.img",
        "driver=raw,file.driver=file,file.filename=disk.img",
    ] {
        let mut content = image();
        content[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03");
        let dir = directory();
        fs::write(dir.path().join("disk.img"), &content).expect("write the image");
        let node = format!("{driver},node-name=n");
        let export =
            format!("type=vhost-user-blk,id=e,node-name=n,writable=on,addr.type=unix,addr.path={SOCKET}");
        let daemon = Daemon::start_with(dir, &["--blockdev", &node, "--export", &export]);
        let mut frontend = Frontend::connect(&daemon.socket(), 1, 4, all_features()).expect("connect");
        let read = frontend.queue(0).run(&Op::Read { offset: 0, len: 512 });
        assert_eq!(read.data, content[..512]);
    }
}

/// A guest can write anything to its disk. The daemon that takes over must still serve it.
#[test]
fn explicit_raw_format_skips_the_format_probe() {
    for (start, options) in [
        (&b"QFI\xfb\0\0\0\x03"[..], &["--format", "raw"][..]),
        // A guest may encrypt its disk.
        (b"LUKS\xba\xbe\0\x02", &[]),
        // The source of the migration has checked the format already.
        (b"QFI\xfb\0\0\0\x03", &["--incoming"]),
    ] {
        let mut content = image();
        content[..8].copy_from_slice(start);
        let mut daemon = Daemon::start(&content, options);
        daemon.restart(libc::SIGKILL);
        let mut frontend = Frontend::connect(&daemon.socket(), 1, 4, all_features()).expect("connect");
        let read = frontend.queue(0).run(&Op::Read { offset: 0, len: 512 });
        assert_eq!(read.data, content[..512]);
    }
}

#[test]
fn an_unreadable_image_reports_the_denied_permission() {
    // SAFETY: takes nothing and always succeeds.
    if unsafe { libc::geteuid() } != 0 {
        skipped("not root");
        return;
    }
    let dir = directory();
    let path = |name: &str| dir.path().join(name).display().to_string();
    fs::create_dir(path("closed")).expect("make a directory");
    fs::write(path("closed/disk.img"), [0; 512]).expect("write the image");
    fs::write(path("secret.img"), [0; 512]).expect("write the image");
    fs::set_permissions(path("."), Permissions::from_mode(0o755)).expect("open the directory");
    fs::set_permissions(path("closed"), Permissions::from_mode(0o750)).expect("close a directory");
    fs::set_permissions(path("secret.img"), Permissions::from_mode(0o640)).expect("close the image");
    let as_nobody = |image: &str, options: &[&str]| {
        let mut command = Command::new(binary());
        command
            .args(["--socket-path", "s", "--blk-file", image])
            .args(options);
        let text = text_of(
            &command
                .current_dir(dir.path())
                .uid(65534)
                .gid(65534)
                .output()
                .expect("run"),
        );
        assert_said_once(&text);
        text
    };
    let text = as_nobody("secret.img", &[]);
    let told =
        "cannot open secret.img: user nobody may not read secret.img (owner root, group root, mode 0640)";
    assert!(text.contains(told) && !text.contains("--read-only"), "{text}");
    let text = as_nobody("closed/disk.img", &["--read-only"]);
    let told = "user nobody may not enter directory closed (owner root, group root, mode 0750)";
    assert!(text.contains(told), "{text}");
    let text = as_nobody("disk.img", &[]);
    assert!(
        text.contains("may not write disk.img") && text.contains("--read-only"),
        "{text}"
    );
    assert_eq!(text.lines().count(), 1, "{text}");
}

fn text_of(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Returns a command that starts the daemon with `fd` as its descriptors 3 and 4, and with these environment variables.
/// If `LISTEN_PID` is "own", it is replaced by the daemon's pid.
fn handed_over(dir: &Path, fd: RawFd, args: &[&str], variables: &[(&str, &str)]) -> Command {
    // The shell keeps its pid when it becomes the daemon.
    let own = r#"[ "$LISTEN_PID" != own ] || export LISTEN_PID=$$; exec "$0" "$@" 3<&9 4<&9 9<&-"#;
    let mut command = Command::new("sh");
    command
        .args(["-c", own])
        .arg(binary())
        .args(args)
        .args(tool_options())
        .current_dir(dir);
    command.envs(variables.iter().copied()).stdin(Stdio::null());
    // SAFETY: the closure makes async-signal-safe calls between fork and exec. `fcntl` keeps descriptor 9 open at exec,
    // even if `fd` is 9 already.
    unsafe {
        command.pre_exec(
            move || match (libc::dup2(fd, 9), libc::fcntl(9, libc::F_SETFD, 0)) {
                (9, 0) => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            },
        )
    };
    command
}

#[test]
fn fd_that_is_not_a_socket_is_refused() {
    let dir = directory();
    let (ours, theirs) = UnixStream::pair().expect("make a connection");
    drop(theirs);
    let udp = std::net::UdpSocket::bind("127.0.0.1:0").expect("a UDP socket");
    let tcp = std::net::TcpListener::bind("127.0.0.1:0").expect("a TCP socket");
    let (datagram, _other) = UnixDatagram::pair().expect("datagrams");
    // SAFETY: takes numbers only.
    let unused = unsafe { libc::socket(libc::AF_UNIX, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) };
    // SAFETY: the descriptor was just created and has no other owner.
    let unused = unsafe { <OwnedFd as std::os::fd::FromRawFd>::from_raw_fd(unused) };
    let file = fs::File::open(dir.path().join(IMAGE)).expect("open a file");
    let (pipe, _writer) = std::io::pipe().expect("a pipe");
    let cases: [(RawFd, &str); 7] = [
        (file.as_raw_fd(), "is not a socket"),
        (pipe.as_raw_fd(), "is not a socket"),
        (udp.as_raw_fd(), "not a Unix stream socket"),
        (tcp.as_raw_fd(), "not a Unix stream socket"),
        (datagram.as_raw_fd(), "not a Unix stream socket"),
        (unused.as_raw_fd(), "neither listens nor is connected"),
        (ours.as_raw_fd(), "frontend has left already"),
    ];
    for (fd, told) in cases {
        for (args, variables, option, code) in [
            (&["--fd", "3", "--blk-file", IMAGE][..], &[][..], "--fd: ", 2),
            (
                &["--blk-file", IMAGE],
                &[("LISTEN_FDS", "1"), ("LISTEN_PID", "own")],
                "LISTEN_FDS: ",
                1,
            ),
        ] {
            let output = handed_over(dir.path(), fd, args, variables)
                .output()
                .expect("run");
            let text = text_of(&output);
            assert!(
                text.contains(option) && text.contains("descriptor 3") && text.contains(told),
                "{text}"
            );
            assert_said_once(&text);
            assert_eq!(
                (output.status.code(), text.lines().count()),
                (Some(code), 1),
                "{text}"
            );
        }
    }
}

/// The daemon opens descriptors itself, including connected Unix sockets.
#[test]
fn the_daemons_own_descriptors_are_never_taken_over() {
    let dir = directory();
    for fd in 3..20 {
        let mut command = Command::new(binary());
        command
            .args(["--blk-file", IMAGE, "--fd", &fd.to_string()])
            .current_dir(dir.path());
        // SAFETY: the closure makes only async-signal-safe calls. They keep the tests' descriptors from the daemon.
        unsafe {
            command.pre_exec(|| {
                (3..64).for_each(|fd| {
                    libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC);
                });
                Ok(())
            })
        };
        let output = command.stdin(Stdio::null()).output().expect("run");
        let text = text_of(&output);
        assert!(
            text.contains(&format!("--fd: file descriptor {fd} is not open")),
            "{text}"
        );
    }
}

#[test]
fn the_end_of_a_connected_socket_ends_the_daemon() {
    let dir = directory();
    let (ours, mut theirs) = UnixStream::pair().expect("make a connection");
    let mut command = handed_over(
        dir.path(),
        ours.as_raw_fd(),
        &["--fd", "3", "--blk-file", IMAGE],
        &[],
    );
    let (mut daemon, ()) = Process::start("the daemon", &mut command, |_| ());
    drop(ours);
    // GET_FEATURES: the answer shows that the daemon serves.
    let request = [1u32, 1, 0].map(u32::to_ne_bytes).concat();
    theirs.write_all(&request).expect("ask");
    theirs.read_exact(&mut [0; 20]).expect("an answer");
    drop(theirs);
    assert!(daemon.wait().success());
}

#[test]
fn a_socket_from_a_service_manager_is_served() {
    let dir = tempfile::tempdir().expect("make a directory");
    fs::write(dir.path().join(IMAGE), image()).expect("write the image");
    let socket = dir.path().join("s");
    let listener = UnixListener::bind(&socket).expect("listen");
    let variables = [
        ("LISTEN_FDS", "1"),
        ("LISTEN_PID", "own"),
        ("LISTEN_FDNAMES", "disk"),
    ];
    let mut command = handed_over(
        dir.path(),
        listener.as_raw_fd(),
        &["--blk-file", IMAGE],
        &variables,
    );
    let (mut daemon, ()) = Process::start("vhost-user-blk", command.stderr(Stdio::null()), |_| ());
    let mut frontend = Frontend::connect(&socket, 1, 4, all_features()).expect("connect");
    assert_eq!(frontend.queue(0).run(&Op::Flush).ret, 0);
    drop(frontend);
    daemon.signal(libc::SIGTERM);
    daemon.wait();
    assert!(socket.exists(), "the socket is the service manager's");
}

#[test]
fn socket_activation_requires_exactly_one_socket() {
    let dir = directory();
    let listener = UnixListener::bind(dir.path().join("l")).expect("listen");
    let pid = std::process::id().to_string();
    type Case<'a> = (&'a [&'a str], &'a [(&'a str, &'a str)], &'a str, i32);
    let cases: [Case<'_>; 8] = [
        (
            &[],
            &[("LISTEN_FDS", "0"), ("LISTEN_PID", "own")],
            "--socket-path missing",
            2,
        ),
        (
            &[],
            &[("LISTEN_FDS", "1"), ("LISTEN_PID", &pid)],
            "--socket-path missing",
            2,
        ),
        (&[], &[("LISTEN_FDS", "1")], "--socket-path missing", 2),
        (
            &[],
            &[
                ("LISTEN_FDS", "1"),
                ("LISTEN_PID", &pid),
                ("LISTEN_FDNAMES", "disk"),
            ],
            "--socket-path missing",
            2,
        ),
        (
            &[],
            &[("LISTEN_FDS", "2"), ("LISTEN_PID", "own")],
            "LISTEN_FDS: 2 sockets",
            1,
        ),
        (
            &[],
            &[("LISTEN_FDS", "9"), ("LISTEN_PID", "own")],
            "LISTEN_FDS: ",
            1,
        ),
        (
            &[],
            &[("LISTEN_FDS", "x"), ("LISTEN_PID", "own")],
            "LISTEN_FDS: ",
            1,
        ),
        (
            &["--socket-mode", "0660"],
            &[("LISTEN_FDS", "1"), ("LISTEN_PID", "own")],
            "SocketMode=",
            2,
        ),
    ];
    for (options, variables, told, code) in cases {
        let args = [&["--blk-file", IMAGE], options].concat();
        let output = handed_over(dir.path(), listener.as_raw_fd(), &args, variables).output();
        let output = output.expect("run");
        let text = text_of(&output);
        assert!(
            text.contains(told) && text.lines().count() == 1,
            "{variables:?}: {text}"
        );
        assert_said_once(&text);
        assert_eq!(output.status.code(), Some(code), "{text}");
    }
}

#[test]
fn linux_aio_is_refused_without_o_direct() {
    let dir = directory();
    let exit = refused(
        &["--socket-path", "s", "--blk-file", "disk.img", "--aio", "native"],
        dir.path(),
    );
    assert!(exit.output.contains("needs --direct"), "{}", exit.output);
}

#[test]
fn capabilities_are_printed_as_management_programs_expect() {
    let exit = run(&["--print-capabilities"], Path::new("/"));
    assert!(exit.status.success());
    let printed: serde_json::Value = serde_json::from_str(&exit.output).expect("it is JSON");
    assert_eq!(
        printed,
        serde_json::json!({"type": "block", "features": ["read-only", "blk-file"]})
    );
}

#[test]
fn help_lists_every_option() {
    let exit = run(&["--help"], Path::new("/"));
    assert!(exit.status.success());
    for option in [
        "--socket-path",
        "--fd",
        "--blk-file",
        "--read-only",
        "--print-capabilities",
        "--serial",
        "--logical-block-size",
        "--num-queues",
        "--queue-size",
        "--iothreads",
        "--aio",
        "--null",
        "--direct",
        "--thread-pool-min",
        "--thread-pool-max",
        "--notify",
        "--stats",
        "--sandbox",
        "--user",
        "--socket-mode",
        "--socket-group",
        "--format",
        "LISTEN_FDS",
    ] {
        assert!(exit.output.contains(option), "{option} is missing");
    }
}

#[test]
fn one_image_is_not_written_by_two_daemons() {
    let first = Daemon::start(&[0; 4096], &[]);
    let exit = run(
        &["--socket-path", "other.sock", "--blk-file", "disk.img"],
        first.dir(),
    );
    assert!(!exit.status.success(), "the image is open twice");
    assert_eq!(exit.output.lines().count(), 1, "{}", exit.output);
    assert!(exit.output.contains("disk.img is in use"), "{}", exit.output);
    assert!(exit.output.contains("end that first"), "{}", exit.output);
    assert_eq!(exit.status.code(), Some(1));
    // SAFETY: takes nothing and always succeeds.
    if unsafe { libc::geteuid() } == 0 {
        let who = format!("process {} (vhost-user-blk)", first.pid());
        assert!(exit.output.contains(&who), "{}", exit.output);
    }
}

//! `vhost-user-blkctl doctor` finds prepared mistakes.

use std::fs;
use std::io;
use std::path::Path;
use std::process::{Command, Stdio};

use testkit::daemon::Daemon;
use testkit::frontend::{Frontend, Op, all_features};
use testkit::process::{Process, wait_for};
use testkit::skip::skipped;

const MONITOR: [&str; 4] = [
    "--chardev",
    "socket,id=m,path=qmp.sock,server=on,wait=off",
    "--monitor",
    "chardev=m",
];

fn daemon(options: &[&str]) -> Daemon {
    Daemon::start(&[0; 1 << 16], &[&MONITOR[..], options].concat())
}

/// Returns what the doctor says with these arguments, and its exit status.
fn doctor(socket: &Path, args: &[&str]) -> (String, i32) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vhost-user-blkctl"));
    command
        .arg("--socket")
        .arg(socket)
        .arg("doctor")
        .args(args)
        .stdin(Stdio::null());
    let output = command.output().expect("run the program");
    assert!(
        output.stderr.is_empty(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    (text, output.status.code().expect("it exits"))
}

fn of(daemon: &Daemon) -> (String, i32) {
    doctor(&daemon.dir().join("qmp.sock"), &[])
}

/// Checks that a mistake was found, with its cure in the next line.
fn assert_found((text, status): &(String, i32), level: &str, what: &str, cure: &str) {
    let mut lines = text
        .lines()
        .skip_while(|line| !(line.starts_with(level) && line.contains(what)));
    assert!(lines.next().is_some(), "no {level} with {what:?} in: {text}");
    assert!(
        lines.next().is_some_and(|line| line.contains(cure)),
        "no cure {cure:?} in: {text}"
    );
    assert_eq!(
        *status,
        i32::from(text.lines().any(|line| line.starts_with("error:"))),
        "{text}"
    );
}

fn frontend(daemon: &Daemon) -> Frontend {
    Frontend::connect(&daemon.socket(), 1, 16, all_features()).expect("connect")
}

#[test]
fn a_healthy_daemon_has_no_error() {
    let daemon = daemon(&["--sandbox", "on"]);
    let mut frontend = frontend(&daemon);
    assert_eq!(frontend.queue(0).run(&Op::Flush).ret, 0);
    let (text, status) = of(&daemon);
    assert_eq!(status, 0, "{text}");
    assert!(!text.contains("disk ") && !text.contains("process "), "{text}");
}

#[test]
fn no_daemon_and_wrong_sockets() {
    let daemon = daemon(&[]);
    let none = doctor(&daemon.dir().join("none"), &[]);
    assert_found(
        &none,
        "error",
        "cannot connect",
        "start the daemon with --chardev",
    );
    let wrong = doctor(&daemon.socket(), &[]);
    assert_found(
        &wrong,
        "error",
        "is not a QMP socket",
        "name that of the daemon's --chardev",
    );
}

#[test]
fn images_that_cannot_be_served() {
    let dir = tempfile::tempdir().expect("make a directory");
    let image = |name: &str, content: &[u8]| {
        let path = dir.path().join(name);
        fs::write(&path, content).expect("write an image");
        doctor(Path::new("none"), &["--image", path.to_str().expect("UTF-8")])
    };
    assert_found(
        &image("odd", &[0; 1000]),
        "error",
        "not a multiple of 512",
        "truncate -s 1024",
    );
    let vmdk = [b"KDMV".as_slice(), &[0; 1020]].concat();
    assert_found(&image("v", &vmdk), "error", "looks like VMDK", "qemu-img convert");
    let vdi = [&[0; 64], b"\x7f\x10\xda\xbe".as_slice(), &[0; 956]].concat();
    assert_found(&image("vdi", &vdi), "error", "looks like VDI", "qemu-img convert");
    let fixed_vhd = [&[0; 1024], b"conectix".as_slice(), &[0; 504]].concat();
    assert_found(
        &image("vhd", &fixed_vhd),
        "error",
        "looks like VHD",
        "--format raw",
    );
    let qcow2 = [b"QFI\xfb\0\0\0\x09".as_slice(), &[0; 1016]].concat();
    assert_found(
        &image("q", &qcow2),
        "error",
        "version 9 is not known",
        "--format raw",
    );
    let missing = doctor(Path::new("none"), &["--image", "/nonexistent/x.img"]);
    assert_found(&missing, "error", "cannot be used", "truncate -s 10G");
    let below_a_file = dir.path().join("odd/x.img");
    let missing = doctor(
        Path::new("none"),
        &["--image", below_a_file.to_str().expect("UTF-8")],
    );
    assert_found(
        &missing,
        "error",
        "cannot be used: Not a directory",
        "name a raw image",
    );
    let good = image("good", &[0; 1024]);
    assert_eq!(good.1, 0, "{}", good.0);
}

#[test]
fn qcow2_images_are_looked_into() {
    let dir = tempfile::tempdir().expect("make a directory");
    let dir = dir.path();
    let qemu_img = |arguments: &[&str]| {
        let run = Command::new("qemu-img").args(arguments).current_dir(dir).output();
        run.is_ok_and(|output| output.status.success())
    };
    if !qemu_img(&["create", "-q", "-f", "qcow2", "base", "1M"]) {
        return skipped("qemu-img is not installed");
    }
    assert!(qemu_img(&[
        "create", "-q", "-f", "qcow2", "-b", "base", "-F", "qcow2", "top"
    ]));
    let look = |name: &str| {
        let path = dir.join(name);
        doctor(Path::new("none"), &["--image", path.to_str().expect("UTF-8")])
    };
    let good = look("base");
    assert_found(&good, "note", "is a qcow2 image", "--format qcow2");
    assert!(good.0.contains("no mistake found"), "{}", good.0);
    assert_found(&look("top"), "note", "names", "--follow-names");
    fs::remove_file(dir.join("base")).expect("remove the backing file");
    assert_found(&look("top"), "error", "cannot be used", "put that file back");
    let mut image = fs::read(dir.join("top")).expect("read the image");
    // The mark of the extension with the format of the backing file, and the corrupt bit.
    let at = image
        .windows(4)
        .position(|bytes| bytes == [0xe2, 0x79, 0x2a, 0xca]);
    image[at.expect("the extension")] = 0;
    image[79] |= 2;
    fs::write(dir.join("top"), image).expect("write the image");
    let bad = look("top");
    assert_found(&bad, "error", "does not tell the format", "qemu-img rebase -u");
    assert_found(&bad, "error", "marked as corrupt", "qemu-img check -r all");
}

#[test]
fn an_image_that_is_in_use() {
    let daemon = daemon(&[]);
    let path = daemon.image_path();
    let _frontend = frontend(&daemon);
    let found = doctor(Path::new("none"), &["--image", path.to_str().expect("UTF-8")]);
    assert_found(&found, "error", "in use by another process", "lsof");
}

#[test]
fn an_image_that_was_deleted_or_replaced() {
    let daemon = daemon(&[]);
    fs::rename(daemon.image_path(), daemon.dir().join("old")).expect("rename the image");
    assert_found(
        &of(&daemon),
        "error",
        "has been deleted",
        "/fd before the daemon ends",
    );
    fs::write(daemon.image_path(), [0; 4096]).expect("write another image");
    assert_found(&of(&daemon), "error", "is another file", "copy the data");
}

#[test]
fn a_daemon_without_sandbox() {
    let daemon = daemon(&["--sandbox", "off"]);
    assert_found(&of(&daemon), "warning", "runs without a sandbox", "--sandbox on");
}

#[test]
fn too_few_open_files() {
    let mut daemon = daemon(&["--num-queues", "32"]);
    let limit = libc::rlimit {
        rlim_cur: 64,
        rlim_max: 64,
    };
    let pid = libc::pid_t::try_from(daemon.pid()).expect("a pid fits");
    // SAFETY: the limit is read, and nothing is written.
    let set = unsafe { libc::prlimit(pid, libc::RLIMIT_NOFILE, &limit, std::ptr::null_mut()) };
    assert_eq!(set, 0);
    assert_found(&of(&daemon), "error", "may open 64 files", "LimitNOFILE=");
    daemon.terminate();
}

#[test]
fn disks_that_fail_or_are_full() {
    let daemon = daemon(&["--inject", "read:eio", "--inject", "write:enospc"]);
    let mut frontend = frontend(&daemon);
    frontend.queue(0).run(&Op::Read { offset: 0, len: 512 });
    assert_found(&of(&daemon), "warning", "1 requests have failed", "dmesg");
    let write = Op::Write {
        offset: 0,
        data: vec![1; 512],
    };
    frontend.queue(0).submit(&write, 0);
    frontend.queue(0).kick();
    let found = wait_for("the request to be held", || {
        let found = of(&daemon);
        found.0.contains("wait for room").then_some(found)
    });
    assert_found(&found, "error", "1 requests wait for room", "make room");
}

#[test]
fn failures_that_the_guest_does_not_see() {
    let daemon = daemon(&["--inject", "write:eio", "--werror", "ignore"]);
    let write = Op::Write {
        offset: 0,
        data: vec![1; 512],
    };
    assert_eq!(frontend(&daemon).queue(0).run(&write).ret, 0);
    assert_found(
        &of(&daemon),
        "error",
        "was told that they succeeded",
        "werror=ignore",
    );
}

#[test]
fn requests_that_wait_for_their_limit() {
    let dir = tempfile::tempdir().expect("make a directory");
    let options = [
        &MONITOR[..],
        &["--object", "throttle-group,id=g,limits.iops-total=1"],
        &[
            "--blockdev",
            "throttle,node-name=t,throttle-group=g,file.driver=null-co,file.size=65536",
        ],
        &[
            "--export",
            "vhost-user-blk,id=e,node-name=t,addr.type=unix,addr.path=vhost-user-blk.sock,writable=on",
        ],
    ];
    let daemon = Daemon::start_with(dir, &options.concat());
    let mut frontend = frontend(&daemon);
    (0..8).for_each(|tag| frontend.queue(0).submit(&Op::Flush, tag));
    (8..16).for_each(|tag| frontend.queue(0).submit(&Op::Read { offset: 0, len: 512 }, tag));
    frontend.queue(0).kick();
    let found = wait_for("requests to wait", || {
        let found = of(&daemon);
        found.0.contains("throttle group").then_some(found)
    });
    assert_found(&found, "warning", "wait for their throttle group", "1 requests/s");
}

/// Starts QEMU without a guest, and returns what the doctor says of it.
fn with_qemu(memory: &[&str], chardev: &str) -> Option<(String, i32)> {
    let daemon = daemon(&[]);
    let chardev = format!("socket,id=c,path={}{chardev}", daemon.socket().display());
    let mut command = Command::new("qemu-system-x86_64");
    command
        .args([
            "-nodefaults",
            "-display",
            "none",
            "-S",
            "-accel",
            "tcg",
            "-m",
            "64M",
        ])
        .args(memory)
        .args([
            "-chardev",
            &chardev,
            "-device",
            "vhost-user-blk-pci,chardev=c,num-queues=1",
        ])
        .stdin(Stdio::null());
    if let Err(error) = Command::new("qemu-system-x86_64").arg("--version").output() {
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        skipped("qemu-system-x86_64 is not installed");
        return None;
    }
    let (qemu, ()) = Process::start("QEMU", &mut command, |_| ());
    let pid = format!(" {} ", qemu.pid());
    wait_for("QEMU to connect", || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vhost-user-blkctl"));
        command
            .arg("--socket")
            .arg(daemon.dir().join("qmp.sock"))
            .arg("list");
        let output = command.output().expect("run the program");
        String::from_utf8_lossy(&output.stdout)
            .contains(&pid)
            .then_some(())
    });
    Some(of(&daemon))
}

const SHARED: [&str; 4] = [
    "-object",
    "memory-backend-memfd,id=mem,size=64M,share=on",
    "-machine",
    "q35,memory-backend=mem",
];

#[test]
fn memory_that_qemu_does_not_share() {
    let private = [
        "-object",
        "memory-backend-ram,id=mem,size=64M",
        "-machine",
        "q35,memory-backend=mem",
    ];
    for memory in [&private[..], &["-machine", "q35"]] {
        let Some(found) = with_qemu(memory, ",reconnect=1") else {
            return;
        };
        assert_found(&found, "error", "does not share its memory", "share=on");
        assert!(!found.0.contains("reconnect"), "{}", found.0);
    }
}

#[test]
fn a_qemu_that_does_not_reconnect() {
    let Some(found) = with_qemu(&SHARED, "") else {
        return;
    };
    assert_found(&found, "warning", "does not reconnect", "reconnect-ms=100");
    assert!(!found.0.contains("share its memory"), "{}", found.0);
}

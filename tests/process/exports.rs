//! The long form of the command line: objects, nodes and exports in the words of qemu-storage-daemon.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use tempfile::TempDir;
use testkit::daemon::{Daemon, run};
use testkit::frontend::{Frontend, Op, all_features};
use testkit::process::{threads, wait_for};
use testkit::skip::skipped;
use vhost_user_blk::limits::raise_open_files;
use virtio_driver::VirtioBlkFeatureFlags as Blk;

const MIB: usize = 1 << 20;
const BLOCK: usize = 4096;

/// Makes a directory with one image for each letter of `names`, filled with that letter.
pub(crate) fn images(names: &str) -> TempDir {
    let dir = tempfile::tempdir().expect("make a directory");
    for name in names.chars() {
        let content = vec![u8::try_from(name).expect("ASCII"); MIB];
        fs::write(dir.path().join(name.to_string()), content).expect("write an image");
    }
    dir
}

fn connect(daemon: &Daemon, socket: &str, queues: usize) -> Frontend {
    Frontend::connect(&daemon.dir().join(socket), queues, 8, all_features()).expect("connect")
}

fn read(frontend: &mut Frontend, queue: usize, offset: u64) -> Vec<u8> {
    let done = frontend.queue(queue).run(&Op::Read { offset, len: BLOCK });
    assert_eq!(done.ret, 0);
    done.data
}

fn write(frontend: &mut Frontend, queue: usize, offset: u64, byte: u8) -> i32 {
    let data = vec![byte; BLOCK];
    frontend.queue(queue).run(&Op::Write { offset, data }).ret
}

#[test]
fn one_iothread_serves_two_disks() {
    let args = [
        "--object",
        "iothread,id=io0,poll-max-ns=0",
        "--blockdev",
        "driver=file,node-name=a,filename=a,aio=threads",
        "--blockdev",
        r#"{"driver": "raw", "node-name": "b", "file": {"driver": "file", "filename": "b", "discard": "unmap"}}"#,
        "--export",
        "type=vhost-user-blk,id=first,node-name=a,addr.type=unix,addr.path=a.sock,writable=on,num-queues=2,iothread=io0",
        "--export",
        "vhost-user-blk,id=second,node-name=b,addr.type=unix,addr.path=b.sock,writable=on,iothread=io0,serial=two",
        "--stats",
    ];
    let mut daemon = Daemon::start_with(images("ab"), &args);
    let (mut a, mut b) = (connect(&daemon, "a.sock", 2), connect(&daemon, "b.sock", 1));
    assert_eq!(
        (
            a.config().num_queues.to_native(),
            b.config().num_queues.to_native()
        ),
        (2, 1)
    );
    for round in 0..8 {
        let at = (round * BLOCK) as u64;
        assert_eq!(write(&mut a, round % 2, at, b'A'), 0);
        assert_eq!(write(&mut b, 0, at, b'B'), 0);
        assert_eq!(read(&mut a, (round + 1) % 2, at), [b'A'; BLOCK]);
        assert_eq!(read(&mut b, 0, at), [b'B'; BLOCK]);
    }
    assert_eq!(read(&mut a, 0, 9 * BLOCK as u64), [b'a'; BLOCK]);
    let threads = threads(daemon.pid());
    let named = |name: &str| threads.iter().filter(|thread| thread["Name"] == name).count();
    assert_eq!((named("io0"), named("control")), (1, 2), "{threads:#?}");
    drop((a, b));
    let exit = daemon.terminate();
    assert!(exit.status.success(), "{}", exit.output);
    for disk in ["first", "second"] {
        let reported = exit.output.contains(&format!("stats: disk={disk} engine="));
        assert!(reported, "{}", exit.output);
    }
    let image = |name: &str| fs::read(daemon.dir().join(name)).expect("read an image");
    assert!(image("a")[..8 * BLOCK] == [b'A'; 8 * BLOCK] && image("a")[8 * BLOCK] == b'a');
    assert!(image("b")[..8 * BLOCK] == [b'B'; 8 * BLOCK] && image("b")[8 * BLOCK] == b'b');
    assert!(!daemon.dir().join("a.sock").exists() && !daemon.dir().join("b.sock").exists());
}

#[test]
fn an_exports_options_reach_the_guest() {
    let export =
        |options: &str| format!("vhost-user-blk,id=e,node-name=a,addr.type=unix,addr.path=s,{options}");
    let blockdev = ["--blockdev", "file,node-name=a,filename=a"];
    let start = |options: &str| {
        Daemon::start_with(
            images("a"),
            &[&blockdev[..], &["--export", &export(options)]].concat(),
        )
    };
    let offered = |daemon: &Daemon| Blk::from_bits_truncate(connect(daemon, "s", 1).features());

    let daemon = start("writable=off");
    let mut frontend = connect(&daemon, "s", 1);
    assert!(Blk::from_bits_truncate(frontend.features()).contains(Blk::RO));
    assert_ne!(
        write(&mut frontend, 0, 0, 1),
        0,
        "the node is writable, and the export is not"
    );
    assert_eq!(read(&mut frontend, 0, 0), [b'a'; BLOCK]);

    let daemon = start("writable=on,writethrough=on,logical-block-size=4096");
    let features = offered(&daemon);
    assert!(
        !features.intersects(Blk::FLUSH | Blk::CONFIG_WCE | Blk::RO),
        "{features:?}"
    );
    let config = connect(&daemon, "s", 1).config();
    assert_eq!((config.blk_size.to_native(), config.writeback), (4096, 0));

    let daemon = start("writable=on");
    assert!(offered(&daemon).contains(Blk::FLUSH | Blk::CONFIG_WCE));
    assert_eq!(connect(&daemon, "s", 1).config().blk_size.to_native(), 512);
}

/// Returns the number of blocks that the file system has allocated for the image `a`.
fn allocated(dir: &Path) -> u64 {
    fs::metadata(dir.join("a")).expect("the image").blocks()
}

#[test]
fn discards_free_space_only_if_told() {
    for (option, frees) in [("ignore", false), ("unmap", true)] {
        let blockdev = format!("file,node-name=a,filename=a,discard={option}");
        let export = "vhost-user-blk,id=e,node-name=a,addr.type=unix,addr.path=s,writable=on";
        let daemon = Daemon::start_with(images("a"), &["--blockdev", &blockdev, "--export", export]);
        let before = allocated(daemon.dir());
        let mut frontend = connect(&daemon, "s", 1);
        let len = MIB as u64;
        assert_eq!(frontend.queue(0).run(&Op::Discard { offset: 0, len }).ret, 0);
        assert_eq!(allocated(daemon.dir()) < before, frees, "{option}");
    }
}

#[test]
fn read_only_exports_share_a_node() {
    let export = |name: &str| format!("vhost-user-blk,id={name},node-name=a,addr.type=unix,addr.path={name}");
    let (one, two) = (export("s1"), export("s2"));
    let args = [
        "--blockdev",
        "file,node-name=a,filename=a",
        "--export",
        &one,
        "--export",
        &two,
    ];
    let daemon = Daemon::start_with(images("a"), &args);
    for socket in ["s1", "s2"] {
        assert_eq!(read(&mut connect(&daemon, socket, 1), 0, 0), [b'a'; BLOCK]);
    }
}

#[test]
fn disks_of_a_throttle_group_are_limited() {
    let args = [
        "--object",
        "throttle-group,id=slow,limits.iops-total=1,limits.iops-total-max=4",
        "--blockdev",
        "null-co,node-name=n,size=1M",
        "--blockdev",
        "throttle,node-name=t,throttle-group=slow,file=n",
        "--export",
        "vhost-user-blk,id=e,node-name=t,addr.type=unix,addr.path=s,writable=on",
    ];
    let daemon = Daemon::start_with(images(""), &args);
    let mut frontend = connect(&daemon, "s", 1);
    let queue = frontend.queue(0);
    for tag in 0..8 {
        queue.submit(&Op::Read { offset: 0, len: 512 }, tag);
    }
    queue.kick();
    queue.wait();
    assert!(queue.in_flight() >= 3, "{} of 8 wait", queue.in_flight());
}

/// A process that is not a child of the test. It is killed on drop, also when a test panics.
struct Stranger(i32);

impl Drop for Stranger {
    fn drop(&mut self) {
        // SAFETY: takes numbers only. It fails if the process has ended, which is fine.
        let _ = unsafe { libc::kill(self.0, libc::SIGKILL) };
    }
}

#[test]
fn a_daemon_in_the_background_serves_when_its_parent_ends() {
    let dir = images("a");
    let socket = dir.path().join("s");
    let args = [
        "--daemonize",
        "--pidfile",
        "pid",
        "--blockdev",
        "file,node-name=a,filename=a",
        "--export",
        "vhost-user-blk,id=e,node-name=a,addr.type=unix,addr.path=s",
    ];
    let exit = run(&args, dir.path());
    assert!(exit.status.success(), "{}", exit.output);
    let pid = fs::read_to_string(dir.path().join("pid")).expect("the process's number");
    let daemon = Stranger(pid.trim().parse().expect("a number"));
    let mut frontend = Frontend::connect(&socket, 1, 4, all_features()).expect("connect");
    assert_eq!(read(&mut frontend, 0, 0), [b'a'; BLOCK]);
    drop(frontend);
    // The pid file is locked while the daemon lives.
    let second = run(
        &[
            &args[..3],
            &["--blockdev", "null-co,node-name=a", args[5], args[6]],
        ]
        .concat(),
        dir.path(),
    );
    assert_eq!(second.status.code(), Some(1), "{}", second.output);
    assert_eq!(
        second.output.lines().last().map(|line| line.contains("in use")),
        Some(true),
        "{}",
        second.output
    );
    // SAFETY: takes numbers only.
    assert_eq!(unsafe { libc::kill(daemon.0, libc::SIGTERM) }, 0);
    let gone = || (!socket.exists() && !dir.path().join("pid").exists()).then_some(());
    wait_for("the end of the daemon", gone);
    std::mem::forget(daemon);
}

#[test]
fn hundreds_of_disks_are_served_by_one_process() {
    const DISKS: usize = 256;
    // This process has the frontends.
    let limit = raise_open_files().expect("raise the limit of open files");
    if limit < 8192 {
        return skipped(format!("this process may open only {limit} files"));
    }
    let dir = tempfile::tempdir().expect("make a directory");
    let mut args = ["--object", "iothread,id=io"].map(str::to_owned).to_vec();
    let content = |disk: usize, block: u64| (disk * 8 + usize::try_from(block).expect("small")).to_le_bytes();
    for disk in 0..DISKS {
        let blocks = (0..8).flat_map(|block| content(disk, block).repeat(BLOCK / 8));
        fs::write(dir.path().join(format!("{disk}.img")), blocks.collect::<Vec<_>>())
            .expect("write an image");
        args.extend([
            "--blockdev".to_owned(),
            format!("file,node-name=n{disk},filename={disk}.img"),
            "--export".to_owned(),
            format!(
                "vhost-user-blk,id=e{disk},node-name=n{disk},addr.type=unix,addr.path={disk}.sock,writable=on,iothread=io"
            ),
        ]);
    }
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let mut daemon = Daemon::start_with(dir, &args);
    let all = |daemon: &Daemon| daemon.output().matches("serving").count() == DISKS;
    daemon.wait_for(all, "serve all disks");
    let mut frontends: Vec<_> = (0..DISKS)
        .map(|disk| connect(&daemon, &format!("{disk}.sock"), 1))
        .collect();
    for (disk, frontend) in frontends.iter_mut().enumerate() {
        let data = read(frontend, 0, 3 * BLOCK as u64);
        assert!(data == content(disk, 3).repeat(BLOCK / 8), "disk {disk}");
        assert_eq!(write(frontend, 0, 0, u8::try_from(disk).expect("256 disks")), 0);
    }
    for (disk, frontend) in frontends.iter_mut().enumerate() {
        assert!(
            read(frontend, 0, 0).iter().all(|&byte| usize::from(byte) == disk),
            "disk {disk}"
        );
    }
    drop(frontends);
    let exit = daemon.terminate();
    assert!(exit.status.success(), "{}", exit.output);
    assert!(!daemon.dir().join("255.sock").exists());
}

//! Writes that a disk loses after answering them: no flush of any process may report them as stable.
//!
//! The disk is a loop device over a sparse file on a full tmpfs. Writes into the device's page cache succeed, and their
//! writeback fails. The kernel reports that failure once.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use serde_json::json;
use testkit::daemon::{Daemon, SOCKET, run};
use testkit::full::SmallDisk;
use testkit::inflight::Inflight;
use testkit::loop_device::LoopDevice;
use testkit::machine::host;
use testkit::memory::SharedMemory;
use testkit::process::wait_for;
use testkit::qmp::Qmp;
use testkit::raw::{Answer, LOG_ALL, PROTOCOL_FEATURES, VERSION_1, msg};
use testkit::tracer::kill_at_failure;
use testkit::vm::{DATA, HEADER, Ring, SECTOR, STATUS, USER, Vm, header, readable, writable};

const OUT: u32 = 1;
const FLUSH: u32 = 4;
const MIB: u64 = 1 << 20;
const OK: u8 = 0;
const IOERR: u8 = 1;
/// VIRTIO_BLK_F_FLUSH.
const FLUSH_FEATURE: u64 = 1 << 9;
const SIGNALS: [libc::c_int; 2] = [libc::SIGTERM, libc::SIGKILL];

/// A disk that loses all writes, and a daemon that serves it. The fields are dropped in this order.
struct Lossy {
    daemon: Daemon,
    device: LoopDevice,
    disk: SmallDisk,
}

fn serve(path: &str, options: &[&str]) -> Daemon {
    let dir = tempfile::tempdir().expect("make a directory");
    let args = ["--socket-path", SOCKET, "--blk-file", path];
    Daemon::start_with(dir, &[&args, options].concat())
}

impl Lossy {
    /// Returns `None` where mounts or loop devices are not available.
    fn start() -> Option<Self> {
        Self::start_with(&[])
    }

    fn start_with(options: &[&str]) -> Option<Self> {
        let disk = SmallDisk::mount(2 * MIB)?;
        disk.make_image(8 * MIB);
        let device = LoopDevice::over(&disk.image())?;
        let daemon = serve(device.path(), options);
        disk.fill(0);
        Some(Self { daemon, device, disk })
    }

    /// Makes room for all later writes.
    fn mend(&self) {
        self.disk.make_room();
    }
}

fn write(vm: &mut Vm) {
    vm.poke(HEADER, &header(OUT, 1024));
    let chain = [readable(HEADER, 16), readable(DATA, 4096), writable(STATUS, 1)];
    assert_eq!(
        vm.request(0, &chain),
        Some((OK, 1)),
        "a write into the page cache"
    );
}

fn flush(vm: &mut Vm) -> u8 {
    vm.poke(HEADER, &header(FLUSH, 0));
    let chain = [readable(HEADER, 16), writable(STATUS, 1)];
    let (status, len) = vm.request(0, &chain).expect("an answer");
    assert_eq!(len, 1);
    status
}

fn stop(vm: &mut Vm) {
    vm.client.stop_ring(0).expect("stop the ring");
}

/// Reconnects to a restarted daemon, as a frontend that keeps no in-flight region.
fn reconnect(vm: &mut Vm, daemon: &Daemon) {
    vm.reconnect(daemon.connect(), 0);
    vm.share_memory();
    vm.restart_rings();
}

/// Reconnects with an in-flight region.
fn resume(vm: &mut Vm, daemon: &Daemon, region: &Inflight) {
    vm.reconnect(daemon.connect(), 0);
    assert_eq!(region.set(&mut vm.client), Answer::Ack, "SET_INFLIGHT_FD");
    vm.share_memory();
    vm.restart_rings();
}

/// Connects a frontend with an in-flight region and a running ring.
fn connect(daemon: &Daemon) -> (Vm, Inflight) {
    let mut vm = Vm::connect(daemon, 0);
    let region = Inflight::get(&mut vm.client, 1, 16);
    vm.rings.push(Ring::new(0, 16));
    resume(&mut vm, daemon, &region);
    (vm, region)
}

fn start_is_refused(vm: &mut Vm) -> bool {
    let ring = Ring::new(0, 16);
    let user = |offset: usize| USER + offset as u64;
    vm.client.vring_state(msg::SET_VRING_NUM, 0, 16);
    vm.client
        .vring_addr(0, user(ring.desc), user(ring.used), user(ring.avail));
    let kick = ring.kick.as_raw_fd();
    vm.client
        .vring_fd(msg::SET_VRING_KICK, 0, Some(kick))
        .is_refusal()
}

#[test]
fn a_daemons_exit_preserves_the_kernels_writeback_error() {
    for signal in SIGNALS {
        let Some(mut lossy) = Lossy::start() else { return };
        let mut vm = Vm::start(&lossy.daemon, 1);
        write(&mut vm);
        lossy.daemon.restart(signal);
        lossy.mend();
        reconnect(&mut vm, &lossy.daemon);
        assert_eq!(flush(&mut vm), IOERR, "signal {signal}");
    }
}

#[test]
fn a_successors_flush_leaves_the_report_as_well() {
    for signal in SIGNALS {
        let Some(mut lossy) = Lossy::start() else { return };
        // Keeps the device open, and so the data in its cache: the last close would write it back.
        let _other = File::open(lossy.device.path()).expect("open the device");
        let mut vm = Vm::start(&lossy.daemon, 1);
        write(&mut vm);
        for successor in 1..=2 {
            lossy.daemon.restart(signal);
            reconnect(&mut vm, &lossy.daemon);
            assert_eq!(flush(&mut vm), IOERR, "signal {signal}, successor {successor}");
        }
    }
}

#[test]
fn a_stopped_ring_leaves_the_error_to_others() {
    for signal in SIGNALS {
        let Some(mut lossy) = Lossy::start() else { return };
        let mut vm = Vm::start(&lossy.daemon, 1);
        write(&mut vm);
        stop(&mut vm);
        lossy.daemon.restart(signal);
        lossy.mend();
        drop(vm);
        let mut vm = Vm::start(&lossy.daemon, 1);
        assert_eq!(flush(&mut vm), IOERR, "signal {signal}");
    }
}

#[test]
fn an_image_with_lost_writes_is_not_released() {
    let Some(mut lossy) = Lossy::start() else { return };
    let destination = serve(lossy.device.path(), &["--incoming"]);
    let mut vm = Vm::start(&lossy.daemon, 1);
    write(&mut vm);
    stop(&mut vm);
    lossy.mend();
    let said = lossy.daemon.output();
    assert!(said.contains("flush failed before releasing the image"), "{said}");

    let mut to = Vm::connect(&destination, 0);
    to.share_memory();
    assert!(start_is_refused(&mut to), "a start would vouch for lost writes");
    let exit = run(
        &["--socket-path", "s", "--blk-file", lossy.device.path()],
        lossy.daemon.dir(),
    );
    assert!(
        !exit.status.success() && exit.output.contains("in use"),
        "{}",
        exit.output
    );

    vm.restart_rings();
    assert_eq!(vm.read_sector(0, 0), [0; SECTOR]);
    assert_eq!(flush(&mut vm), IOERR);
    drop(vm);
    let exit = lossy.daemon.terminate();
    assert_eq!(exit.status.code(), Some(1), "{}", exit.output);
    assert!(exit.output.contains("a flush of"), "{}", exit.output);
}

#[test]
fn a_removed_image_with_lost_writes_fails_the_daemon() {
    let monitor = [
        "--chardev",
        "socket,id=m,path=qmp.sock,server=on,wait=off",
        "--monitor",
        "chardev=m",
    ];
    let Some(mut lossy) = Lossy::start_with(&monitor) else {
        return;
    };
    let mut vm = Vm::start(&lossy.daemon, 1);
    write(&mut vm);
    assert_eq!(flush(&mut vm), IOERR);
    drop(vm);
    let mut qmp = Qmp::connect(&lossy.daemon.dir().join("qmp.sock"));
    let exports = qmp.execute("query-block-exports", &json!({}));
    let (export, node) = (&exports[0]["id"], &exports[0]["node-name"]);
    qmp.execute("block-export-del", &json!({"id": export, "mode": "hard"}));
    wait_for("the end of the export", || {
        qmp.try_execute("blockdev-del", &json!({"node-name": node})).ok()
    });
    drop(qmp);
    let exit = lossy.daemon.terminate();
    assert_eq!(exit.status.code(), Some(1), "{}", exit.output);
    assert!(exit.output.contains("a flush of"), "{}", exit.output);
}

#[test]
fn a_failed_last_flush_fails_the_migration() {
    let Some(lossy) = Lossy::start() else { return };
    let mut vm = Vm::start(&lossy.daemon, 1);
    write(&mut vm);
    let features = VERSION_1 | PROTOCOL_FEATURES | LOG_ALL | FLUSH_FEATURE;
    let log = SharedMemory::new(4096);
    assert!(vm.client.set_log(4096, 0, log.fd()).is_some());
    let answer = vm.client.ask(msg::SET_FEATURES, &features.to_le_bytes(), &[]);
    assert_eq!(answer, Answer::Ack);
    assert!(
        vm.client.stop_ring(0).is_err(),
        "the destination would go on without the writes"
    );
    let said = lossy.daemon.output();
    assert!(
        said.contains("flush failed before handing the image over"),
        "{said}"
    );
}

#[test]
fn a_failed_flush_fails_in_later_processes() {
    for signals in [[libc::SIGKILL, libc::SIGTERM], [libc::SIGTERM, libc::SIGKILL]] {
        let Some(mut lossy) = Lossy::start() else { return };
        let (mut vm, region) = connect(&lossy.daemon);
        write(&mut vm);
        assert_eq!(flush(&mut vm), IOERR);
        lossy.mend();
        for signal in signals {
            lossy.daemon.restart(signal);
            resume(&mut vm, &lossy.daemon, &region);
            assert_eq!(vm.read_sector(0, 0), [0; SECTOR], "it can still be read");
            assert_eq!(flush(&mut vm), IOERR, "after {signal} of {signals:?}");
        }
        // Once the disk is repaired and the kernel's error consumed, a guest can start again with a new region.
        lossy.daemon.stop_with(libc::SIGTERM);
        let device = File::open(lossy.device.path()).expect("open the device");
        device.sync_data().expect_err("the report is there");
        device.sync_data().expect("and only once");
        drop(vm);
        let daemon = serve(lossy.device.path(), &[]);
        let (mut vm, _region) = connect(&daemon);
        write(&mut vm);
        assert_eq!(flush(&mut vm), OK);
    }
}

#[test]
fn a_lost_write_fails_the_next_regions_flushes() {
    let Some(mut lossy) = Lossy::start() else { return };
    let mut vm = Vm::start(&lossy.daemon, 1);
    write(&mut vm);
    assert_eq!(flush(&mut vm), IOERR);
    drop(vm);
    lossy.mend();
    let (mut vm, region) = connect(&lossy.daemon);
    lossy.daemon.restart(libc::SIGKILL);
    resume(&mut vm, &lossy.daemon, &region);
    assert_eq!(flush(&mut vm), IOERR);
}

#[test]
fn a_kill_during_flush_preserves_its_failure() {
    for delay in [0, 20, 50, 100, 150, 200, 300, 500, 1000, 2000] {
        let Some(mut lossy) = Lossy::start() else { return };
        let (mut vm, region) = connect(&lossy.daemon);
        write(&mut vm);
        vm.poke(HEADER, &header(FLUSH, 0));
        let chain = [readable(HEADER, 16), writable(STATUS, 1)];
        vm.send(0, &chain);
        let start = Instant::now();
        while start.elapsed().as_micros() < delay {}
        lossy.daemon.restart(libc::SIGKILL);
        lossy.mend();
        resume(&mut vm, &lossy.daemon, &region);
        vm.outcome(0);
        assert_eq!(vm.peek(STATUS, 1), [IOERR], "killed after {delay} us");
        assert_eq!(flush(&mut vm), IOERR, "killed after {delay} us");
    }
}

/// The device's last close loses the writes, and the next daemon is the first to see the error.
#[test]
fn a_kill_while_the_report_is_taken_preserves_it() {
    let Some(mut lossy) = Lossy::start() else { return };
    let (mut vm, region) = connect(&lossy.daemon);
    write(&mut vm);
    lossy.daemon.restart(libc::SIGTERM);
    lossy.mend();
    resume(&mut vm, &lossy.daemon, &region);
    let tracer = kill_at_failure(
        lossy.daemon.pid(),
        &[libc::SYS_fdatasync, libc::SYS_sync_file_range],
    );
    vm.poke(HEADER, &header(FLUSH, 0));
    vm.send(0, &[readable(HEADER, 16), writable(STATUS, 1)]);
    tracer.join().expect("one of the calls reports the loss");
    lossy.daemon.restart(libc::SIGKILL);
    resume(&mut vm, &lossy.daemon, &region);
    vm.outcome(0);
    assert_eq!(vm.peek(STATUS, 1), [IOERR]);
    assert_eq!(flush(&mut vm), IOERR);
}

/// Offset of the byte that says that a flush is running, after the magic, the device's state and another byte.
const FLUSH_RUNNING: u64 = 8 + 1 + 1;

/// Makes a region look as if a daemon had been killed during a flush.
fn leave_in_flush(region: &Inflight) {
    region.write(region.trailer() + FLUSH_RUNNING, &[1]);
}

/// Makes a region look as if a daemon had been killed while it asked the kernel for lost writes.
fn leave_taking_report(region: &Inflight) {
    region.write(region.trailer() + FLUSH_RUNNING, &[2]);
}

#[test]
fn after_a_kill_while_the_report_is_taken_flushes_fail() {
    let daemon = Daemon::start(&vec![0; 1 << 20], &[]);
    let mut vm = Vm::connect(&daemon, 0);
    let region = Inflight::get(&mut vm.client, 1, 16);
    leave_taking_report(&region);
    vm.rings.push(Ring::new(0, 16));
    resume(&mut vm, &daemon, &region);
    write(&mut vm);
    assert_eq!(flush(&mut vm), IOERR);
    let said = daemon.output();
    assert!(said.contains("asked whether writes were lost"), "{said}");
}

#[test]
fn after_a_kill_during_flush_healthy_disks_work() {
    let mut daemon = Daemon::start(&vec![0; 1 << 20], &[]);
    let (mut vm, region) = connect(&daemon);
    write(&mut vm);
    daemon.stop_with(libc::SIGKILL);
    leave_in_flush(&region);
    daemon.start_again(&[]);
    resume(&mut vm, &daemon, &region);
    assert!(
        daemon.output().contains("killed during a flush"),
        "{}",
        daemon.output()
    );
    assert_eq!(flush(&mut vm), OK);
    write(&mut vm);
    assert_eq!(flush(&mut vm), OK);
}

/// A file system on a disk that loses all writes to a file.
fn lossy_file_system() -> Option<(SmallDisk, LoopDevice, tempfile::TempDir)> {
    let disk = SmallDisk::mount(4 * MIB)?;
    disk.make_image(16 * MIB);
    let device = LoopDevice::over(&disk.image())?;
    host(
        "mkfs.ext4",
        &["-q", "-O", "^has_journal"],
        Path::new(device.path()),
    );
    let mount_point = tempfile::tempdir().expect("make a directory");
    let mounted = Command::new("mount")
        .arg(device.path())
        .arg(mount_point.path())
        .status();
    assert!(mounted.expect("run mount").success(), "mount");
    host("fallocate", &["-l", "1M"], &mount_point.path().join("disk.img"));
    File::open(mount_point.path())
        .expect("open")
        .sync_all()
        .expect("sync");
    disk.fill(0);
    Some((disk, device, mount_point))
}

fn unmount(mount_point: &Path) {
    let unmounted = Command::new("umount").arg(mount_point).status();
    assert!(unmounted.expect("run umount").success(), "umount");
}

#[test]
fn after_a_kill_during_flush_lost_writes_fail() {
    for in_flush in [true, false] {
        let Some((disk, _device, mount_point)) = lossy_file_system() else {
            return;
        };
        let path = mount_point.path().join("disk.img");
        // A daemon that is killed during the flush consumes the file's error without reporting it.
        let image = File::options().write(true).open(&path).expect("open the image");
        image
            .write_all_at(&[1; 65536], 512 << 10)
            .expect("write into the page cache");
        image.sync_data().expect_err("the disk is full");
        drop(image);
        disk.make_room();
        let daemon = serve(path.to_str().expect("UTF-8"), &[]);
        let mut vm = Vm::connect(&daemon, 0);
        let region = Inflight::get(&mut vm.client, 1, 16);
        if in_flush {
            leave_in_flush(&region);
        }
        vm.rings.push(Ring::new(0, 16));
        resume(&mut vm, &daemon, &region);
        let expected = if in_flush { IOERR } else { OK };
        assert_eq!(flush(&mut vm), expected, "in a flush: {in_flush}");
        assert_eq!(flush(&mut vm), expected, "in a flush: {in_flush}");
        drop(daemon);
        unmount(mount_point.path());
    }
}

#[test]
fn a_stopped_ring_leaves_a_files_error_too() {
    let Some((disk, _device, mount_point)) = lossy_file_system() else {
        return;
    };
    let path = mount_point.path().join("disk.img");
    let mut daemon = serve(path.to_str().expect("UTF-8"), &[]);
    let mut vm = Vm::start(&daemon, 1);
    write(&mut vm);
    stop(&mut vm);
    daemon.restart(libc::SIGTERM);
    disk.make_room();
    reconnect(&mut vm, &daemon);
    assert_eq!(flush(&mut vm), IOERR);
    drop(daemon);
    unmount(mount_point.path());
}

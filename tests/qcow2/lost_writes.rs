//! Images in a file system that loses writes after it has answered them.
//!
//! The file system is on a loop device over a sparse file on a full tmpfs, so that its flushes fail with ENOSPC.

use std::path::Path;
use std::process::Command;

use testkit::daemon::{Daemon, SOCKET};
use testkit::full::SmallDisk;
use testkit::loop_device::LoopDevice;
use testkit::vm::{DATA, HEADER, STATUS, Vm, header, readable, writable};

const OUT: u32 = 1;
const IOERR: u8 = 1;
const MIB: u64 = 1 << 20;

/// A mounted file system.
struct Mounted<'a>(&'a Path);

impl<'a> Mounted<'a> {
    fn new(device: &str, at: &'a Path) -> Self {
        run("mount", &[device, &at.display().to_string()]);
        Self(at)
    }
}

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        run("umount", &[&self.0.display().to_string()]);
    }
}

fn run(program: &str, args: &[&str]) {
    let ended = Command::new(program).args(args).status().expect(program);
    assert!(ended.success(), "{program} {args:?}");
}

/// Clusters are taken with a flush. Once flushes fail for good, room does not help, so the guest must get an answer.
#[test]
fn a_write_that_needs_a_cluster_fails_after_a_lost_write() {
    let Some(disk) = SmallDisk::mount(8 * MIB) else {
        return;
    };
    disk.make_image(96 * MIB);
    let Some(device) = LoopDevice::over(&disk.image()) else {
        return;
    };
    run(
        "mkfs.ext4",
        &["-q", "-F", "-m", "0", "-O", "^has_journal", device.path()],
    );
    let folder = tempfile::tempdir().expect("make a directory");
    let _mounted = Mounted::new(device.path(), folder.path());
    let image = folder.path().join("image.qcow2").display().to_string();
    run("qemu-img", &["create", "-q", "-f", "qcow2", &image, "64M"]);
    run("sync", &["-f", &image]);
    let dir = tempfile::tempdir().expect("make a directory");
    let args = ["--socket-path", SOCKET, "--blk-file", &image, "--format", "qcow2"];
    let daemon = Daemon::start_with(dir, &args);
    disk.fill(0);
    let mut vm = Vm::start(&daemon, 1);
    let chain = [readable(HEADER, 16), readable(DATA, 4096), writable(STATUS, 1)];
    let failed = (0..1024).find(|cluster| {
        vm.poke(HEADER, &header(OUT, cluster * 128));
        let (status, _) = vm.request(0, &chain).expect("an answer");
        status == IOERR
    });
    assert!(failed.is_some(), "{}", daemon.output());
}

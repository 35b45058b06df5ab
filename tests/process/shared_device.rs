//! A block device that several disks of one process use.

use std::path::Path;

use testkit::daemon::{Daemon, run};
use testkit::frontend::{Frontend, Op, all_features};
use testkit::loop_device::LoopDevice;

const MIB: usize = 1 << 20;
const BLOCK: usize = 4096;

/// Makes a loop device with an image in which every byte is 5.
fn device(dir: &Path) -> Option<LoopDevice> {
    let image = dir.join("image");
    std::fs::write(&image, vec![5; MIB]).expect("write an image");
    LoopDevice::over(&image)
}

/// Returns the options for two nodes on the device, and an export of each. `writable`: what the exports may do.
fn two_disks(device: &LoopDevice, writable: [&str; 2]) -> Vec<String> {
    let mut args = vec!["--object".to_owned(), "iothread,id=io0".to_owned()];
    for (name, writable) in ["a", "b"].into_iter().zip(writable) {
        let read_only = if writable == "on" { "off" } else { "on" };
        args.extend([
            "--blockdev".to_owned(),
            format!(
                "file,node-name={name},filename={},read-only={read_only}",
                device.path()
            ),
            "--export".to_owned(),
            format!(
                "vhost-user-blk,id={name},node-name={name},addr.type=unix,addr.path={name}.sock,\
                 writable={writable},iothread=io0"
            ),
        ]);
    }
    args
}

#[test]
fn readers_in_one_process_share_a_device() {
    let dir = tempfile::tempdir().expect("make a directory");
    let Some(device) = device(dir.path()) else { return };
    let args = two_disks(&device, ["off", "off"]);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let mut daemon = Daemon::start_with(tempfile::tempdir().expect("make a directory"), &args);
    let mut frontends = ["a.sock", "b.sock"]
        .map(|socket| Frontend::connect(&daemon.dir().join(socket), 1, 8, all_features()).expect("connect"));
    for frontend in &mut frontends {
        let offset = (MIB - BLOCK) as u64;
        let done = frontend.queue(0).run(&Op::Read { offset, len: BLOCK });
        assert!(done.ret == 0 && done.data == [5; BLOCK]);
        let data = vec![6; BLOCK];
        assert_ne!(frontend.queue(0).run(&Op::Write { offset: 0, data }).ret, 0);
    }
    drop(frontends);
    assert!(daemon.terminate().status.success());
    let image = std::fs::read(dir.path().join("image")).expect("read the image");
    assert!(image.iter().all(|byte| *byte == 5), "nothing was written");
}

#[test]
fn a_writer_shares_a_device_with_nobody() {
    let dir = tempfile::tempdir().expect("make a directory");
    let Some(device) = device(dir.path()) else { return };
    for writable in [["on", "off"], ["off", "on"], ["on", "on"]] {
        let args = two_disks(&device, writable);
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let exit = run(&args, dir.path());
        assert_eq!(exit.status.code(), Some(1), "{writable:?}: {}", exit.output);
        let named = exit.output.contains(device.path()) && exit.output.contains("in use");
        assert!(named, "{writable:?}: {}", exit.output);
        let sockets = ["a.sock", "b.sock"].map(|socket| dir.path().join(socket).exists());
        assert_eq!(sockets, [false; 2], "{writable:?}");
    }
}

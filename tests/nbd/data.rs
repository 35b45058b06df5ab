//! What the guest writes is what the server stores.

use std::fs;
use std::os::unix::fs::MetadataExt;

use testkit::daemon::Daemon;
use testkit::frontend::{Frontend, Op};
use testkit::model;

use crate::server::{
    BLOCK, DISK, URI, connect, directory, has, image, nbdkit, qemu_nbd, qemu_nbd_on_tcp, read, start, write,
};

const MIB: u64 = 1 << 20;

/// Runs random requests and compares every read, and at the end `stored`, with a model.
pub(crate) fn verify(frontend: &mut Frontend, stored: impl FnOnce() -> Vec<u8>) {
    let model = model::verify(frontend, 1);
    assert!(stored() == model, "the server has other data");
}

/// Writes through each of two queues, and reads the data through the other one.
pub(crate) fn verify_two_queues(daemon: &Daemon) {
    let mut frontend = connect(daemon, 2, 16);
    for round in 0..64_u8 {
        let (data, offset) = (vec![round; BLOCK], u64::from(round) * BLOCK as u64);
        let writer = usize::from(round % 2);
        let op = Op::Write {
            offset,
            data: data.clone(),
        };
        assert_eq!(frontend.queue(writer).run(&op).ret, 0);
        let op = Op::Read { offset, len: BLOCK };
        assert_eq!(frontend.queue(1 - writer).run(&op).data, data);
    }
}

#[test]
fn qemu_nbd_stores_what_the_guest_writes() {
    if !has("qemu-nbd") {
        return;
    }
    let dir = directory(4 * MIB);
    let _server = qemu_nbd(dir.path(), &[]);
    let daemon = Daemon::start_with(dir, &["--socket-path", DISK, "--blk-file", URI]);
    let mut frontend = connect(&daemon, 1, 16);
    assert_eq!(frontend.config().capacity.to_native(), 4 * MIB / 512);
    verify(&mut frontend, || {
        fs::read(image(&daemon)).expect("read the image")
    });
}

#[test]
fn a_server_is_reached_over_tcp() {
    if !has("qemu-nbd") {
        return;
    }
    let dir = directory(4 * MIB);
    let (_server, port) = qemu_nbd_on_tcp(dir.path(), &[]);
    let uri = format!("nbd://127.0.0.1:{port}/disk");
    let daemon = Daemon::start_with(
        dir,
        &["--socket-path", DISK, "--blk-file", &uri, "--sandbox", "auto"],
    );
    let mut frontend = connect(&daemon, 1, 16);
    verify(&mut frontend, || {
        fs::read(image(&daemon)).expect("read the image")
    });
}

#[test]
fn short_requests_and_large_blocks_suffice() {
    if !has("nbdkit") {
        return;
    }
    let dir = directory(4 * MIB);
    let path = dir.path().join("disk.img");
    let file = format!("file={}", path.display());
    let policy = ["--filter=blocksize-policy", "file", &file];
    let sizes = [
        "blocksize-minimum=512",
        "blocksize-preferred=4096",
        "blocksize-maximum=8192",
        "blocksize-error-policy=error",
    ];
    let _server = nbdkit(dir.path(), &[&policy[..], &sizes].concat());
    let daemon = start(dir, "", &[]);
    let mut frontend = connect(&daemon, 1, 16);
    verify(&mut frontend, || {
        fs::read(image(&daemon)).expect("read the image")
    });
}

#[test]
fn discards_free_space_on_the_server() {
    if !has("qemu-nbd") {
        return;
    }
    for (option, frees) in [(",discard=unmap", true), ("", false)] {
        let dir = directory(4 * MIB);
        let _server = qemu_nbd(dir.path(), &[]);
        let daemon = start(dir, option, &[]);
        let mut frontend = connect(&daemon, 1, 16);
        let fill = |frontend: &mut Frontend| (0..16).all(|i| write(frontend, i * BLOCK as u64, 7) == 0);
        assert!(fill(&mut frontend));
        let used = || fs::metadata(image(&daemon)).expect("the image").blocks();
        let (offset, len) = (0, 16 * BLOCK as u64);
        let before = used();
        let done = frontend.queue(0).run(&Op::Discard { offset, len });
        assert_eq!(
            done.ret == 0,
            frees,
            "discards are offered only with discard=unmap"
        );
        assert_eq!(used() < before, frees && before > 0);
        assert!(fill(&mut frontend));
        let zeroes = Op::WriteZeroes {
            offset,
            len,
            unmap: true,
        };
        assert_eq!(frontend.queue(0).run(&zeroes).ret, 0);
        assert_eq!(read(&mut frontend, 0), Ok(vec![0; BLOCK]));
        assert_eq!(used() < before, frees && before > 0);
    }
}

#[test]
fn an_export_may_be_read_only() {
    if !has("qemu-nbd") {
        return;
    }
    let dir = directory(MIB);
    fs::write(dir.path().join("disk.img"), vec![5; MIB as usize]).expect("fill the image");
    let _server = qemu_nbd(dir.path(), &["-r"]);
    let options = ["--socket-path", DISK, "--blk-file", URI, "--read-only"];
    let daemon = Daemon::start_with(dir, &options);
    let mut frontend = connect(&daemon, 1, 16);
    assert_eq!(read(&mut frontend, 0), Ok(vec![5; BLOCK]));
    assert_ne!(write(&mut frontend, 0, 6), 0);
    assert_eq!(
        fs::read(image(&daemon)).expect("the image"),
        vec![5; MIB as usize]
    );
}

#[test]
fn two_iothreads_have_a_connection_each() {
    if !has("qemu-nbd") {
        return;
    }
    let dir = directory(4 * MIB);
    let _server = qemu_nbd(dir.path(), &["-e", "4"]);
    let options = [
        "--socket-path",
        DISK,
        "--blk-file",
        URI,
        "--iothreads=2",
        "--num-queues=2",
    ];
    let daemon = Daemon::start_with(dir, &options);
    verify_two_queues(&daemon);
}

#[test]
fn errors_of_the_server_reach_the_guest() {
    if !has("nbdkit") {
        return;
    }
    let dir = directory(MIB);
    let trigger = dir.path().join("fail");
    let file = format!("file={}", dir.path().join("disk.img").display());
    let trigger_option = format!("error-file={}", trigger.display());
    let options = [
        "--filter=error",
        "file",
        &file,
        "error=EIO",
        "error-rate=100%",
        &trigger_option,
    ];
    let _server = nbdkit(dir.path(), &options);
    let daemon = start(dir, "", &[]);
    let mut frontend = connect(&daemon, 1, 16);
    assert_eq!(write(&mut frontend, 0, 1), 0);
    fs::write(&trigger, "").expect("make it fail");
    assert_ne!(write(&mut frontend, 0, 2), 0);
    assert!(read(&mut frontend, 0).is_err());
    fs::remove_file(&trigger).expect("end the failure");
    assert_eq!(read(&mut frontend, 0), Ok(vec![1; BLOCK]));
}

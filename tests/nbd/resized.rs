//! Exports that change their size.

use std::fs::OpenOptions;
use std::path::Path;

use testkit::daemon::Daemon;
use testkit::process::Process;

use crate::server::{BLOCK, connect, directory, has, image, nbdkit, qemu_nbd, read, start, write};

const MIB: u64 = 1 << 20;

/// Serves the image with a server that reads its size for each connection.
fn file_server(dir: &Path) -> Process {
    nbdkit(
        dir,
        &["file", &format!("file={}", dir.join("disk.img").display())],
    )
}

fn resize(daemon: &Daemon, size: u64) {
    let image = OpenOptions::new().write(true).open(image(daemon));
    image.expect("the image").set_len(size).expect("resize it");
}

#[test]
fn sighup_asks_the_server_for_its_size() {
    if !has("nbdkit") {
        return;
    }
    let dir = directory(MIB);
    let _server = file_server(dir.path());
    let mut daemon = start(dir, "", &[]);
    let mut frontend = connect(&daemon, 1, 16);
    assert_eq!(write(&mut frontend, 0, 1), 0);
    assert_ne!(write(&mut frontend, MIB, 2), 0);
    resize(&daemon, 2 * MIB);
    daemon.signal(libc::SIGHUP);
    let told = format!("before={MIB} after={}", 2 * MIB);
    daemon.wait_for(|daemon| daemon.output().contains(&told), "see the size");
    assert_eq!(write(&mut frontend, MIB, 2), 0);
    assert_eq!(read(&mut frontend, 0), Ok(vec![1; BLOCK]));
    // The guest may be using what is cut off.
    resize(&daemon, MIB);
    daemon.signal(libc::SIGHUP);
    daemon.wait_for(|daemon| daemon.output().contains("it is smaller"), "refuse it");
    assert_eq!(write(&mut frontend, 0, 3), 0);
}

#[test]
fn a_size_that_a_new_connection_brings_is_told() {
    if !has("qemu-nbd") {
        return;
    }
    let dir = directory(MIB);
    let mut server = qemu_nbd(dir.path(), &[]);
    let mut daemon = start(dir, ",reconnect-delay=100", &[]);
    let mut frontend = connect(&daemon, 1, 16);
    assert_eq!(write(&mut frontend, 0, 1), 0);
    server.signal(libc::SIGKILL);
    server.wait();
    resize(&daemon, 2 * MIB);
    let _server = qemu_nbd(daemon.dir(), &[]);
    let told = format!("before={MIB} after={}", 2 * MIB);
    daemon.wait_for(|daemon| daemon.output().contains(&told), "see the size");
    assert_eq!(write(&mut frontend, MIB, 2), 0);
    drop(frontend);
    let capacity = connect(&daemon, 1, 16).config().capacity.to_native();
    assert_eq!(capacity, 2 * MIB / 512);
}

#[test]
fn a_server_that_takes_one_client_keeps_its_size() {
    if !has("qemu-nbd") {
        return;
    }
    let dir = directory(MIB);
    let _server = qemu_nbd(dir.path(), &["--shared=1"]);
    let mut daemon = start(dir, "", &[]);
    let mut frontend = connect(&daemon, 1, 16);
    daemon.signal(libc::SIGHUP);
    for round in 0..100 {
        assert_eq!(write(&mut frontend, 0, round), 0);
    }
    daemon.wait_for(|daemon| daemon.output().contains("the old one stays"), "give up");
    assert_eq!(write(&mut frontend, 0, 3), 0);
}

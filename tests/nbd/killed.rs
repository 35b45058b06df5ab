//! A killed daemon loses no request, and none of its requests is executed after those of its successor.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use testkit::daemon::Daemon;
use testkit::kills;
use testkit::process::{Process, wait_for};

use crate::server::{
    BLOCK, connect, directory, has, image, nbdkit, nbdkit_on, qemu_nbd, qemu_nbd_over, start, start_after,
    write,
};

/// Starts an nbdkit on the image of a directory. While there is a file `hold`, its writes wait until there is a file
/// `go`. Each of these makes a file `held` before, and a file `late` after.
fn holding(dir: &Path, socket: &str) -> Process {
    let at = dir.display();
    let image = format!("{at}/disk.img");
    let pwrite = format!(
        "pwrite=if [ -e {at}/hold ]; then touch {at}/held; until [ -e {at}/go ]; do sleep 0.02; done; held=1; fi; \
         dd of={image} oflag=seek_bytes conv=notrunc seek=$4 status=none; if [ -n \"$held\" ]; then touch {at}/late; fi"
    );
    let size = format!("get_size=stat -c %s {image}");
    let pread = format!("pread=dd if={image} iflag=skip_bytes,count_bytes skip=$4 count=$3 status=none");
    let can = ["can_write=exit 0", "thread_model=echo parallel"];
    nbdkit_on(
        dir,
        socket,
        &[&["eval", &size, &pread, &pwrite], &can[..]].concat(),
    )
}

/// Leaves a write in the server, then makes `change`, and writes the same place again. Whatever the first write does, the
/// second one has to stay.
fn the_last_write_stays(servers: impl FnOnce(&Path) -> Vec<Process>, change: impl FnOnce(&mut Daemon)) {
    let dir = directory(1 << 20);
    let _servers = servers(dir.path());
    let mut daemon = start(dir, ",reconnect-delay=100,open-timeout=100", &[]);
    let at = daemon.dir().to_owned();
    let file = |name: &str| at.join(name);
    let mut frontend = connect(&daemon, 1, 16);
    fs::write(file("hold"), "").expect("hold writes");
    let data = vec![1; BLOCK];
    frontend
        .queue(0)
        .submit(&testkit::frontend::Op::Write { offset: 0, data }, 0);
    frontend.queue(0).kick();
    wait_for("the write", || file("held").exists().then_some(()));
    fs::remove_file(file("hold")).expect("hold no more");
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            // A client that does not wait has written by now.
            let end = Instant::now() + Duration::from_secs(6);
            while !done.load(Ordering::Relaxed) && Instant::now() < end {
                thread::sleep(Duration::from_millis(5));
            }
            fs::write(file("go"), "").expect("let it go");
        });
        drop(frontend);
        change(&mut daemon);
        let mut frontend = connect(&daemon, 1, 16);
        assert_eq!(write(&mut frontend, 0, 2), 0);
        done.store(true, Ordering::Relaxed);
    });
    wait_for("the first write", || file("late").exists().then_some(()));
    let stored = fs::read(image(&daemon)).expect("the image");
    assert!(
        stored[..BLOCK] == [2; BLOCK],
        "a write of the past has overwritten a later one"
    );
}

fn on_nbdkit(dir: &Path) -> Vec<Process> {
    vec![holding(dir, "nbd.sock")]
}

/// qemu-nbd ends a connection before the requests that it has read from it.
fn on_qemu_nbd(dir: &Path) -> Vec<Process> {
    let kit = holding(dir, "kit.sock");
    let uri = format!("nbd+unix:///?socket={}/kit.sock", dir.display());
    vec![qemu_nbd_over(dir, Path::new(&uri), &[]), kit]
}

fn killed(daemon: &mut Daemon) {
    daemon.restart(libc::SIGKILL);
}

#[test]
fn a_successor_waits_for_nbdkit_to_finish() {
    if has("nbdkit") {
        the_last_write_stays(on_nbdkit, killed);
    }
}

#[test]
fn a_successor_waits_for_qemu_nbd_to_finish() {
    if has("nbdkit") && has("qemu-nbd") {
        the_last_write_stays(on_qemu_nbd, killed);
    }
}

#[test]
fn a_new_connection_waits_for_the_old_ones_requests() {
    if has("nbdkit") && has("qemu-nbd") {
        // The ring gives the write up, and the daemon connects again.
        the_last_write_stays(on_qemu_nbd, |_| ());
    }
}

/// Kills the daemon under load again and again.
pub(crate) fn survives(rounds: usize, node: &str, before: &[&str], server: impl FnOnce(&Path) -> Process) {
    let dir = directory(kills::DISK as u64);
    let _server = server(dir.path());
    let node = format!(",reconnect-delay=100,open-timeout=100{node}");
    let mut daemon = start_after(dir, before, &node, &[]);
    kills::survives(rounds, &mut daemon, |daemon| {
        fs::read(image(daemon)).expect("read the image")
    });
}

#[test]
fn a_daemon_killed_50_times_loses_nothing() {
    if has("qemu-nbd") {
        survives(50, "", &[], |dir| qemu_nbd(dir, &[]));
    }
}

#[test]
fn a_daemon_killed_on_a_slow_server_loses_nothing() {
    if has("nbdkit") {
        survives(10, "", &[], |dir| {
            let file = format!("file={}", dir.join("disk.img").display());
            let slow = ["--filter=delay", "file", &file, "delay-write=20ms"];
            nbdkit(dir, &slow)
        });
    }
}

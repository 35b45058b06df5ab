//! One writer at a time.

use std::fs::{self, File};
use std::process::Command;
use std::time::{Duration, Instant};

use testkit::daemon::{binary, run};
use testkit::kills;
use testkit::process::{Process, wait_for};

use crate::cluster::{BLOCK, DISK, cluster, connect, read, write};

#[test]
fn a_live_owner_keeps_its_image() {
    let Some(cluster) = cluster() else { return };
    let image = cluster.image(4);
    let daemon = cluster.daemon(&image, &[]);
    let mut frontend = connect(&daemon, 1, 16);
    assert_eq!(write(&mut frontend, 0, 1), 0);
    let dir = tempfile::tempdir().expect("make a directory");
    let exit = run(
        &["--socket-path", DISK, "--blk-file", &cluster.file(&image)],
        dir.path(),
    );
    assert!(!exit.status.success(), "{}", exit.output);
    assert!(exit.output.contains("it is in use: client"), "{}", exit.output);
    assert_eq!(write(&mut frontend, 0, 2), 0);
    assert_eq!(read(&mut frontend, 0), Ok(vec![2; BLOCK]));
}

/// Kills daemons under load. What they have not answered is done by their successors, and nothing of the dead is executed
/// after that.
fn survives(rounds: usize) {
    let Some(cluster) = cluster() else { return };
    let image = cluster.image(1);
    let mut daemon = cluster.daemon(&image, &[]);
    kills::survives(rounds, &mut daemon, |_| cluster.contents(&image));
    assert!(daemon.output().contains("taking it over"), "{}", daemon.output());
}

#[test]
fn killed_daemons_lose_nothing() {
    survives(5);
}

#[test]
#[ignore = "takes a minute: cargo test --test rbd -- --ignored"]
fn daemons_killed_50_times_lose_nothing() {
    survives(50);
}

#[test]
fn a_stolen_lock_is_an_error() {
    let Some(cluster) = cluster() else { return };
    let image = cluster.image(4);
    let daemon = cluster.daemon(&image, &[]);
    let mut frontend = connect(&daemon, 1, 16);
    assert_eq!(write(&mut frontend, 0, 1), 0);
    let locks = cluster.rbd(&["lock", "ls", &image]);
    let line = locks.lines().last().expect("a lock").to_owned();
    let mut words = line.split_whitespace();
    let client = words.next().expect("a client").to_owned();
    let id = line
        .split_once(' ')
        .map(|(_, rest)| rest.trim())
        .and_then(|rest| rest.rsplit_once("  "))
        .map(|(id, _)| id.trim())
        .expect("the lock's id")
        .to_owned();
    cluster.rbd(&["lock", "rm", &image, &id, &client]);
    assert_ne!(write(&mut frontend, 0, 2), 0, "written without the lock");
    assert_eq!(cluster.contents(&image)[..BLOCK], [1; BLOCK]);
}

#[test]
fn a_destination_waits_for_the_lock() {
    let Some(cluster) = cluster() else { return };
    let image = cluster.image(4);
    let mut source = cluster.daemon(&image, &[]);
    let mut frontend = connect(&source, 1, 16);
    assert_eq!(write(&mut frontend, 0, 1), 0);
    let destination = cluster.daemon(&image, &["--incoming"]);
    assert_eq!(
        write(&mut frontend, 0, 2),
        0,
        "the destination has taken the lock"
    );
    drop(frontend);
    assert!(source.terminate().status.success());
    let mut frontend = connect(&destination, 1, 16);
    assert_eq!(read(&mut frontend, 0), Ok(vec![2; BLOCK]));
    assert_eq!(write(&mut frontend, 0, 3), 0);
    let locks = cluster.rbd(&["lock", "ls", &image]);
    assert!(locks.contains("client."), "{locks}");
}

#[test]
fn a_signal_ends_the_wait_for_the_lock() {
    let Some(cluster) = cluster() else { return };
    let image = cluster.image(4);
    let owner = cluster.daemon(&image, &[]);
    let mut frontend = connect(&owner, 1, 16);
    assert_eq!(write(&mut frontend, 0, 1), 0);
    // It has the lock, and answers no question for it.
    owner.signal(libc::SIGSTOP);
    let dir = tempfile::tempdir().expect("make a directory");
    let log = dir.path().join("log");
    let mut command = Command::new(binary());
    command
        .args(["--socket-path", DISK, "--blk-file", &cluster.file(&image)])
        .current_dir(dir.path())
        .stderr(File::create(&log).expect("make a log"));
    let mut waiting = Process::start("the second daemon", &mut command, |_| ()).0;
    let said = || fs::read_to_string(&log).unwrap_or_default();
    wait_for("the daemon to ask for the lock", || {
        let ended = waiting.ended();
        assert_eq!(ended, None, "{}", said());
        said().contains("asking for the lock").then_some(())
    });
    let sent = Instant::now();
    waiting.signal(libc::SIGTERM);
    assert_eq!(waiting.wait().code(), Some(1), "{}", said());
    assert!(sent.elapsed() < Duration::from_secs(10), "{:?}", sent.elapsed());
    assert!(said().contains("a signal ends the daemon"), "{}", said());
    owner.signal(libc::SIGCONT);
}

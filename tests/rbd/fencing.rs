//! One writer at a time.

use testkit::daemon::run;
use testkit::frontend::Op;

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

#[test]
fn killed_daemons_lose_nothing() {
    let Some(cluster) = cluster() else { return };
    let image = cluster.image(4);
    let mut daemon = cluster.daemon(&image, &[]);
    let mut frontend = connect(&daemon, 1, 16);
    for round in 1..=5_u8 {
        for slot in 0..8_u64 {
            assert_eq!(write(&mut frontend, slot * BLOCK as u64, round), 0);
        }
        // These may be executed or not, but never after a write of the successor.
        for slot in 8..16_u64 {
            let (offset, data) = (slot * BLOCK as u64, vec![100 + round; BLOCK]);
            frontend.queue(0).submit(&Op::Write { offset, data }, 0);
        }
        frontend.queue(0).kick();
        daemon.restart(libc::SIGKILL);
        frontend = connect(&daemon, 1, 16);
        for slot in 0..8_u64 {
            let stored = read(&mut frontend, slot * BLOCK as u64);
            assert_eq!(stored, Ok(vec![round; BLOCK]), "round {round}");
        }
        for slot in 8..16_u64 {
            let stored = read(&mut frontend, slot * BLOCK as u64).expect("read");
            let known = [round - 1, 100 + round];
            assert!(
                stored.iter().all(|byte| known.contains(byte)),
                "round {round}: {}",
                stored[0]
            );
            assert_eq!(write(&mut frontend, slot * BLOCK as u64, round), 0);
        }
    }
    assert!(daemon.output().contains("taking it over"), "{}", daemon.output());
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

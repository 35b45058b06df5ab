//! A new daemon takes over a disk in a cluster.

use testkit::daemon::HAND_OVER;
use testkit::frontend::Op;

use crate::cluster::{BLOCK, DISK, cluster, connect, read, write};

#[test]
fn the_lock_passes_to_the_new_process_and_back() {
    let Some(cluster) = cluster() else { return };
    let image = cluster.image(4);
    let mut daemon = cluster.daemon(&image, &["--hand-over", HAND_OVER]);
    let mut frontend = connect(&daemon, 1, 16);
    assert_eq!(write(&mut frontend, 0, 1), 0);
    let exit = daemon.fail_take_over(&[]);
    assert!(exit.output.contains("beside --take-over"), "{}", exit.output);
    let file = cluster.file(&image);
    let named = ["--socket-path", DISK, "--blk-file", &file, "--sandbox", "auto"];
    for round in 3..=5_u8 {
        for slot in 0..8_u64 {
            let (offset, data) = (slot * BLOCK as u64, vec![round; BLOCK]);
            frontend.queue(0).submit(&Op::Write { offset, data }, 0);
        }
        frontend.queue(0).kick();
        daemon.take_over(&named);
        assert!(frontend.queue(0).drain().iter().all(|done| done.ret == 0));
        for slot in 0..8_u64 {
            assert_eq!(read(&mut frontend, slot * BLOCK as u64), Ok(vec![round; BLOCK]));
        }
    }
    let other = tempfile::tempdir().expect("make a directory");
    let exit = testkit::daemon::run(&named[..4], other.path());
    assert!(exit.output.contains("it is in use: client"), "{}", exit.output);
    // Last, because the cluster takes half a minute to forget a killed client.
    let failing = [&named[..], &["--fail-take-over", "received"]].concat();
    let exit = daemon.fail_take_over(&failing);
    assert!(exit.output.contains("received"), "{}", exit.output);
    assert_eq!(write(&mut frontend, 0, 6), 0);
    assert!(daemon.terminate().status.success());
    assert_eq!(cluster.contents(&image)[..BLOCK], [6; BLOCK]);
}

#[test]
fn the_new_process_takes_the_lock_of_a_killed_one() {
    let Some(cluster) = cluster() else { return };
    let image = cluster.image(4);
    let file = cluster.file(&image);
    let failing = ["--hand-over", HAND_OVER, "--fail-take-over", "parking"];
    let mut daemon = cluster.daemon(&image, &failing);
    let mut frontend = connect(&daemon, 1, 16);
    assert_eq!(write(&mut frontend, 0, 1), 0);
    let named = ["--socket-path", DISK, "--blk-file", &file, "--sandbox", "auto"];
    daemon.take_over_from_killed(&named);
    drop(frontend);
    let mut frontend = connect(&daemon, 1, 16);
    assert_eq!(read(&mut frontend, 0), Ok(vec![1; BLOCK]));
    assert_eq!(write(&mut frontend, 0, 2), 0);
    assert!(daemon.terminate().status.success());
    assert_eq!(cluster.contents(&image)[..BLOCK], [2; BLOCK]);
}

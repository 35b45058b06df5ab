//! A cluster that does not answer.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use testkit::frontend::Op;
use testkit::process::{threads, wait_for};

use crate::cluster::{BLOCK, Cluster, cluster, connect, read, write};

/// Continues the OSD, also when a test fails.
struct Stopped<'a>(&'a Cluster);

impl<'a> Stopped<'a> {
    fn new(cluster: &'a Cluster) -> Self {
        cluster.signal_osd(libc::SIGSTOP);
        let stopped = Self(cluster);
        wait_for("all threads to stop", || {
            let all = threads(cluster.osd());
            all.iter()
                .all(|thread| thread["State"].trim().starts_with('T'))
                .then_some(())
        });
        stopped
    }
}

impl Drop for Stopped<'_> {
    fn drop(&mut self) {
        self.0.signal_osd(libc::SIGCONT);
    }
}

/// One test at a time stops the OSD.
static TURN: Mutex<()> = Mutex::new(());

#[test]
fn requests_wait_for_a_silent_cluster() {
    let Some(cluster) = cluster() else { return };
    let _turn = TURN.lock();
    let daemon = cluster.daemon(&cluster.image(4), &[]);
    let mut frontend = connect(&daemon, 1, 16);
    assert_eq!(write(&mut frontend, 0, 1), 0);
    let stopped = Stopped::new(&cluster);
    for slot in 0..16_u64 {
        let (offset, data) = (slot * BLOCK as u64, vec![2; BLOCK]);
        frontend.queue(0).submit(&Op::Write { offset, data }, 0);
    }
    frontend.queue(0).kick();
    assert!(frontend.queue(0).wait_at_most(Duration::from_secs(20)).is_none());
    drop(stopped);
    assert!(frontend.queue(0).drain().iter().all(|done| done.ret == 0));
    assert_eq!(read(&mut frontend, 0), Ok(vec![2; BLOCK]));
}

#[test]
fn a_silent_cluster_keeps_no_daemon() {
    let Some(cluster) = cluster() else { return };
    let _turn = TURN.lock();
    let mut daemon = cluster.daemon(&cluster.image(4), &[]);
    let mut frontend = connect(&daemon, 1, 16);
    assert_eq!(write(&mut frontend, 0, 1), 0);
    let _stopped = Stopped::new(&cluster);
    let (offset, data) = (0, vec![2; BLOCK]);
    frontend.queue(0).submit(&Op::Write { offset, data }, 0);
    frontend.queue(0).kick();
    assert!(frontend.queue(0).wait_at_most(Duration::from_secs(1)).is_none());
    let start = Instant::now();
    let _ = daemon.terminate();
    // A busy machine gets some time more.
    assert!(start.elapsed() < Duration::from_secs(6), "{:?}", start.elapsed());
}

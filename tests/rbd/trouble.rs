//! A cluster that does not answer.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use serde_json::json;
use testkit::daemon::Daemon;
use testkit::frontend::{Frontend, Op, all_features};
use testkit::neighbour::Neighbour;
use testkit::process::{threads, wait_for};
use testkit::qmp::Qmp;

use crate::cluster::{BLOCK, Cluster, DISK, cluster, connect, read, write};

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

/// Starts a daemon with an image in the cluster, a file and a monitor.
fn with_a_file(cluster: &Cluster) -> (Daemon, Qmp) {
    let dir = tempfile::tempdir().expect("make a directory");
    Neighbour::make_image(&dir.path().join("file.img"));
    let (image, conf) = (cluster.image(4), cluster.conf());
    let node = format!(
        "driver=rbd,node-name=n,pool=p,image={image},conf={}",
        conf.display()
    );
    let export = format!("vhost-user-blk,id=e,node-name=n,addr.type=unix,addr.path={DISK},writable=on");
    let args = [
        "--blockdev",
        &node,
        "--export",
        &export,
        "--blockdev",
        "driver=file,node-name=f,filename=file.img",
        "--export",
        "vhost-user-blk,id=g,node-name=f,addr.type=unix,addr.path=file.sock,writable=on",
        "--chardev",
        "socket,id=m,path=qmp.sock,server=on,wait=off",
        "--monitor",
        "chardev=m",
    ];
    let daemon = Daemon::start_with(dir, &args);
    let qmp = Qmp::connect(&daemon.dir().join("qmp.sock"));
    (daemon, qmp)
}

#[test]
fn a_file_works_beside_a_silent_cluster() {
    let Some(cluster) = cluster() else { return };
    let _turn = TURN.lock();
    let (daemon, mut qmp) = with_a_file(&cluster);
    let mut frontend = connect(&daemon, 1, 16);
    assert_eq!(write(&mut frontend, 0, 1), 0);
    let stopped = Stopped::new(&cluster);
    let data = vec![2; BLOCK];
    frontend.queue(0).submit(&Op::Write { offset: 0, data }, 0);
    frontend.queue(0).kick();
    assert!(
        frontend
            .queue(0)
            .wait_at_most(Duration::from_millis(500))
            .is_none()
    );
    let file = daemon.dir().join("file.sock");
    let mut file = Frontend::connect(&file, 1, 4, all_features()).expect("connect");
    for round in 0..100 {
        assert_eq!(write(&mut file, 0, round), 0);
        assert_eq!(read(&mut file, 0), Ok(vec![round; BLOCK]));
    }
    // Neither commands nor the removal of the disk wait for the cluster.
    let begin = Instant::now();
    qmp.execute("query-named-block-nodes", &json!({}));
    qmp.execute("block-export-del", &json!({"id": "e", "mode": "hard"}));
    wait_for("the removal", || {
        let exports = qmp.execute("query-block-exports", &json!({})).to_string();
        (!exports.contains("\"e\"")).then_some(())
    });
    assert_eq!(write(&mut file, 0, 7), 0);
    // 3 s, and more on a busy machine.
    assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
    drop(stopped);
}

/// Uses the file for a time, while the request of the other disk waits. Returns the number of requests, and the longest
/// time without an answer.
fn use_beside(file: &mut Frontend, waiting: &mut Frontend, time: Duration) -> (u32, Duration) {
    let begin = Instant::now();
    let (mut requests, mut longest) = (0, Duration::ZERO);
    while begin.elapsed() < time {
        let sent = Instant::now();
        assert_eq!(write(file, 0, 5), 0);
        assert_eq!(read(file, 0), Ok(vec![5; BLOCK]));
        (requests, longest) = (requests + 2, longest.max(sent.elapsed()));
        let pause = Duration::from_millis(5);
        assert!(
            waiting.queue(0).wait_at_most(pause).is_none(),
            "the OSD is stopped"
        );
    }
    (requests, longest)
}

#[test]
fn a_stopped_osd_delays_neither_a_file_nor_sigterm() {
    let Some(cluster) = cluster() else { return };
    let _turn = TURN.lock();
    let (mut daemon, _qmp) = with_a_file(&cluster);
    let mut frontend = connect(&daemon, 1, 16);
    assert_eq!(write(&mut frontend, 0, 1), 0);
    let file = daemon.dir().join("file.sock");
    let mut file = Frontend::connect(&file, 1, 4, all_features()).expect("connect");
    let _stopped = Stopped::new(&cluster);
    for slot in 0..16_u64 {
        let (offset, data) = (slot * BLOCK as u64, vec![2; BLOCK]);
        frontend.queue(0).submit(&Op::Write { offset, data }, 0);
    }
    frontend.queue(0).kick();
    let time = Duration::from_secs(6);
    let (requests, longest) = use_beside(&mut file, &mut frontend, time);
    println!("{requests} requests to the file in {time:?}, the slowest pair took {longest:?}");
    // A busy machine makes them slow, but one that waits for the cluster never ends here.
    assert!(longest < Duration::from_secs(2), "{longest:?}");
    assert!(requests > 60, "{requests}");
    let exit = daemon.terminate();
    println!("SIGTERM: ended after {:?}", exit.took);
    assert!(exit.took < Duration::from_secs(10), "{:?}", exit.took);
}

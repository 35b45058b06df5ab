//! What the guest writes is what the cluster stores.

use testkit::daemon::Daemon;
use testkit::frontend::{Frontend, Op};
use testkit::model;

use crate::cluster::{BLOCK, DISK, cluster, connect, mib, read, write};

#[test]
fn the_cluster_stores_what_the_guest_writes() {
    let Some(cluster) = cluster() else { return };
    let image = cluster.image(4);
    let mut daemon = cluster.daemon(&image, &["--num-queues=2", "--iothreads=2"]);
    let mut frontend = connect(&daemon, 2, 16);
    assert_eq!(frontend.config().capacity.to_native(), mib(4) / 512);
    let model = model::verify(&mut frontend, 2);
    drop(frontend);
    assert!(daemon.terminate().status.success());
    assert!(cluster.contents(&image) == model, "the cluster has other data");
}

#[test]
fn discards_free_space_in_the_cluster() {
    let Some(cluster) = cluster() else { return };
    let image = cluster.image(8);
    let daemon = cluster.daemon(&image, &[]);
    let mut frontend = connect(&daemon, 1, 16);
    for offset in [0, mib(4)] {
        assert_eq!(write(&mut frontend, offset, 7), 0);
    }
    let objects = |cluster: &crate::cluster::Cluster| cluster.rbd(&["du", &image]);
    let before = objects(&cluster);
    let discard = Op::Discard {
        offset: 0,
        len: mib(4),
    };
    assert_eq!(frontend.queue(0).run(&discard).ret, 0);
    assert_eq!(read(&mut frontend, 0), Ok(vec![0; BLOCK]));
    assert_eq!(read(&mut frontend, mib(4)), Ok(vec![7; BLOCK]));
    assert_ne!(objects(&cluster), before);
}

#[test]
fn two_images_share_a_connection() {
    let Some(cluster) = cluster() else { return };
    let images = [cluster.image(4), cluster.image(4)];
    let conf = cluster.conf().display().to_string();
    let mut args = Vec::new();
    for (number, image) in images.iter().enumerate() {
        args.push("--blockdev".to_owned());
        args.push(format!(
            "driver=rbd,node-name=n{number},pool=p,image={image},conf={conf}"
        ));
        args.push("--export".to_owned());
        args.push(format!(
            "vhost-user-blk,id=e{number},node-name=n{number},addr.type=unix,addr.path={number}{DISK},writable=on"
        ));
    }
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let daemon = Daemon::start_with(tempfile::tempdir().expect("make a directory"), &args);
    let mut frontends = [0, 1].map(|number| {
        let socket = daemon.dir().join(format!("{number}{DISK}"));
        Frontend::connect(&socket, 1, 16, testkit::frontend::all_features()).expect("connect")
    });
    for (number, frontend) in (1..).zip(&mut frontends) {
        assert_eq!(write(frontend, 0, number), 0);
    }
    for (number, frontend) in (1..).zip(&mut frontends) {
        assert_eq!(read(frontend, 0), Ok(vec![number; BLOCK]));
    }
    let connections = testkit::process::threads(daemon.pid());
    let loggers = connections
        .iter()
        .filter(|thread| thread["Name"] == "log")
        .count();
    assert_eq!(loggers, 1, "librbd has one such thread for each connection");
}

#[test]
fn snapshots_are_read_only() {
    let Some(cluster) = cluster() else { return };
    let image = cluster.image(4);
    let mut daemon = cluster.daemon(&image, &[]);
    assert_eq!(write(&mut connect(&daemon, 1, 16), 0, 5), 0);
    assert!(daemon.terminate().status.success());
    cluster.rbd(&["snap", "create", &format!("{image}@s")]);
    let mut daemon = cluster.daemon(&image, &[]);
    assert_eq!(write(&mut connect(&daemon, 1, 16), 0, 6), 0);
    let snapshot = cluster.daemon(&format!("{image}@s"), &["--read-only"]);
    let mut frontend = connect(&snapshot, 1, 16);
    assert_eq!(read(&mut frontend, 0), Ok(vec![5; BLOCK]));
    assert_ne!(write(&mut frontend, 0, 7), 0);
    assert!(daemon.terminate().status.success());
}

#[test]
fn every_thread_is_confined() {
    let Some(cluster) = cluster() else { return };
    let daemon = cluster.daemon(&cluster.image(4), &[]);
    let threads = testkit::process::threads(daemon.pid());
    assert!(
        threads
            .iter()
            .any(|thread| thread["Name"].starts_with("msgr-worker"))
    );
    // The last ones get their filter a moment after the disk is served.
    testkit::process::wait_for("all threads to be confined", || {
        let threads = testkit::process::threads(daemon.pid());
        let confined = threads.iter().all(|thread| {
            let rights = ["CapEff", "NoNewPrivs", "Seccomp"].map(|key| thread[key].trim().to_owned());
            rights == ["0000000000000000", "1", "2"]
        });
        confined.then_some(())
    });
}

#[test]
fn a_new_size_is_announced() {
    let Some(cluster) = cluster() else { return };
    let image = cluster.image(4);
    let mut daemon = cluster.daemon(&image, &[]);
    let mut frontend = connect(&daemon, 1, 16);
    assert_eq!(write(&mut frontend, 0, 1), 0);
    cluster.rbd(&["resize", &image, "--size", "8M"]);
    daemon.wait_for(
        |_| frontend.config().capacity.to_native() == mib(8) / 512,
        "see the new size",
    );
    assert_eq!(write(&mut frontend, mib(6), 9), 0);
    assert_eq!(read(&mut frontend, mib(6)), Ok(vec![9; BLOCK]));
}

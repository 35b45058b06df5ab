//! `blockdev-reopen` of images in a cluster.

use serde_json::{Value, json};
use testkit::daemon::Daemon;
use testkit::frontend::Op;
use testkit::qmp::Qmp;

use crate::cluster::{BLOCK, DISK, cluster, connect, read, write};

#[test]
fn a_node_is_reopened_without_losing_its_lock() {
    let Some(cluster) = cluster() else { return };
    let (image, conf) = (cluster.image(4), cluster.conf().display().to_string());
    let node = format!("driver=rbd,node-name=n,pool=p,image={image},conf={conf}");
    let export = format!("vhost-user-blk,id=e,node-name=n,addr.type=unix,addr.path={DISK},writable=on");
    let args = [
        "--blockdev",
        &node,
        "--export",
        &export,
        "--chardev",
        "socket,id=m,path=qmp.sock,server=on,wait=off",
        "--monitor",
        "chardev=m",
    ];
    let daemon = Daemon::start_with(tempfile::tempdir().expect("make a directory"), &args);
    let mut qmp = Qmp::connect(&daemon.dir().join("qmp.sock"));
    let mut frontend = connect(&daemon, 1, 16);
    assert_eq!(write(&mut frontend, 0, 1), 0);
    let locks = cluster.rbd(&["lock", "ls", &image]);
    let node = |more: Value| {
        let mut node = json!({"driver": "rbd", "node-name": "n", "pool": "p", "image": image, "conf": conf});
        for (key, value) in more.as_object().into_iter().flatten() {
            node[key] = value.clone();
        }
        json!({"options": [node]})
    };
    for round in 0..10_u8 {
        for slot in 0..16 {
            let (offset, data) = (slot * BLOCK as u64, vec![round; BLOCK]);
            frontend.queue(0).submit(&Op::Write { offset, data }, 0);
        }
        frontend.queue(0).kick();
        let discard = ["ignore", "unmap"][usize::from(round % 2)];
        let no_flush = round % 3 == 0;
        qmp.execute(
            "blockdev-reopen",
            &node(json!({"discard": discard, "cache": {"no-flush": no_flush}})),
        );
        assert!(frontend.queue(0).drain().iter().all(|done| done.ret == 0));
        assert_eq!(read(&mut frontend, 15 * BLOCK as u64), Ok(vec![round; BLOCK]));
    }
    assert_eq!(cluster.rbd(&["lock", "ls", &image]), locks, "another lock");
    for (change, name) in [
        (json!({"image": "other"}), "image"),
        (json!({"pool": "other"}), "pool"),
        (json!({"user": "other"}), "user"),
    ] {
        let refused = qmp.try_execute("blockdev-reopen", &node(change));
        let told = refused.expect_err("refused").to_string();
        assert!(
            told.contains(&format!("Cannot change the option '{name}'")),
            "{told}"
        );
    }
    assert_eq!(write(&mut frontend, 0, 3), 0);
}

//! A real guest on an image in a Ceph cluster.

use std::fs;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use testkit::ceph::{Cluster, DISK, cluster};
use testkit::guest::Boot;
use testkit::machine::{Machine, host};

use crate::network::{finish, kill_backends, under_load, use_a_file_system};

/// Serves an image to a guest with two vCPUs. Returns the image's name too.
fn machine() -> Option<(Machine, Arc<Cluster>, String)> {
    let cluster = cluster()?;
    let image = cluster.image(48);
    let conf = cluster.conf();
    let node = format!(
        "driver=rbd,node-name=n,pool=p,image={image},conf={},discard=unmap",
        conf.display()
    );
    let export =
        format!("vhost-user-blk,id=e,node-name=n,addr.type=unix,addr.path={DISK},writable=on,num-queues=2");
    let dir = tempfile::tempdir().expect("make a directory");
    let machine = Machine::with_args("recovery", dir, &["--blockdev", &node, "--export", &export]);
    Some((machine, cluster, image))
}

#[test]
fn a_guests_file_system_in_a_cluster_is_clean() {
    let Some((mut machine, cluster, image)) = machine() else {
        return;
    };
    use_a_file_system(&machine);
    assert!(machine.daemon.terminate().status.success());
    let copy = machine.daemon.dir().join("copy.img");
    fs::write(&copy, cluster.contents(&image)).expect("write the copy");
    host("e2fsck", &["-fn"], &copy);
}

#[test]
fn a_guest_in_a_cluster_never_notices_a_killed_backend() {
    if let Some((machine, _cluster, _)) = machine() {
        kill_backends(machine);
    }
}

#[test]
fn a_guest_waits_for_a_stopped_osd() {
    let Some((mut machine, cluster, _)) = machine() else {
        return;
    };
    let mut guest = machine.boot(Boot::KernelWithFio);
    let mut stops = 0;
    let load = under_load(&mut machine, &mut guest, |_| {
        cluster.signal_osd(libc::SIGSTOP);
        thread::sleep(Duration::from_secs(2));
        cluster.signal_osd(libc::SIGCONT);
        stops += 1;
    });
    finish(guest, &load);
    assert!(stops > 1, "only {stops} stops");
}

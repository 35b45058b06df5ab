//! Monitors, users and keys that the options name, and images with parents.

use std::collections::BTreeMap;
use std::{fs, thread};

use testkit::daemon::Daemon;

use crate::cluster::{BLOCK, Cluster, DISK, cluster, connect, read, write};
use crate::mistakes::refused_with;

/// The options of a disk without a configuration file.
fn args(cluster: &Cluster, image: &str, secret: &str, node: &str) -> Vec<String> {
    let port = cluster.port();
    vec![
        "--object".to_owned(),
        format!("secret,id=key{secret}"),
        "--blockdev".to_owned(),
        format!(
            "driver=rbd,node-name=n,pool=p,image={image},server.0.host=127.0.0.1,server.0.port={port},key-secret=key{node}"
        ),
        "--export".to_owned(),
        format!("vhost-user-blk,id=e,node-name=n,addr.type=unix,addr.path={DISK},writable=on"),
    ]
}

fn started(args: &[String]) -> Daemon {
    let dir = tempfile::tempdir().expect("make a directory");
    let mut args: Vec<&str> = args.iter().map(String::as_str).collect();
    args.extend(["--sandbox", "auto"]);
    Daemon::start_with(dir, &args)
}

#[test]
fn monitors_and_a_key_replace_the_configuration() {
    let Some(cluster) = cluster() else { return };
    let (image, key) = (cluster.image(4), cluster.user("guest"));
    let file = cluster.conf().with_file_name("guest.key");
    fs::write(&file, format!("{key}\n")).expect("write the key");
    for secret in [
        format!(",data={key},format=base64"),
        format!(",file={},format=base64", file.display()),
    ] {
        let mut daemon = started(&args(&cluster, &image, &secret, ",user=guest"));
        let mut frontend = connect(&daemon, 1, 16);
        assert_eq!(write(&mut frontend, 0, 6), 0);
        assert_eq!(read(&mut frontend, 0), Ok(vec![6; BLOCK]));
        drop(frontend);
        assert!(daemon.terminate().status.success());
        assert!(!daemon.output().contains(&key), "the log shows the key");
    }
}

#[test]
fn wrong_keys_and_monitors_are_named() {
    let Some(cluster) = cluster() else { return };
    let (image, key, other) = (cluster.image(4), cluster.user("guest"), cluster.user("other"));
    let good = format!(",data={key},format=base64");
    for (secret, node, why) in [
        (
            format!(",data={other},format=base64"),
            ",user=guest",
            "as client.guest: no monitor answers, or none accepts the key",
        ),
        (good.clone(), ",user=stranger", "as client.stranger"),
        (
            ",data=x,format=base64".to_owned(),
            ",user=guest",
            "secret 'key' is not base64",
        ),
        (
            ",data=short".to_owned(),
            ",user=guest",
            "as client.guest: the key of this user is not one that 'ceph auth get-key' prints",
        ),
        (
            ",file=/none/here".to_owned(),
            "",
            "cannot read the file of secret 'key'",
        ),
        (good.clone(), ",key-secret=none", "no secret object 'none'"),
        (good.clone(), ",server.1.host=h", "server.port"),
        (
            good.clone(),
            ",server.1.host=127.0.0.1,server.1.port=99999",
            "'server.1.port' expects a number from 1 to 65535",
        ),
        (
            good.clone(),
            ",server.1.host=no.such.host.invalid,server.1.port=3300",
            "cannot find the Ceph monitor no.such.host.invalid:3300",
        ),
        (good.clone(), ",tls-creds=x", "tls-creds"),
    ] {
        let args = args(&cluster, &image, &secret, node);
        let told = refused_with(&args.iter().map(String::as_str).collect::<Vec<_>>());
        assert!(told.contains(why), "{node} {told}");
        assert!(
            !told.contains(&key) && !told.contains(&other),
            "the error shows a key"
        );
    }
    let node = format!(
        "driver=rbd,node-name=n,pool=p,image={image},conf={},user=guest,key-secret=key",
        cluster.conf().display()
    );
    let secret = format!("secret,id=key,data={other},format=base64");
    let told = refused_with(&["--object", &secret, "--blockdev", &node]);
    assert!(
        told.contains("as client.guest: the cluster refuses the key"),
        "{told}"
    );
    for (node, why) in [
        (
            "driver=rbd,node-name=n,pool=p,image=i,server.host=h,server.port=1,server.type=inet",
            "server.0.host",
        ),
        (
            "driver=nbd,node-name=n,server.0.host=h,server.0.port=1",
            "'server' expects the address of one server",
        ),
    ] {
        let told = refused_with(&["--blockdev", node]);
        assert!(told.contains(why), "{told}");
    }
    // Nobody listens on this port.
    let node = "driver=rbd,node-name=n,pool=p,image=i,server.0.host=127.0.0.1,server.0.port=1,key-secret=key";
    let told = refused_with(&["--object", &secret, "--blockdev", node]);
    assert!(told.contains("no monitor answers"), "{told}");
}

#[test]
fn a_clone_leaves_its_parent_alone() {
    let Some(cluster) = cluster() else { return };
    let parent = cluster.image(8);
    let mut daemon = cluster.daemon(&parent, &[]);
    let mut frontend = connect(&daemon, 1, 16);
    assert_eq!(write(&mut frontend, 0, 1), 0);
    assert_eq!(write(&mut frontend, 4 << 20, 2), 0);
    drop(frontend);
    assert!(daemon.terminate().status.success());
    let (snapshot, clone) = (format!("{parent}@s"), format!("{parent}-clone"));
    cluster.rbd(&["snap", "create", &snapshot]);
    cluster.rbd(&["snap", "protect", &snapshot]);
    let target = format!("p/{clone}");
    cluster.rbd(&["clone", &snapshot, &target]);
    let mut daemon = cluster.daemon(&clone, &[]);
    let mut frontend = connect(&daemon, 1, 16);
    assert_eq!(read(&mut frontend, 0), Ok(vec![1; BLOCK]));
    // The rest of this object comes from the parent.
    assert_eq!(write(&mut frontend, BLOCK as u64, 3), 0);
    for (offset, byte) in [(0, 1), (BLOCK as u64, 3), (4 << 20, 2), (2 << 20, 0)] {
        assert_eq!(read(&mut frontend, offset), Ok(vec![byte; BLOCK]), "{offset}");
    }
    drop(frontend);
    daemon.restart(libc::SIGKILL);
    let mut frontend = connect(&daemon, 1, 16);
    assert_eq!(read(&mut frontend, BLOCK as u64), Ok(vec![3; BLOCK]));
    assert_eq!(cluster.contents(&parent)[BLOCK..2 * BLOCK], [0; BLOCK]);
}

#[test]
fn the_configuration_says_how_many_threads_a_client_has() {
    let Some(cluster) = cluster() else { return };
    let threads = |conf: &str| {
        let path = cluster.conf().with_file_name("threads.conf");
        let whole = fs::read_to_string(cluster.conf()).expect("read the configuration");
        fs::write(&path, format!("{whole}{conf}")).expect("write a configuration");
        let disk = format!("rbd:p/{}:conf={}", cluster.image(4), path.display());
        let args = ["--socket-path", DISK, "--blk-file", &disk].map(str::to_owned);
        let daemon = started(&args);
        let mut frontend = connect(&daemon, 1, 16);
        assert_eq!(write(&mut frontend, 0, 6), 0);
        let threads = testkit::process::threads(daemon.pid());
        ["io_context_pool", "msgr-worker"].map(|name| {
            let named = |thread: &&BTreeMap<String, String>| thread["Name"].starts_with(name);
            threads.iter().filter(named).count()
        })
    };
    assert_eq!(
        threads("librados thread count = 4\nms async op threads = 2\n"),
        [4, 2]
    );
    if thread::available_parallelism().is_ok_and(|cpus| cpus.get() <= 4) {
        assert_eq!(threads(""), [1, 1]);
    }
}

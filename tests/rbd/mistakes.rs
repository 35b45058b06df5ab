//! Each mistake gives one clear line.

use std::fs;
use std::net::TcpListener;
use std::process::Command;

use testkit::daemon::{Daemon, run};

use crate::cluster::{DISK, cluster};

/// Starts a daemon that must end with one line about an error. Returns the line.
fn refused(file: &str, more: &[&str]) -> String {
    let args = ["--socket-path", DISK, "--blk-file", file];
    refused_with(&[&args, more].concat())
}

/// Starts a daemon with these options that must end with one line about an error. Returns the line.
pub(crate) fn refused_with(args: &[&str]) -> String {
    let dir = tempfile::tempdir().expect("make a directory");
    run(args, dir.path()).refusal().to_owned()
}

#[test]
fn wrong_words_are_refused() {
    for (file, more, why) in [
        ("rbd:image", &[][..], "an RBD image is rbd:POOL"),
        ("rbd:p/", &[], "an RBD image is rbd:POOL"),
        ("rbd:p/i:x=1", &[], "an RBD image is rbd:POOL"),
        ("rbd:p/i", &["--aio=threads"], "no engine"),
        ("rbd:p/i", &["--direct"], "--direct"),
    ] {
        let told = refused(file, more);
        assert!(told.contains(why), "{told}");
    }
}

#[test]
fn mistakes_are_named() {
    let Some(cluster) = cluster() else { return };
    let image = cluster.image(4);
    let conf = cluster.conf();
    let dir = tempfile::tempdir().expect("make a directory");
    let (keys, other) = (dir.path().join("keyring"), dir.path().join("ceph.conf"));
    let made = Command::new("ceph-authtool")
        .args([
            "-C",
            &keys.display().to_string(),
            "--gen-key",
            "-n",
            "client.admin",
        ])
        .output()
        .expect("ceph-authtool");
    assert!(made.status.success());
    let text = fs::read_to_string(&conf).expect("read the configuration");
    let own = conf.with_file_name("keyring").display().to_string();
    fs::write(&other, text.replace(&own, &keys.display().to_string())).expect("write it");
    let (conf, other) = (conf.display(), other.display());
    for (file, why) in [
        (format!("rbd:none/{image}:conf={conf}"), "there is no such pool"),
        (format!("rbd:p/none:conf={conf}"), "there is no such image"),
        (
            format!("rbd:p/{image}@none:conf={conf}"),
            "a snapshot is read-only",
        ),
        (
            format!("rbd:p/{image}:conf=/none/here"),
            "/none/here: No such file or directory",
        ),
        (format!("rbd:p/{image}:conf={other}"), "refuses the key"),
        (
            format!("rbd:p/{image}:id=stranger:conf={conf}"),
            "as client.stranger: there is no key for this user in /",
        ),
    ] {
        let told = refused(&file, &[]);
        assert!(told.contains(why), "{told}");
    }
    let told = refused(&format!("rbd:p/{image}@none:conf={conf}"), &["--read-only"]);
    assert!(told.contains("there is no such snapshot"), "{told}");
}

/// Nobody listens at the monitor's address.
#[test]
fn keys_are_checked_before_a_monitor_is_asked() {
    let dir = tempfile::tempdir().expect("make a directory");
    let conf = dir.path().join("ceph.conf");
    for (key, why) in [
        (
            "keyring = /none/here",
            "there is no key for this user in /none/here",
        ),
        ("key = garbage!!", "the key of this user is not one that"),
    ] {
        let text = format!("[global]\nmon host = 127.0.0.1:1\n{key}\n");
        fs::write(&conf, text).expect("write it");
        let told = refused(&format!("rbd:p/i:conf={}", conf.display()), &[]);
        assert!(told.contains(why), "{told}");
    }
}

#[test]
fn monitors_without_an_address_are_named() {
    let dir = tempfile::tempdir().expect("make a directory");
    let conf = dir.path().join("ceph.conf");
    fs::write(&conf, "[global]\nmon host = no.such.host.invalid\n").expect("write it");
    let told = refused(&format!("rbd:p/i:conf={}", conf.display()), &[]);
    assert!(
        told.contains("cannot find the Ceph monitor no.such.host.invalid"),
        "{told}"
    );
}

#[test]
fn admin_sockets_of_clients_are_left_out() {
    let Some(cluster) = cluster() else { return };
    let (image, dir) = (cluster.image(4), tempfile::tempdir().expect("make a directory"));
    let conf = dir.path().join("ceph.conf");
    let text = fs::read_to_string(cluster.conf()).expect("read the configuration");
    let socket = dir.path().join("$name.$pid.asok");
    let more = format!(
        "[client]\nadmin socket = {}\nlog to syslog = true\n",
        socket.display()
    );
    fs::write(&conf, text + &more).expect("write it");
    let file = format!("rbd:p/{image}:conf={}", conf.display());
    let args = ["--socket-path", DISK, "--blk-file", &file, "--sandbox", "auto"];
    let mut daemon = Daemon::start_with(dir, &args);
    let told = "the Ceph client makes no admin socket";
    assert!(daemon.output().contains(told), "{}", daemon.output());
    assert!(daemon.terminate().status.success());
}

#[test]
fn a_missing_cluster_is_named() {
    if cluster().is_none() {
        return;
    }
    let dir = tempfile::tempdir().expect("make a directory");
    // Nobody accepts connections.
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let conf = dir.path().join("ceph.conf");
    let file = format!("rbd:p/i:conf={}", conf.display());
    for (text, why) in [
        (
            format!("mon host = v2:127.0.0.1:{port}\nauth client required = none\n"),
            "no monitor answers",
        ),
        (String::new(), "names no monitor: set 'mon host'"),
    ] {
        fs::write(&conf, format!("[global]\n{text}")).expect("write the configuration");
        let told = refused(&file, &[]);
        assert!(told.contains(why), "{told}");
    }
}

#[test]
fn images_of_another_format_are_refused() {
    let Some(cluster) = cluster() else { return };
    let dir = tempfile::tempdir().expect("make a directory");
    let mut disk = vec![0; 1 << 20];
    disk[..4].copy_from_slice(b"QFI\xfb");
    fs::write(dir.path().join("disk"), disk).expect("write the image");
    cluster.import(&dir.path().join("disk"), "container");
    let told = refused(&cluster.file("container"), &[]);
    assert!(
        told.contains("rbd:p/container looks like a qcow2 image") && told.contains("add --format raw"),
        "{told}"
    );
    let daemon = cluster.daemon("container", &["--format=raw"]);
    let told = "the disk has a qcow2 header and is served as raw data";
    assert!(daemon.output().contains(told), "{}", daemon.output());
}

#[test]
fn images_without_a_lock_are_not_written() {
    let Some(cluster) = cluster() else { return };
    cluster.rbd(&[
        "create",
        "unlocked",
        "--size",
        "4M",
        "--image-feature",
        "layering",
    ]);
    let told = refused(&cluster.file("unlocked"), &[]);
    assert!(
        told.contains("rbd feature enable p/unlocked exclusive-lock"),
        "{told}"
    );
    drop(cluster.daemon("unlocked", &["--read-only"]));
}

#[test]
fn a_missing_library_is_named() {
    let dir = tempfile::tempdir().expect("make a directory");
    // The loader finds this one first, and it is no library.
    fs::write(dir.path().join("librados.so.2"), "none").expect("write a file");
    let output = Command::new(testkit::daemon::binary())
        .args(["--socket-path", DISK, "--blk-file", "rbd:p/i"])
        .env("LD_LIBRARY_PATH", dir.path())
        .current_dir(dir.path())
        .output()
        .expect("run the daemon");
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "{told}");
    assert!(
        told.contains("install the package librbd1") && told.lines().count() == 1,
        "{told}"
    );
}

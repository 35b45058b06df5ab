//! Secrets in files. The daemon must not wait for such a file while it runs, and must not read without end.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread;

use serde_json::{Value, json};
use tempfile::TempDir;
use testkit::daemon::{Daemon, IMAGE};

use crate::client::Client;
use crate::daemon::MONITOR;

/// The long form of the command line, which takes objects.
const NULL_DISK: [&str; 4] = [
    "--blockdev",
    "null-co,node-name=n,size=1M",
    "--export",
    "vhost-user-blk,id=e,node-name=n,addr.type=unix,addr.path=e.sock",
];

fn make_fifo(path: &Path) {
    let made = Command::new("mkfifo").arg(path).status();
    assert!(made.expect("run mkfifo").success());
}

fn start(dir: TempDir) -> (Daemon, Client) {
    let daemon = Daemon::start_in(dir, &[&MONITOR[..], &["--sandbox", "off"]].concat());
    let client = Client::connect(&daemon.dir().join("qmp.sock"));
    (daemon, client)
}

fn directory() -> TempDir {
    let dir = tempfile::tempdir().expect("make a directory");
    fs::write(dir.path().join(IMAGE), [0; 1 << 16]).expect("write an image");
    make_fifo(&dir.path().join("fifo"));
    dir
}

fn secret(file: &str) -> Value {
    json!({"qom-type": "secret", "id": "s", "file": file})
}

#[test]
fn a_running_daemon_reads_regular_files_only() {
    let (mut daemon, mut client) = start(directory());
    for file in ["fifo", "/dev/zero", "."] {
        let (_, desc) = client.refusal("object-add", &secret(file));
        assert_eq!(
            desc, "cannot read the file of secret 's': not a regular file",
            "{file}"
        );
    }
    fs::write(daemon.dir().join("long"), [b's'; (1 << 16) + 1]).expect("write a file");
    let (_, desc) = client.refusal("object-add", &secret("long"));
    assert_eq!(
        desc,
        "cannot read the file of secret 's': longer than 65536 bytes"
    );
    fs::write(daemon.dir().join("short"), "s").expect("write a file");
    client.run("object-add", &secret("short"));
    let exit = daemon.stop_with(libc::SIGTERM);
    assert!(exit.status.success(), "{}", exit.output);
}

#[test]
fn a_pipe_has_the_secret_at_the_start() {
    let dir = directory();
    let fifo = dir.path().join("fifo");
    let writer = thread::spawn(move || fs::write(fifo, "secret"));
    let args = ["--object", "secret,id=s,file=fifo", "--sandbox", "off"];
    let daemon = Daemon::start_with(dir, &[&MONITOR[..], &args, &NULL_DISK].concat());
    let mut client = Client::connect(&daemon.dir().join("qmp.sock"));
    writer.join().expect("no panic").expect("the daemon reads");
    let objects = client.run("qom-list", &json!({"path": "/objects"}));
    assert_eq!(objects[1]["name"], "s");
}

//! QEMU's own Python client manages the daemon.

use std::path::Path;
use std::process::Command;

use testkit::process::die_with_parent;
use testkit::skip::skipped;

use crate::daemon::start;

/// The directory where `scripts/test` installs the client.
const LIBRARY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/.cache/python");
const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/qmp/client.py");

#[test]
fn qemus_own_client_manages_the_daemon() {
    if !Path::new(LIBRARY).join("qemu/qmp").exists() {
        return skipped("qemu.qmp (PyPI) is not there: run scripts/test");
    }
    // Images and sockets are opened after the start.
    let (mut daemon, socket) = start(&["--sandbox", "off"]);
    let mut python = Command::new("python3");
    python
        .arg(SCRIPT)
        .arg(socket)
        .arg(daemon.dir())
        .env("PYTHONPATH", LIBRARY)
        .env("PYTHONDONTWRITEBYTECODE", "1");
    die_with_parent(&mut python);
    let output = python.output().expect("run python3");
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{told}\n{}", daemon.output());
    // The client's last command ends the daemon.
    let exit = daemon.wait_for_exit();
    assert!(exit.status.success(), "{}", exit.output);
}

//! The hook for libvirt, called as libvirt calls it, with a `systemctl` that starts real daemons.

use std::fs::{self, Permissions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use tempfile::TempDir;
use testkit::daemon::binary;
use testkit::frontend::{Frontend, Op, all_features};
use testkit::process::wait_for;

/// Starts `vhost-user-blk@NAME.service` and waits until it is served, or stops it, as systemd does with our units.
const SYSTEMCTL: &str = r#"#!/bin/bash
set -e
name=${2#vhost-user-blk@} name=${name%.service}
echo "$1 $name" >>calls
case $1 in
start)
    [ -e "$name.img" ] || { echo "Job for $2 failed" >&2; exit 1; }
    "$DAEMON" --daemonize --pidfile "$name.pid" --socket-path "$name.sock" --blk-file "$name.img" 2>"$name.log"
    ;;
stop)
    kill "$(cat "$name.pid")"
    ;;
esac
"#;

struct Host {
    dir: TempDir,
}

impl Host {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("make a directory");
        let systemctl = dir.path().join("systemctl");
        fs::write(&systemctl, SYSTEMCTL).expect("write a script");
        fs::set_permissions(&systemctl, Permissions::from_mode(0o755)).expect("make it executable");
        Self { dir }
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join(name)
    }

    /// Returns the XML of our example for libvirt, with sockets in this directory.
    fn xml(&self) -> String {
        let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("qemu-configs/libvirt.xml");
        let xml = fs::read_to_string(example).expect("read the example");
        let own = format!("{}/", self.dir.path().display());
        xml.replace("/run/vhost-user-blk/", &own)
    }

    fn call(&self, operation: [&str; 2], xml: &str) -> Output {
        let hook = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/libvirt/qemu");
        let path = format!(
            "{}:{}",
            self.dir.path().display(),
            std::env::var("PATH").unwrap_or_default()
        );
        let mut child = Command::new(hook)
            .arg("guest")
            .args(operation)
            .arg("-")
            .current_dir(self.dir.path())
            .env("PATH", path)
            .env("DAEMON", binary())
            .env("VHOST_USER_BLK_DIRECTORY", self.dir.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("run the hook");
        // The hook does not read the XML of other operations.
        let _ = child.stdin.take().expect("a pipe").write_all(xml.as_bytes());
        child.wait_with_output().expect("wait for the hook")
    }

    fn calls(&self) -> String {
        fs::read_to_string(self.path("calls")).unwrap_or_default()
    }
}

impl Drop for Host {
    /// Ends daemons that a failed test has left.
    fn drop(&mut self) {
        let files = fs::read_dir(self.dir.path())
            .expect("list the directory")
            .flatten();
        for file in files.filter(|file| file.path().extension().is_some_and(|end| end == "pid")) {
            let pid = fs::read_to_string(file.path()).ok();
            if let Some(pid) = pid.and_then(|pid| pid.trim().parse().ok()) {
                // SAFETY: no memory is involved. The file exists as long as the daemon, or as it was killed.
                unsafe { libc::kill(pid, libc::SIGKILL) };
            }
        }
    }
}

#[test]
fn the_hook_starts_and_stops_the_disks_of_a_guest() {
    let host = Host::new();
    fs::write(host.path("disk0.img"), [0; 4096]).expect("write an image");
    let xml = host.xml();
    let output = host.call(["prepare", "begin"], &xml);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && output.stdout.is_empty(), "{error}");
    let mut frontend =
        Frontend::connect(&host.path("disk0.sock"), 1, 4, all_features()).expect("connect at once");
    assert_eq!(frontend.queue(0).run(&Op::Flush).ret, 0);
    drop(frontend);
    for other in [
        ["start", "begin"],
        ["started", "begin"],
        ["stopped", "end"],
        ["reconnect", "begin"],
    ] {
        assert!(host.call(other, &xml).status.success());
    }
    assert_eq!(host.calls(), "start disk0\n");
    assert!(host.call(["release", "end"], &xml).status.success());
    assert_eq!(host.calls(), "start disk0\nstop disk0\n");
    wait_for("the daemon's end", || {
        (!host.path("disk0.pid").exists()).then_some(())
    });
}

#[test]
fn a_guest_without_its_disk_does_not_start() {
    let host = Host::new();
    let output = host.call(["prepare", "begin"], &host.xml());
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(
        error.contains("disk disk0 cannot be served: see journalctl"),
        "{error}"
    );
}

#[test]
fn other_disks_and_odd_names_are_left_alone() {
    let host = Host::new();
    let own = host.dir.path().display();
    let xml = format!(
        "<domain><devices>\
         <disk type='file'><source file='{own}/a.sock'/></disk>\
         <disk type='vhostuser' device='disk'><source type='unix' path='/elsewhere/b.sock'/></disk>\
         <disk type='vhostuser'><source type='unix' path='{own}/c;reboot.sock'/></disk>\
         <disk type='vhostuser'><source type='unix' path='{own}/../d.sock'/></disk>\
         <interface type='vhostuser'><source type='unix' path='{own}/e.sock'/></interface>\
         <disk device=\"disk\" type=\"vhostuser\"><driver/><source path=\"{own}/f-1.sock\" type=\"unix\"/></disk>\
         </devices></domain>"
    );
    host.call(["release", "end"], &xml);
    assert_eq!(host.calls(), "stop f-1\n");
}

//! Kernels that lack a part of the sandbox.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, apply_filter};

use crate::common::daemon::{BINARY, IMAGE, SOCKET};
use crate::common::frontend::{Frontend, all_features};
use crate::common::process::{Process, wait_for};
use crate::common::target::image;

/// Starts a daemon whose kernel has no such system call, as far as it can see.
fn without(call: libc::c_long, options: &[&str]) -> (tempfile::TempDir, Process) {
    let machine = std::env::consts::ARCH
        .try_into()
        .expect("an architecture with filters");
    let action = SeccompAction::Errno(libc::ENOSYS.unsigned_abs());
    let filter = SeccompFilter::new([(call, Vec::new())].into(), SeccompAction::Allow, action, machine);
    let filter: BpfProgram = filter.expect("a filter").try_into().expect("a program");
    let dir = tempfile::tempdir().expect("make a directory");
    fs::write(dir.path().join(IMAGE), image()).expect("write the image");
    let log = fs::File::create(dir.path().join("err")).expect("make a log");
    let mut command = Command::new(BINARY);
    command
        .args(["--socket-path", SOCKET, "--blk-file", IMAGE])
        .args(options)
        .current_dir(dir.path())
        .stdin(Stdio::null())
        .stderr(log);
    // SAFETY: two system calls and no allocation between fork and exec.
    unsafe { command.pre_exec(move || apply_filter(&filter).map_err(|_| std::io::ErrorKind::Other.into())) };
    let (daemon, ()) = Process::start("vhost-user-blk", &mut command, |_| ());
    (dir, daemon)
}

#[test]
fn a_kernel_that_lacks_a_part_is_told_about_once_or_refused() {
    for (call, lacking) in [
        (libc::SYS_landlock_create_ruleset, "Landlock"),
        (libc::SYS_seccomp, "seccomp"),
    ] {
        let (dir, _daemon) = without(call, &[]);
        let said = |dir: &Path| fs::read_to_string(dir.join("err")).unwrap_or_default();
        wait_for("the socket", || dir.path().join(SOCKET).exists().then_some(()));
        let log = wait_for("the log", || {
            Some(said(dir.path())).filter(|log| log.contains("serving"))
        });
        let warnings: Vec<_> = log.lines().filter(|line| line.contains("WARN")).collect();
        assert_eq!(warnings.len(), 1, "{log}");
        assert!(
            warnings[0].contains("sandbox is incomplete") && warnings[0].contains(lacking),
            "{log}"
        );
        Frontend::connect(&dir.path().join(SOCKET), 1, 4, all_features()).expect("it serves");

        let (dir, mut daemon) = without(call, &["--sandbox", "on"]);
        assert!(!daemon.wait().success(), "it starts");
        let log = said(dir.path());
        assert_eq!(log.lines().count(), 1, "{log}");
        assert!(log.contains("--sandbox on") && log.contains(lacking), "{log}");
        assert!(!dir.path().join(SOCKET).exists(), "it left its socket");
    }
}

//! A Linux guest under QEMU that runs commands for a test.
//!
//! The guest's second serial port is QEMU's standard input and output. `scripts/lib/guest-init`, the program at the
//! other end, describes the protocol.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, ChildStdout, Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::thread;

use serde_json::json;

use crate::process::{DEADLINE, Process, show_log, wait_for};
use crate::qmp::Qmp;
use crate::skip::skipped;

/// The source that the guest boots from.
#[derive(Clone, Copy)]
pub enum Boot {
    /// Our kernel with a small initramfs.
    Kernel,
    /// The same kernel with fio in the initramfs. It takes a second more to boot.
    KernelWithFio,
    /// The disk: the firmware boots whatever it finds there.
    Disk,
}

/// The socket on which a QEMU waits for an incoming guest.
const MIGRATION: &str = "migration.sock";

/// The file that a guest is saved to.
const SAVED: &str = "saved";

/// The exit status of a command in the guest, and its output on both streams.
pub struct Answer {
    pub status: String,
    pub output: String,
}

/// A running guest. Dropping it kills QEMU.
pub struct Guest {
    qemu: Process,
    commands: ChildStdin,
    answers: Receiver<Answer>,
    dir: PathBuf,
}

impl Guest {
    /// Boots a guest, a variant of `qemu-configs/guest.cfg`, in `dir`, where the backend listens. Waits until the guest
    /// takes commands.
    pub fn boot(dir: &Path, config: &str, boot: Boot, qemu_options: &[&str]) -> Self {
        let guest = Self::launch(dir, config, boot, qemu_options);
        guest.wait_until_ready();
        guest
    }

    /// Starts a QEMU that waits for an incoming guest, which was booted with the same options.
    pub fn incoming(dir: &Path, config: &str, boot: Boot, qemu_options: &[&str]) -> Self {
        let options = [qemu_options, &["-incoming", "defer"]].concat();
        let guest = Self::launch(dir, config, boot, &options);
        // QEMU answers when it listens; the socket's file appears before that.
        let uri = format!("unix:{MIGRATION}");
        guest.qmp().execute("migrate-incoming", &json!({ "uri": uri }));
        guest
    }

    /// Stops the guest, saves it to a file as `virsh save` does, and ends its QEMU.
    pub fn save(self) {
        let mut qmp = self.qmp();
        qmp.execute("stop", &json!({}));
        qmp.execute("migrate", &json!({ "uri": format!("exec:cat >{SAVED}") }));
        wait_until_migrated(&mut qmp);
    }

    /// Starts a QEMU that restores the saved guest.
    pub fn restore(dir: &Path, config: &str, boot: Boot) -> Self {
        let incoming = format!("exec:cat {SAVED}");
        let guest = Self::launch(dir, config, boot, &["-incoming", &incoming]);
        let mut qmp = guest.qmp();
        wait_for("the guest to be restored", || {
            (qmp.execute("query-status", &json!({}))["status"] == "paused").then_some(())
        });
        qmp.execute("cont", &json!({}));
        guest
    }

    /// Returns whether QEMU connects again if the backend ends while QEMU sets the device up. An older QEMU then gives the
    /// device up.
    pub fn reconnects_at_any_time(&self) -> bool {
        self.qmp().version() >= (9, 2)
    }

    /// Returns whether a running guest can migrate here. Reports the test as skipped if not.
    ///
    /// Before version 9.0, QEMU loses memory that a guest without KVM writes during its migration: it clears a page's
    /// dirty bit, but leaves the page writable without notice ("physmem: Fix migration dirty bitmap coherency with TCG
    /// memory access").
    pub fn can_migrate(&self) -> bool {
        let mut qmp = self.qmp();
        let kvm = qmp.execute("query-kvm", &json!({}))["enabled"] == true;
        let can = kvm || qmp.version() >= (9, 0);
        if !can {
            skipped("QEMU before 9.0 without KVM loses guest memory in a live migration");
        }
        can
    }

    /// Migrates the guest, whatever it is doing, and ends the QEMU that it has left.
    pub fn migrate_to(self, destination: Self) -> Self {
        let uri = format!("unix:{}", destination.dir.join(MIGRATION).display());
        let mut qmp = self.qmp();
        let fast = json!({ "max-bandwidth": 1_u64 << 33, "downtime-limit": 1000 });
        qmp.execute("migrate-set-parameters", &fast);
        qmp.execute("migrate", &json!({ "uri": uri }));
        wait_until_migrated(&mut qmp);
        let mut qmp = destination.qmp();
        wait_for("the guest to run again", || {
            (qmp.execute("query-status", &json!({}))["status"] == "running").then_some(())
        });
        destination
    }

    fn launch(dir: &Path, config: &str, boot: Boot, qemu_options: &[&str]) -> Self {
        let initrd = match boot {
            Boot::Kernel => "initrd",
            Boot::KernelWithFio => "initrd-fio",
            Boot::Disk => "disk",
        };
        let log = File::create(dir.join("qemu.log")).expect("a test's directory is writable");
        let mut command = Command::new(script("run-guest"));
        command
            .arg(config)
            .arg(initrd)
            .args(["-serial", "file:console.log", "-serial", "stdio"])
            .args(["-qmp", "unix:qmp.sock,server=on,wait=off"])
            .args(qemu_options)
            .current_dir(dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log);
        let (qemu, (commands, stdout)) = Process::start("QEMU", &mut command, |child| {
            let pipes = (child.stdin.take(), child.stdout.take());
            (pipes.0.expect("it is piped"), pipes.1.expect("it is piped"))
        });
        let (sender, answers) = channel();
        thread::spawn(move || read_answers(stdout, &sender));
        Self {
            qemu,
            commands,
            answers,
            dir: dir.to_owned(),
        }
    }

    /// Runs a command and waits for it to finish.
    pub fn run(&mut self, command: &str) -> Answer {
        self.start(command);
        self.answer(command)
    }

    /// Runs a command that has to succeed. Returns its output without the last newline.
    pub fn ok(&mut self, command: &str) -> String {
        let answer = self.run(command);
        assert_eq!(answer.status, "0", "{command}: {}", answer.output);
        answer.output.trim_end().to_owned()
    }

    /// Resets the machine, whatever it is doing, and waits until the guest has booted.
    pub fn reset(&mut self) {
        self.qmp().execute("system_reset", &json!({}));
        self.wait_until_ready();
    }

    /// Connects to QEMU's monitor. It serves one connection at a time.
    pub fn qmp(&self) -> Qmp {
        Qmp::connect(&self.dir.join("qmp.sock"))
    }

    /// Switches the machine off and waits until QEMU exits.
    pub fn power_off(mut self) {
        self.start("poweroff -f");
        let status = self.qemu.wait();
        assert!(status.success(), "QEMU: {status}");
    }

    /// Starts a command in the guest without waiting for it.
    pub fn start(&mut self, command: &str) {
        writeln!(self.commands, "{command}").expect("QEMU runs");
    }

    fn answer(&self, what: &str) -> Answer {
        self.answers
            .recv_timeout(DEADLINE)
            .unwrap_or_else(|error| panic!("the guest did not answer to {what}: {error}"))
    }

    /// Returns the result of the started command if it has finished.
    pub fn poll(&self) -> Option<Answer> {
        match self.answers.try_recv() {
            Ok(answer) => Some(answer),
            Err(TryRecvError::Empty) => None,
            Err(TryRecvError::Disconnected) => panic!("QEMU has ended"),
        }
    }

    /// Drops the output that a reset cut off, up to the message that the guest is ready.
    fn wait_until_ready(&self) {
        while self.answer("its boot").status != "ready" {}
    }
}

fn wait_until_migrated(qmp: &mut Qmp) {
    wait_for("the migration", || {
        let info = qmp.execute("query-migrate", &json!({}));
        assert!(info["status"] != "failed", "{info}");
        (info["status"] == "completed").then_some(())
    });
}

impl Drop for Guest {
    fn drop(&mut self) {
        if thread::panicking() {
            show_log(&self.dir.join("console.log"));
            show_log(&self.dir.join("qemu.log"));
        }
    }
}

/// The path of a program in `scripts/lib`.
pub fn script(name: &str) -> PathBuf {
    Path::new(crate::REPOSITORY).join("scripts/lib").join(name)
}

/// Turns the guest's stream into answers until QEMU exits or the receiver is gone.
fn read_answers(stdout: ChildStdout, answers: &Sender<Answer>) {
    const RECORD_SEPARATOR: u8 = 0o36;
    let mut stdout = BufReader::new(stdout);
    loop {
        let (mut output, mut status) = (Vec::new(), String::new());
        let read = stdout.read_until(RECORD_SEPARATOR, &mut output);
        if output.pop() != Some(RECORD_SEPARATOR) || read.is_err() {
            return;
        }
        if stdout.read_line(&mut status).is_err() {
            return;
        }
        let output = String::from_utf8_lossy(&output).into_owned();
        let status = status.trim_end().to_owned();
        if answers.send(Answer { status, output }).is_err() {
            return;
        }
    }
}

//! Another daemon takes over from the one under test.

use std::fs;
use std::time::Instant;

use super::{Daemon, Exit, HAND_OVER, run, spawn};
use crate::process::{DEADLINE, wait_for};

/// Returns whether the log of a new process says that nothing was handed over because the machine is busy. Disks wait half a
/// second for their requests, and the processes three seconds for each other.
pub fn was_too_slow(log: &str) -> bool {
    ["requests are still in flight", "not answered in time"]
        .iter()
        .any(|reason| log.contains(reason))
}

impl Daemon {
    /// Makes a new process take over, and waits until the old one has ended. That was started with
    /// `--hand-over` [`HAND_OVER`]. Tries again as long as the old one refuses because the machine is busy.
    ///
    /// # Panics
    /// Nothing is taken over.
    pub fn take_over(&mut self, options: &[&str]) {
        let end = Instant::now() + DEADLINE;
        while !self.try_take_over(options) {
            assert!(Instant::now() < end, "refused again and again");
        }
    }

    /// Starts a process that takes over. Returns false if it was refused because the machine is busy.
    fn try_take_over(&mut self, options: &[&str]) -> bool {
        // The old process keeps its own log.
        for name in ["out", "err"] {
            fs::remove_file(self.dir.path().join(name)).expect("there is a log");
        }
        let args = [&["--take-over", HAND_OVER], options].concat();
        let args: Vec<String> = args.into_iter().map(str::to_owned).collect();
        let mut old = std::mem::replace(&mut self.child, spawn(&self.dir, &args));
        let status = wait_for("the end of one process", || match self.ended() {
            Some(_) => Some(None),
            None => old.try_wait().expect("wait for the daemon").map(Some),
        });
        let Some(status) = status else {
            self.child = old;
            let log = self.output();
            assert!(was_too_slow(&log), "nothing is taken over: {log}");
            eprintln!("refused once: {log}");
            return false;
        };
        assert!(status.success(), "the old process: {status}");
        true
    }

    /// Makes a new process take over from one that is killed before it passes its disks.
    ///
    /// # Panics
    /// The old process is not killed, or the new one ends.
    pub fn take_over_from_killed(&mut self, options: &[&str]) {
        let args = [&["--take-over", HAND_OVER], options].concat();
        let args: Vec<String> = args.into_iter().map(str::to_owned).collect();
        let mut old = std::mem::replace(&mut self.child, spawn(&self.dir, &args));
        let status = wait_for("the end of the old process", || {
            old.try_wait().expect("wait for the daemon")
        });
        assert!(!status.success(), "the old process was not killed");
        assert!(self.is_alive(), "{}", self.output());
    }

    /// Makes a new process fail to take over. Returns its exit.
    ///
    /// # Panics
    /// It takes over, or the old process ends.
    pub fn fail_take_over(&mut self, options: &[&str]) -> Exit {
        let exit = run(&[&["--take-over", HAND_OVER], options].concat(), self.dir());
        assert!(!exit.status.success(), "{}", exit.output);
        assert!(self.is_alive(), "{}{}", self.output(), exit.output);
        exit
    }
}

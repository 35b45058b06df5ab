//! A service whose processes take over from each other.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Instant;

use testkit::daemon::take_over::was_too_slow;
use testkit::daemon::{Daemon, HAND_OVER, SOCKET, binary};
use testkit::frontend::{Frontend, all_features};
use testkit::process::{DEADLINE, Process, show_log, wait_for};

/// The image has a block for each request of each queue.
pub(super) const BLOCK: usize = 4096;
pub(super) const QUEUES: usize = 8;
pub(super) const DEPTH: usize = 64;

/// A service: its first process, and those that have taken over.
pub(crate) struct Service {
    pub(crate) first: Daemon,
    pub(crate) later: Vec<Process>,
}

impl Service {
    pub(crate) fn start(options: &[&str]) -> Self {
        let image = vec![0; QUEUES * DEPTH * BLOCK];
        let options = [&["--hand-over", HAND_OVER, "--num-queues", "8"], options].concat();
        Self {
            first: Daemon::start(&image, &options),
            later: Vec::new(),
        }
    }

    pub(crate) fn dir(&self) -> &Path {
        self.first.dir()
    }

    fn log_path(&self, number: usize) -> PathBuf {
        self.dir().join(format!("log{number}"))
    }

    pub(crate) fn log(&self, number: usize) -> String {
        fs::read_to_string(self.log_path(number)).unwrap_or_default()
    }

    /// Starts a process that takes over.
    pub(crate) fn start_successor(&mut self, options: &[&str]) -> usize {
        self.start_program(&binary(), options)
    }

    fn start_program(&mut self, program: &Path, options: &[&str]) -> usize {
        let number = self.later.len();
        let log = File::create(self.log_path(number)).expect("make a log");
        let mut command = Command::new(program);
        command.args(["--take-over", HAND_OVER]).args(options);
        command.current_dir(self.dir()).stdin(Stdio::null()).stderr(log);
        self.later
            .push(Process::start("vhost-user-blk", &mut command, |_| ()).0);
        number
    }

    /// Makes another process take over.
    pub(crate) fn take_over(&mut self, options: &[&str]) {
        self.take_over_by(&binary(), options);
    }

    /// Makes another process take over, of this program. Tries again as long as the old one refuses because the machine is
    /// busy.
    pub(crate) fn take_over_by(&mut self, program: &Path, options: &[&str]) {
        let end = Instant::now() + DEADLINE;
        while !self.try_take_over(program, options) {
            assert!(Instant::now() < end, "refused again and again");
        }
    }

    /// Starts a process that takes over. Returns false if it was refused because the machine is busy.
    fn try_take_over(&mut self, program: &Path, options: &[&str]) -> bool {
        let number = self.start_program(program, options);
        let status = wait_for("the end of one process", || {
            if self.later[number].ended().is_some() {
                return Some(None);
            }
            let old = match number {
                0 => self.first.ended(),
                _ => self.later[number - 1].ended(),
            };
            old.map(Some)
        });
        let Some(status) = status else {
            assert!(was_too_slow(&self.log(number)), "nothing is taken over");
            show_log(&self.log_path(number));
            self.later.pop();
            return false;
        };
        assert!(status.success(), "the old process: {status}");
        assert!(self.later[number].ended().is_none(), "the new process has ended");
        true
    }

    pub(crate) fn connect(&self, queues: usize, depth: usize) -> Frontend {
        self.try_connect(queues, depth).expect("connect")
    }

    pub(super) fn try_connect(&self, queues: usize, depth: usize) -> io::Result<Frontend> {
        let socket = self.dir().join(SOCKET);
        Frontend::connect(&socket, queues, depth, all_features())
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // The first process shows its own log.
        if thread::panicking() {
            (0..self.later.len()).for_each(|number| show_log(&self.log_path(number)));
        }
    }
}

//! The daemon under test, as a process.

use std::fs::{self, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};

use super::process::{Process, show_log, wait_for};

/// A running `vhost-user-blk`; it is killed if the test does not stop it.
pub(crate) struct Backend {
    process: Process,
    log: PathBuf,
}

impl Backend {
    /// Starts the daemon in `dir` and waits until its socket listens at `socket` in there.
    ///
    /// # Panics
    ///
    /// When it ends instead; its messages are shown.
    pub(crate) fn start(dir: &Path, socket: &str, args: &[String]) -> Self {
        let log = dir.join("backend.log");
        let stderr = OpenOptions::new().create(true).append(true).open(&log);
        let stderr = stderr.expect("a test's directory is writable");
        let mut command = Command::new(env!("CARGO_BIN_EXE_vhost-user-blk"));
        command
            .args(args)
            .current_dir(dir)
            .stdin(Stdio::null())
            .stdout(stderr.try_clone().expect("a file can be duplicated"))
            .stderr(stderr);
        let (process, ()) = Process::start("vhost-user-blk", &mut command, |_| ());
        let mut backend = Self { process, log };
        // A socket may be there that a killed predecessor has left.
        let before = backend.output().len();
        wait_for("the daemon's socket", || {
            assert!(backend.process.ended().is_none(), "the daemon did not start");
            let serves = backend.output()[before..].contains("serving");
            (serves && dir.join(socket).exists()).then_some(())
        });
        backend
    }

    /// All that it printed until now.
    pub(crate) fn output(&self) -> String {
        fs::read_to_string(&self.log).expect("the daemon's messages are text")
    }

    /// Asks for statistics and returns what is printed.
    pub(crate) fn statistics(&self) -> String {
        let before = self.output().len();
        self.process.signal(libc::SIGUSR1);
        // The histogram is the last line of it.
        wait_for("statistics", || {
            let printed = self.output().split_off(before);
            let complete = printed.contains("histogram:") && printed.ends_with('\n');
            complete.then_some(printed)
        })
    }

    /// A figure of the statistics, by the name of its line ("queue 0", "total") and its own.
    pub(crate) fn count(&self, line: &str, name: &str) -> u64 {
        let statistics = self.statistics();
        let line = statistics
            .lines()
            .find_map(|text| text.strip_prefix(&format!("stats: {line}: ")));
        let mut figures = line.into_iter().flat_map(|line| line.split([' ', '(', ')']));
        let figure = figures.find_map(|figure| figure.strip_prefix(&format!("{name}=")));
        let figure = figure.and_then(|figure| figure.parse().ok());
        figure.unwrap_or_else(|| panic!("no {name} in {statistics}"))
    }

    /// Ends it with a signal, and waits until it is gone.
    pub(crate) fn end(&mut self, signal: libc::c_int) -> ExitStatus {
        self.process.signal(signal);
        self.process.wait()
    }

    /// Ends it as an administrator would.
    pub(crate) fn terminate(&mut self) -> ExitStatus {
        self.end(libc::SIGTERM)
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        if std::thread::panicking() {
            show_log(&self.log);
        }
    }
}

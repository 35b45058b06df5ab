//! Child processes that never outlive their test, and waiting with a deadline.

use std::collections::BTreeMap;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use std::{env, fs, io};

/// The time after which a test gives up. It is long enough that no test fails because the machine is busy.
pub const DEADLINE: Duration = Duration::from_secs(120);

/// Sets a flag when it is dropped, so that the threads of a scope end even if the test fails.
#[derive(Debug)]
pub struct SetAtEnd<'a>(pub &'a AtomicBool);

impl Drop for SetAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Calls `ready` every few milliseconds until it returns something.
///
/// # Panics
///
/// The deadline has passed. `what` describes the awaited event.
pub fn wait_for<T>(what: &str, mut ready: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + DEADLINE;
    loop {
        if let Some(value) = ready() {
            return value;
        }
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        thread::sleep(Duration::from_millis(2));
    }
}

/// The time that a child has to end by itself when it is asked to.
const LEAVE: Duration = Duration::from_secs(5);

/// A child process. It is killed and reaped on drop, also when a test panics.
pub struct Process {
    child: Child,
    name: &'static str,
    asked_first: bool,
}

impl Process {
    /// Starts a program. `pipes` takes the child's pipes that the caller needs.
    pub fn start<T>(
        name: &'static str,
        command: &mut Command,
        pipes: impl FnOnce(&mut Child) -> T,
    ) -> (Self, T) {
        die_with_parent(command);
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{name}: {error}"));
        let pipes = pipes(&mut child);
        let process = Self {
            child,
            name,
            asked_first: false,
        };
        (process, pipes)
    }

    /// Makes the drop ask the child to end before it is killed, so that it removes its files.
    #[must_use]
    pub fn asked_first(mut self) -> Self {
        self.asked_first = true;
        self
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&self, signal: libc::c_int) {
        let pid = libc::pid_t::try_from(self.child.id()).expect("a pid fits");
        // SAFETY: no memory is involved; the child was not waited for, so the pid is its own.
        let sent = unsafe { libc::kill(pid, signal) };
        assert_eq!(sent, 0, "send signal {signal} to {}", self.name);
    }

    /// Returns the exit status if the child has exited.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("our own child can be waited for")
    }

    /// Waits for the child to exit.
    pub fn wait(&mut self) -> ExitStatus {
        let name = self.name;
        wait_for(&format!("the end of {name}"), || self.ended())
    }
}

/// Makes the kernel kill the child when the test that started it ends, however it ends.
pub fn die_with_parent(command: &mut Command) {
    // SAFETY: the closure runs between fork and exec and makes one async-signal-safe call.
    unsafe {
        command.pre_exec(|| match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        });
    }
}

/// Runs an ignored test of this binary, in a process of its own with one thread.
pub fn run_alone(test: &str) {
    let mut command = Command::new(env::current_exe().expect("this binary"));
    command.args(["--exact", test, "--ignored", "--test-threads=1", "--nocapture"]);
    die_with_parent(&mut command);
    // No backtraces: a panic would load the machine's debug information. It is large, and not part of the test.
    let output = command
        .env("RUST_BACKTRACE", "0")
        .output()
        .expect("run this binary");
    let text = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
    let text = text.concat();
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.asked_first && matches!(self.child.try_wait(), Ok(None)) {
            self.signal(libc::SIGTERM);
            let end = Instant::now() + LEAVE;
            while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < end {
                thread::sleep(Duration::from_millis(2));
            }
        }
        // Both calls fail only if the child has exited already, which is fine.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Returns the lines of `/proc/PID/task/*/status`, thread by thread.
pub fn threads(pid: u32) -> Vec<BTreeMap<String, String>> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task"))
        .expect("list threads")
        .flatten();
    // A thread that has just exited has no status any more.
    let texts = tasks.filter_map(|task| fs::read_to_string(task.path().join("status")).ok());
    let fields = |text: String| {
        let fields = text.lines().filter_map(|line| line.split_once(':'));
        fields
            .map(|(name, value)| (name.to_owned(), value.trim().to_owned()))
            .collect()
    };
    texts.map(fields).collect()
}

/// Returns the state of a process as one letter, such as `T` for a stopped one.
pub fn state(pid: u32) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, which may contain anything, ends with the last parenthesis.
    stat.rsplit_once(')')?.1.trim_start().chars().next()
}

/// Prints the end of a log, to help find out why a test failed.
pub fn show_log(path: &Path) {
    let Ok(log) = fs::read(path) else { return };
    let log = String::from_utf8_lossy(&log);
    let lines: Vec<_> = log.lines().collect();
    eprintln!("--- the end of {}", path.display());
    for line in &lines[lines.len().saturating_sub(20)..] {
        eprintln!("{line}");
    }
}

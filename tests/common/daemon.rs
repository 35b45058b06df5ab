//! The daemon under test, as a child process in a directory of its own.

use std::collections::BTreeMap;
use std::env;
use std::fs::{self, File};
use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::memory::PATIENCE;
use super::process::die_with_parent;

/// The binary that cargo built for the tests.
pub(crate) const BINARY: &str = env!("CARGO_BIN_EXE_vhost-user-blk");

/// Names of its socket and its image in its directory: those of `qemu-configs/`.
pub(crate) const SOCKET: &str = "vhost-user-blk.sock";
pub(crate) const IMAGE: &str = "disk.img";

/// A running daemon with its image and socket; killed when dropped.
#[derive(Debug)]
pub(crate) struct Daemon {
    child: Child,
    dir: TempDir,
    args: Vec<String>,
}

/// How it ended and what it said.
#[derive(Debug)]
pub(crate) struct Exit {
    pub(crate) status: ExitStatus,
    /// Standard output, then standard error.
    pub(crate) output: String,
    pub(crate) took: Duration,
}

/// What a process holds on to: threads, and descriptors and mappings by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Holdings {
    pub(crate) threads: usize,
    pub(crate) fds: BTreeMap<String, usize>,
    pub(crate) mappings: BTreeMap<String, usize>,
}

impl Daemon {
    /// Starts it on an image with this content and waits until it listens.
    pub(crate) fn start(image: &[u8], options: &[&str]) -> Self {
        let dir = tempfile::tempdir().expect("make a directory");
        fs::write(dir.path().join(IMAGE), image).expect("write the image");
        Self::start_in(dir, options)
    }

    /// The same in a directory that holds the image.
    pub(crate) fn start_in(dir: TempDir, options: &[&str]) -> Self {
        let args = ["--socket-path", SOCKET, "--blk-file", IMAGE];
        Self::start_with(dir, &[&args, options].concat())
    }

    /// The same with nothing but `args`, which name the socket and the image.
    pub(crate) fn start_with(dir: TempDir, args: &[&str]) -> Self {
        let args = args.iter().map(ToString::to_string).collect::<Vec<_>>();
        let child = spawn(&dir, &args);
        let mut daemon = Self { child, dir, args };
        // The socket's file is there a moment before it takes connections.
        daemon.wait_for(|daemon| daemon.output().contains("serving"), "serve");
        daemon
    }

    /// Ends it with a signal and starts the next one, on the same image and socket.
    pub(crate) fn restart(&mut self, signal: libc::c_int) {
        self.stop_with(signal);
        self.child = spawn(&self.dir, &self.args);
        // A killed one leaves its socket behind, so only a connection tells.
        drop(self.connect());
    }

    /// Starts the next one with these options, after the end of the last one.
    pub(crate) fn start_again(&mut self, options: &[&str]) {
        let args = ["--socket-path", SOCKET, "--blk-file", IMAGE];
        self.args = [&args, options].concat().into_iter().map(str::to_owned).collect();
        self.child = spawn(&self.dir, &self.args);
    }

    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.path().join(SOCKET)
    }

    pub(crate) fn image_path(&self) -> PathBuf {
        self.dir.path().join(IMAGE)
    }

    /// The image's content now.
    pub(crate) fn image(&self) -> Vec<u8> {
        fs::read(self.image_path()).expect("read the image")
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Connects; a socket that is just being set up is tried again.
    pub(crate) fn connect(&self) -> UnixStream {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match UnixStream::connect(self.socket()) {
                Ok(stream) => return stream,
                Err(error) if Instant::now() > deadline => panic!("connect to the daemon: {error}"),
                Err(_) => thread::yield_now(),
            }
        }
    }

    /// Whether it still runs.
    pub(crate) fn is_alive(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// What it printed until now: standard output, then standard error.
    pub(crate) fn output(&self) -> String {
        let read = |name| fs::read_to_string(self.dir.path().join(name)).unwrap_or_default();
        read("out") + &read("err")
    }

    /// Polls `condition` until it holds.
    ///
    /// # Panics
    /// If that takes too long or the daemon ends.
    pub(crate) fn wait_for(&mut self, condition: impl Fn(&Self) -> bool, what: &str) {
        let deadline = Instant::now() + PATIENCE;
        while !condition(self) {
            assert!(
                self.is_alive(),
                "the daemon ended before it could {what}: {}",
                self.output()
            );
            assert!(
                Instant::now() < deadline,
                "the daemon did not {what}: {}",
                self.output()
            );
            thread::sleep(Duration::from_millis(1));
        }
    }

    pub(crate) fn signal(&self, signal: libc::c_int) {
        let pid = libc::pid_t::try_from(self.child.id()).expect("a pid fits");
        // SAFETY: no memory is involved; the child was not waited for, so the pid is its own.
        let sent = unsafe { libc::kill(pid, signal) };
        assert_eq!(sent, 0, "send signal {signal}");
    }

    /// Sends SIGTERM and waits for the end.
    pub(crate) fn terminate(&mut self) -> Exit {
        self.stop_with(libc::SIGTERM)
    }

    /// Sends a signal and waits for the end.
    pub(crate) fn stop_with(&mut self, signal: libc::c_int) -> Exit {
        self.signal(signal);
        self.wait_for_exit()
    }

    /// Waits for the end.
    pub(crate) fn wait_for_exit(&mut self) -> Exit {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("wait for the daemon") {
                return Exit {
                    status,
                    output: self.output(),
                    took: start.elapsed(),
                };
            }
            assert!(
                start.elapsed() < PATIENCE,
                "the daemon ignores the signal: {}",
                self.output()
            );
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// A figure of the statistics now, by the name of its line ("queue 0", "total") and its own.
    pub(crate) fn count(&mut self, line: &str, name: &str) -> u64 {
        let before = self.output().len();
        self.signal(libc::SIGUSR1);
        // The histogram is the last line of it.
        let complete = |text: &str| text.contains("histogram:") && text.ends_with('\n');
        self.wait_for(|daemon| complete(&daemon.output()[before..]), "print statistics");
        let printed = self.output().split_off(before);
        let figures = printed
            .lines()
            .find_map(|text| text.strip_prefix(&format!("stats: {line}: ")));
        let mut figures = figures.into_iter().flat_map(|line| line.split([' ', '(', ')']));
        let figure = figures.find_map(|figure| figure.strip_prefix(&format!("{name}=")));
        let figure = figure.and_then(|figure| figure.parse().ok());
        figure.unwrap_or_else(|| panic!("no {name} in {printed}"))
    }

    pub(crate) fn holdings(&self) -> Holdings {
        Holdings::of(self.pid())
    }

    /// What it holds with nobody connected, once `session` has come and gone for the first time.
    pub(crate) fn idle_holdings(&mut self, session: impl Fn(&Self)) -> Holdings {
        session(self);
        // A frontend's memory is let go of with its connection; the rest follows at once.
        let is_memory = |name: &String| name.ends_with("(deleted)") && !name.starts_with("/[aio]");
        let has_memory = |held: &Holdings| held.mappings.keys().any(is_memory);
        self.wait_for(
            |daemon| !has_memory(&daemon.holdings()),
            "let go of its first connection",
        );
        let mut last = self.holdings();
        loop {
            thread::sleep(Duration::from_millis(10));
            let now = self.holdings();
            if now == last {
                return now;
            }
            last = now;
        }
    }

    /// Waits until it holds no more than `limit`.
    pub(crate) fn wait_for_holdings(&mut self, limit: &Holdings) {
        let deadline = Instant::now() + PATIENCE;
        while !self.holdings().is_within(limit) {
            assert!(self.is_alive(), "the daemon ended: {}", self.output());
            let held = self.holdings();
            assert!(Instant::now() < deadline, "it holds {held:#?} and not {limit:#?}");
            thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            eprintln!("--- the daemon said:\n{}---", self.output());
        }
    }
}

impl Holdings {
    /// Whether this is no more than `limit` of anything.
    pub(crate) fn is_within(&self, limit: &Self) -> bool {
        let fits = |held: &BTreeMap<String, usize>, limit: &BTreeMap<String, usize>| {
            held.iter()
                .all(|(name, count)| limit.get(name).is_some_and(|limit| count <= limit))
        };
        self.threads <= limit.threads && fits(&self.fds, &limit.fds) && fits(&self.mappings, &limit.mappings)
    }

    pub(crate) fn of(pid: u32) -> Self {
        let dir = Path::new("/proc").join(pid.to_string());
        let list = |name| {
            let entries = seen(fs::read_dir(dir.join(name)).map(Iterator::flatten), "list /proc");
            entries.into_iter().flatten()
        };
        // ThreadSanitizer talks to its symbolizer through pipes, from its first (suppressed) report on.
        let sanitized = std::env::var_os("TSAN_OPTIONS").is_some();
        let links = list("fd").filter_map(|fd| fs::read_link(fd.path()).ok());
        let links = links.filter(|link| !sanitized || !link.to_string_lossy().starts_with("pipe:"));
        let maps = seen(fs::read_to_string(dir.join("maps")), "read maps").unwrap_or_default();
        // Anonymous memory (the allocator's arenas, stacks) comes and goes; what has a name is ours, or ThreadSanitizer's.
        let is_ours = |name: &&str| name.starts_with('/') && !name.contains("/tsan.");
        let names = maps
            .lines()
            .filter_map(|line| Some(line.get(73..)?.trim()).filter(is_ours));
        Self {
            threads: list("task").filter(|task| is_own_thread(&task.path())).count(),
            fds: count(links.map(|link| without_numbers(&link.to_string_lossy()))),
            mappings: count(names.map(str::to_owned)),
        }
    }
}

/// What `/proc` says of a process, of which only root sees everything: it is not dumpable.
fn seen<T>(result: io::Result<T>, what: &str) -> Option<T> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => None,
        result => Some(result.expect(what)),
    }
}

/// io_uring's workers are the kernel's, and go when it sees fit.
fn is_own_thread(task: &Path) -> bool {
    !fs::read_to_string(task.join("comm")).is_ok_and(|name| name.starts_with("iou-"))
}

/// `socket:[123]` is another number after each connection.
fn without_numbers(link: &str) -> String {
    link.split(":[").next().unwrap_or(link).to_owned()
}

fn count(names: impl Iterator<Item = String>) -> BTreeMap<String, usize> {
    names.fold(BTreeMap::new(), |mut map, name| {
        *map.entry(name).or_default() += 1;
        map
    })
}

/// Runs the daemon with `args`, for options that make it end at once.
pub(crate) fn run(args: &[&str], dir: &Path) -> Exit {
    let start = Instant::now();
    let mut command = Command::new("timeout");
    command
        .arg("10")
        .arg(BINARY)
        .args(args)
        .current_dir(dir)
        .stdin(Stdio::null());
    let output = command.output().expect("run the daemon");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Exit {
        status: output.status,
        output: text(&output.stdout) + &text(&output.stderr),
        took: start.elapsed(),
    }
}

fn spawn(dir: &TempDir, args: &[String]) -> Child {
    let output = |name| File::create(dir.path().join(name)).expect("make a log");
    let mut command = Command::new(BINARY);
    // For tools that need system calls in the daemon that it does not make itself.
    let options = env::var("TEST_DAEMON_OPTIONS").unwrap_or_default();
    command
        .args(args)
        .args(options.split_whitespace())
        .current_dir(dir.path())
        .stdin(Stdio::null())
        .stdout(output("out"))
        .stderr(output("err"));
    die_with_parent(&mut command);
    command.spawn().expect("start the daemon")
}

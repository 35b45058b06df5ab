//! The daemon under test, as a child process in a directory of its own.

pub mod take_over;

use std::env;
use std::fs::{self, File};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::holdings::Holdings;
use crate::memory::PATIENCE;
use crate::neighbour::Neighbour;
use crate::process::die_with_parent;

/// Returns the path of the daemon. Cargo puts it one folder above the tests.
///
/// The first call in a process must come from a thread in the first mount namespace. In another one, and in a chroot, the
/// kernel gives paths that do not exist there.
pub fn binary() -> PathBuf {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    let find = || {
        let test = env::current_exe().expect("the test's own path");
        let folder = test.parent().and_then(Path::parent).expect("cargo's folders");
        folder.join("vhost-user-blk")
    };
    BINARY.get_or_init(find).clone()
}

/// The names of the socket and the image in the daemon's directory, as in `qemu-configs/`.
pub const SOCKET: &str = "vhost-user-blk.sock";
pub const IMAGE: &str = "disk.img";
/// The name of the socket for [`Daemon::take_over`].
pub const HAND_OVER: &str = "hand-over.sock";

/// A running daemon with its image and socket. Dropping it kills the daemon.
#[derive(Debug)]
pub struct Daemon {
    /// The user of a second disk, on the socket and image of these names.
    neighbour: Option<Neighbour>,
    neighbours_files: Option<[String; 2]>,
    child: Child,
    dir: TempDir,
    args: Vec<String>,
}

/// The daemon's exit status and its output.
#[derive(Debug)]
pub struct Exit {
    pub status: ExitStatus,
    /// Standard output, then standard error.
    pub output: String,
    pub took: Duration,
}

impl Exit {
    /// Returns the only line of a daemon that has refused to start, which is an error.
    ///
    /// # Panics
    /// The daemon did not fail, or has said something else.
    pub fn refusal(&self) -> &str {
        assert!(!self.status.success(), "{}", self.output);
        let mut lines = self.output.lines();
        let (line, rest) = (lines.next().unwrap_or_default(), lines.next());
        assert!(
            line.starts_with("error: ") && rest.is_none(),
            "more or less than one error: {}",
            self.output
        );
        line
    }
}

impl Daemon {
    /// Starts a daemon on an image with this content, and waits until it listens.
    pub fn start(image: &[u8], options: &[&str]) -> Self {
        let dir = tempfile::tempdir().expect("make a directory");
        fs::write(dir.path().join(IMAGE), image).expect("write the image");
        Self::start_in(dir, options)
    }

    /// Starts a daemon in a directory that holds the image already.
    pub fn start_in(dir: TempDir, options: &[&str]) -> Self {
        let args = ["--socket-path", SOCKET, "--blk-file", IMAGE];
        Self::start_with(dir, &[&args, options].concat())
    }

    /// Starts a daemon with `args` alone. They name the socket and the image.
    pub fn start_with(dir: TempDir, args: &[&str]) -> Self {
        let args = args.iter().map(ToString::to_string).collect::<Vec<_>>();
        let child = spawn(&dir, &args);
        let mut daemon = Self {
            neighbour: None,
            neighbours_files: None,
            child,
            dir,
            args,
        };
        // The socket file appears a moment before the daemon accepts connections.
        daemon.wait_for(|daemon| daemon.output().contains("serving"), "serve");
        daemon
    }

    /// Uses a second disk from now on, as long as the daemon runs, and checks its data: see [`Neighbour`].
    #[must_use]
    pub fn with_neighbour(mut self, socket: &str, image: &str) -> Self {
        self.neighbours_files = Some([socket, image].map(str::to_owned));
        self.start_neighbour();
        self
    }

    fn start_neighbour(&mut self) {
        let start = |[socket, image]: &[String; 2]| {
            Neighbour::start(&self.dir.path().join(socket), &self.dir.path().join(image))
        };
        self.neighbour = self.neighbours_files.as_ref().map(start);
    }

    fn end_neighbour(&mut self) {
        if let Some(neighbour) = self.neighbour.take() {
            neighbour.finish();
        }
    }

    /// Checks that the second disk, if any, is served.
    pub fn check_neighbour(&self) {
        if let Some(neighbour) = &self.neighbour {
            neighbour.check();
        }
    }

    /// Ends the daemon with a signal, and starts another one on the same image and socket.
    pub fn restart(&mut self, signal: libc::c_int) {
        self.stop_with(signal);
        self.child = spawn(&self.dir, &self.args);
        // A killed daemon leaves its socket file, so only a connection shows that the new one listens.
        drop(self.connect());
        self.start_neighbour();
    }

    /// Starts a daemon with these options after the last one has ended.
    pub fn start_again(&mut self, options: &[&str]) {
        let args = ["--socket-path", SOCKET, "--blk-file", IMAGE];
        self.args = [&args, options].concat().into_iter().map(str::to_owned).collect();
        self.child = spawn(&self.dir, &self.args);
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.path().join(SOCKET)
    }

    pub fn image_path(&self) -> PathBuf {
        self.dir.path().join(IMAGE)
    }

    /// Returns the image's current content.
    pub fn image(&self) -> Vec<u8> {
        fs::read(self.image_path()).expect("read the image")
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Connects. Retries while the socket is being set up.
    pub fn connect(&self) -> UnixStream {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match UnixStream::connect(self.socket()) {
                Ok(stream) => return stream,
                Err(error) if Instant::now() > deadline => panic!("connect to the daemon: {error}"),
                Err(_) => thread::yield_now(),
            }
        }
    }

    pub fn is_alive(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Returns the exit status if the daemon has ended.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("wait for the daemon")
    }

    /// Returns the output so far: standard output, then standard error.
    pub fn output(&self) -> String {
        let read = |name| fs::read_to_string(self.dir.path().join(name)).unwrap_or_default();
        read("out") + &read("err")
    }

    /// Polls `condition` until it holds.
    ///
    /// # Panics
    /// The condition does not hold in time, or the daemon ends.
    pub fn wait_for(&mut self, condition: impl Fn(&Self) -> bool, what: &str) {
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

    pub fn signal(&self, signal: libc::c_int) {
        let pid = libc::pid_t::try_from(self.child.id()).expect("a pid fits");
        // SAFETY: no memory is involved; the child was not waited for, so the pid is its own.
        let sent = unsafe { libc::kill(pid, signal) };
        assert_eq!(sent, 0, "send signal {signal}");
    }

    /// Sends SIGTERM and waits for the daemon to exit.
    pub fn terminate(&mut self) -> Exit {
        self.stop_with(libc::SIGTERM)
    }

    /// Sends a signal and waits for the daemon to exit.
    pub fn stop_with(&mut self, signal: libc::c_int) -> Exit {
        self.end_neighbour();
        self.signal(signal);
        self.wait_for_exit()
    }

    /// Waits for the daemon to exit.
    pub fn wait_for_exit(&mut self) -> Exit {
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

    /// Returns the current statistics.
    pub fn statistics(&mut self) -> String {
        let before = self.output().len();
        self.signal(libc::SIGUSR1);
        // The histogram is the last line of the statistics.
        let complete = |text: &str| text.contains("histogram:") && text.ends_with('\n');
        self.wait_for(|daemon| complete(&daemon.output()[before..]), "print statistics");
        self.output().split_off(before)
    }

    /// Returns a figure of the current statistics. `line` is "total" or, for example, "queue 0" or "queue 0 ring".
    pub fn count(&mut self, line: &str, name: &str) -> u64 {
        let printed = self.statistics();
        let figures = printed
            .lines()
            .find_map(|text| text.strip_prefix(&format!("stats: {line}: ")));
        let mut figures = figures.into_iter().flat_map(|line| line.split([' ', '(', ')']));
        let figure = figures.find_map(|figure| figure.strip_prefix(&format!("{name}=")));
        let figure = figure.and_then(|figure| figure.parse().ok());
        figure.unwrap_or_else(|| panic!("no {name} in {printed}"))
    }

    pub fn holdings(&self) -> Holdings {
        Holdings::of(self.pid())
    }

    /// Returns the holdings of the idle daemon after a first `session` has come and gone.
    pub fn idle_holdings(&mut self, session: impl Fn(&Self)) -> Holdings {
        let before = self.holdings().mappings;
        session(self);
        // The daemon releases a frontend's memory with its connection, and the rest right after.
        let is_memory = |name: &&String| name.ends_with("(deleted)") && !name.starts_with("/[aio]");
        let is_new = |name: &String| !before.contains_key(name);
        let has_memory = |held: &Holdings| held.mappings.keys().filter(is_memory).any(is_new);
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

    /// Waits until the daemon holds no more than `limit`.
    pub fn wait_for_holdings(&mut self, limit: &Holdings) {
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
        // After a failure, the neighbour may be waiting for a daemon that is gone or stuck.
        if !thread::panicking() && self.is_alive() {
            self.end_neighbour();
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            eprintln!("--- the daemon said:\n{}---", self.output());
        }
    }
}

/// Runs the daemon with `args` that make it exit at once.
pub fn run(args: &[&str], dir: &Path) -> Exit {
    let start = Instant::now();
    let mut command = Command::new("timeout");
    command
        .arg("60")
        .arg(binary())
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

/// Returns the options that `TEST_DAEMON_OPTIONS` has for each daemon, because some tools (sanitizers, tracers) make system
/// calls in the daemon that the daemon itself does not make.
pub fn tool_options() -> Vec<String> {
    let options = env::var("TEST_DAEMON_OPTIONS").unwrap_or_default();
    options.split_whitespace().map(str::to_owned).collect()
}

fn spawn(dir: &TempDir, args: &[String]) -> Child {
    let output = |name| File::create(dir.path().join(name)).expect("make a log");
    let mut command = Command::new(binary());
    command
        .args(args)
        .args(tool_options())
        .current_dir(dir.path())
        .stdin(Stdio::null())
        .stdout(output("out"))
        .stderr(output("err"));
    die_with_parent(&mut command);
    command.spawn().expect("start the daemon")
}

//! Starts, watches and stops a backend process. Runs on the main thread.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::candidate::{Candidate, Kind};
use crate::command::{Disk, Target};
use crate::image::Image;
use crate::process::die_with_parent;
use crate::store::Server;

/// Time limit for a backend to listen, and to end after SIGTERM.
const PATIENCE: Duration = Duration::from_secs(5);

/// A running backend, killed when dropped.
#[derive(Debug)]
pub(crate) struct Backend {
    name: String,
    child: Child,
    sockets: Vec<PathBuf>,
    log: PathBuf,
    /// The server of its image. Ended after the backend.
    server: Option<Server>,
}

impl Backend {
    /// Starts `candidate`, which serves one disk per image with `queues` queues each, and waits until all sockets exist.
    /// The sockets and the log are in `dir`, with numbers from `first` on.
    ///
    /// Call this on the main thread: the kernel kills the backend when the thread that started it ends.
    pub(crate) fn start(
        candidate: &Candidate,
        images: &[Image],
        queues: u16,
        dir: &Path,
        first: usize,
    ) -> Result<Self> {
        let disk = |(i, image): (usize, &Image)| Disk {
            socket: dir.join(format!("{}.sock", first + i)),
            image: image.clone(),
        };
        let disks: Vec<Disk> = images.iter().enumerate().map(disk).collect();
        let sockets: Vec<PathBuf> = disks.iter().map(|disk| disk.socket.clone()).collect();
        for socket in &sockets {
            let _ = fs::remove_file(socket);
        }
        let target = Target {
            disks: &disks,
            queues,
        };
        let log = dir.join(format!("{first}.log"));
        let server = match &candidate.kind {
            Kind::Network { store, .. } => Some(store.start(&images[0], &disks[0].server())?),
            _ => None,
        };
        let mut backend = Self::spawn(&candidate.name, &target.command_line(candidate), sockets, log)?;
        backend.server = server;
        backend.wait_for_sockets()?;
        Ok(backend)
    }

    /// Starts a backend that will create `sockets`, without waiting for them.
    pub(crate) fn spawn(name: &str, line: &[String], sockets: Vec<PathBuf>, log: PathBuf) -> Result<Self> {
        let output = File::create(&log).context("create the backend's log")?;
        let mut command = Command::new(&line[0]);
        command
            .args(&line[1..])
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output);
        die_with_parent(&mut command);
        let child = command
            .spawn()
            .with_context(|| format!("{name}: start {}", line[0]))?;
        Ok(Self {
            name: name.to_owned(),
            child,
            sockets,
            log,
            server: None,
        })
    }

    /// Returns the sockets, one per disk.
    pub(crate) fn sockets(&self) -> &[PathBuf] {
        &self.sockets
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Kills the backend. A thread that waits for an answer on its socket gets an end of file.
    pub(crate) fn kill(&mut self) {
        let _ = self.child.kill();
    }

    /// Returns an error with the last lines that the backend printed.
    pub(crate) fn failure(&self, what: &str) -> anyhow::Error {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        let tail = lines[lines.len().saturating_sub(5)..].join("\n    ");
        let said = if tail.is_empty() {
            "it printed nothing".to_owned()
        } else {
            format!("it printed:\n    {tail}")
        };
        anyhow::anyhow!("{}: {what}; {said}", self.name)
    }

    /// Returns whether the backend has ended by itself.
    pub(crate) fn has_ended(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(Some(_)))
    }

    fn wait_for_sockets(&mut self) -> Result<()> {
        self.wait_until("create its socket", |backend| {
            backend.sockets.iter().all(|socket| socket.exists())
        })
    }

    /// Waits until `condition` holds. `what` says what the backend has to do for that.
    ///
    /// # Errors
    /// The backend ends, or the condition does not hold within 5 seconds.
    pub(crate) fn wait_until(&mut self, what: &str, condition: impl Fn(&Self) -> bool) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while !condition(self) {
            if let Some(status) = self.child.try_wait()? {
                return Err(self.failure(&format!("ended while starting ({status})")));
            }
            if Instant::now() > deadline {
                self.kill();
                return Err(self.failure(&format!("did not {what} within 5 seconds")));
            }
            thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// Sends SIGTERM to the backend and waits until it has ended.
    pub(crate) fn stop(mut self) -> Result<()> {
        if self.has_ended() {
            return Err(self.failure("ended by itself"));
        }
        terminate(&self.child).context("stop the backend")?;
        let deadline = Instant::now() + PATIENCE;
        while self.child.try_wait()?.is_none() {
            if Instant::now() > deadline {
                bail!(self.failure("did not end within 5 seconds of SIGTERM"));
            }
            thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.kill();
        let _ = self.child.wait();
    }
}

fn terminate(child: &Child) -> Result<()> {
    let pid = libc::pid_t::try_from(child.id())?;
    // SAFETY: no memory is involved; the child was not waited for yet, so the pid is still its own.
    match unsafe { libc::kill(pid, libc::SIGTERM) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error().into()),
    }
}

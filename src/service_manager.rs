//! Tells a service manager about this process: systemd's `Type=notify`, `NOTIFY_SOCKET`, `WATCHDOG_USEC`.
//!
//! The connection is made early, because a sandboxed process makes none. Main thread.

use std::env;
use std::io;
use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::{Duration, Instant};

use sd_notify::NotifyState;

/// The longest time that a message waits for a service manager which does not read.
const PATIENCE: Duration = Duration::from_secs(1);

/// A connection to the service manager, if there is one. Without one, all methods do nothing.
///
/// A message that cannot be sent is logged, and the daemon goes on.
#[derive(Debug)]
pub struct ServiceManager {
    socket: Option<UnixDatagram>,
    watchdog: Option<Watchdog>,
    /// The number of disks in the last message.
    disks: Option<usize>,
}

/// The service manager kills this process if it hears nothing for twice `interval`.
#[derive(Debug)]
struct Watchdog {
    interval: Duration,
    /// The time of the next message.
    due: Instant,
}

impl ServiceManager {
    /// Connects to the socket that the environment names, if it names one.
    ///
    /// # Errors
    /// The socket cannot be connected to.
    pub fn connect() -> io::Result<Self> {
        let name = env::var_os("NOTIFY_SOCKET").filter(|name| !name.is_empty());
        let socket = name.map(|name| connect(name.as_bytes())).transpose()?;
        let watchdog = socket
            .as_ref()
            .and(sd_notify::watchdog_enabled())
            .filter(|limit| !limit.is_zero());
        Ok(Self {
            socket,
            watchdog: watchdog.map(|limit| Watchdog {
                interval: limit / 2,
                due: Instant::now(),
            }),
            disks: None,
        })
    }

    /// Uses the connection of a predecessor instead of one of this process. `watchdog` is the time within which the service
    /// manager wants to hear something.
    pub(crate) fn passed(socket: OwnedFd, watchdog: Option<Duration>) -> Self {
        Self {
            socket: Some(socket.into()),
            watchdog: watchdog.map(|limit| Watchdog {
                interval: limit / 2,
                due: Instant::now(),
            }),
            disks: None,
        }
    }

    /// Returns the connection, and the time within which the service manager wants to hear something.
    pub(crate) fn to_pass(&self) -> Option<(&UnixDatagram, Option<Duration>)> {
        let watchdog = self.watchdog.as_ref().map(|watchdog| watchdog.interval * 2);
        self.socket.as_ref().map(|socket| (socket, watchdog))
    }

    /// Says that another process is this service from now on. The one that says this may end.
    pub(crate) fn main_process(&self, pid: u32) {
        self.send(&[NotifyState::MainPid(pid)]);
    }

    /// Says that frontends of this number of disks are served from now on.
    pub fn ready(&mut self, disks: usize) {
        self.disks = Some(disks);
        self.send(&[NotifyState::Ready, NotifyState::Status(&serving(disks))]);
    }

    /// Says that the number of disks has changed, if it has.
    pub fn disks(&mut self, disks: usize) {
        if self.socket.is_some() && self.disks.replace(disks) != Some(disks) {
            self.send(&[NotifyState::Status(&serving(disks))]);
        }
    }

    /// Says that the images' sizes are about to be read again. [`ready`](Self::ready) ends this.
    pub fn reloading(&self) {
        // systemd 253 and newer needs the time, which tells this message from earlier ones.
        if let Ok(now) = NotifyState::monotonic_usec_now() {
            self.send(&[NotifyState::Reloading, now]);
        }
    }

    /// Says that the process is about to end.
    pub fn stopping(&self, reason: &str) {
        let status = format!("stopping: {reason}");
        self.send(&[NotifyState::Stopping, NotifyState::Status(&status)]);
    }

    /// Returns the time at which [`feed`](Self::feed) has to be called, if the service manager watches this process.
    pub fn deadline(&self) -> Option<Instant> {
        self.watchdog.as_ref().map(|watchdog| watchdog.due)
    }

    /// Says that the main thread works, if it is time to.
    pub fn feed(&mut self) {
        let now = Instant::now();
        let Some(watchdog) = self.watchdog.as_mut().filter(|watchdog| watchdog.due <= now) else {
            return;
        };
        watchdog.due = now + watchdog.interval;
        self.send(&[NotifyState::Watchdog]);
    }

    fn send(&self, states: &[NotifyState<'_>]) {
        let Some(socket) = &self.socket else {
            return;
        };
        let lines: Vec<String> = states.iter().map(ToString::to_string).collect();
        let text = lines.join("\n");
        if let Err(error) = socket.send(text.as_bytes()) {
            tracing::warn!(%error, "the service manager cannot be told {} (NOTIFY_SOCKET)", lines[0]);
        }
    }
}

fn connect(name: &[u8]) -> io::Result<UnixDatagram> {
    let address = match name {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        _ => SocketAddr::from_pathname(std::ffi::OsStr::from_bytes(name))?,
    };
    let socket = UnixDatagram::unbound()?;
    socket.connect_addr(&address)?;
    socket.set_write_timeout(Some(PATIENCE))?;
    Ok(socket)
}

fn serving(disks: usize) -> String {
    match disks {
        1 => "serving 1 disk".to_owned(),
        disks => format!("serving {disks} disks"),
    }
}

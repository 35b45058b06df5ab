//! A QMP client: one connection to the daemon.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// The time that the daemon has for an answer. Closing an image may wait for its storage.
const PATIENCE: Duration = Duration::from_secs(60);

/// The time for the greeting, which needs no storage.
const GREETING: Duration = Duration::from_secs(5);

/// Returns whether the path names a socket.
fn is_socket(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|found| found.file_type().is_socket())
}

/// A connection to the daemon's QMP socket.
#[derive(Debug)]
pub(crate) struct Qmp {
    socket: BufReader<UnixStream>,
    /// Events that arrived before an answer.
    events: VecDeque<Value>,
    /// The part of a line that arrived before a timeout.
    partial: Vec<u8>,
}

impl Qmp {
    /// Connects, and leaves negotiation mode.
    ///
    /// # Errors
    /// Nobody listens, or not a daemon. The error says what to do.
    pub(crate) fn connect(path: &Path) -> Result<Self> {
        let shown = path.display();
        let socket = UnixStream::connect(path).map_err(|error| {
            let cure = match error.kind() {
                ErrorKind::NotFound => {
                    "start the daemon with --chardev and --monitor, or name its socket with --socket"
                }
                ErrorKind::ConnectionRefused if !is_socket(path) => {
                    "this is not a socket: name the daemon's QMP socket with --socket"
                }
                ErrorKind::ConnectionRefused => "the daemon that made this socket has ended: start it again",
                ErrorKind::PermissionDenied => "run this as root, or as the user that the daemon runs as",
                _ => "name the daemon's QMP socket with --socket",
            };
            anyhow::anyhow!("cannot connect to {shown}: {error}: {cure}")
        })?;
        let mut qmp = Self {
            socket: BufReader::new(socket),
            events: VecDeque::new(),
            partial: Vec::new(),
        };
        let greeting = qmp.line(Instant::now() + GREETING)?;
        if greeting.is_none_or(|greeting| greeting.get("QMP").is_none()) {
            bail!(
                "{shown} is not a QMP socket: name that of the daemon's --chardev with --socket, not that of a disk"
            );
        }
        qmp.execute("qmp_capabilities", &json!({}))?;
        Ok(qmp)
    }

    /// Returns the daemon's process, if the kernel tells.
    pub(crate) fn daemon(&self) -> Option<u32> {
        let peer = rustix::net::sockopt::socket_peercred(self.socket.get_ref().as_fd()).ok()?;
        u32::try_from(peer.pid.as_raw_nonzero().get()).ok()
    }

    /// Runs a command and returns its result.
    ///
    /// # Errors
    /// The daemon refuses the command, or does not answer in time.
    pub(crate) fn execute(&mut self, command: &str, arguments: &Value) -> Result<Value> {
        let request = json!({ "execute": command, "arguments": arguments });
        writeln!(self.socket.get_mut(), "{request}").context("the daemon has closed the connection")?;
        let end = Instant::now() + PATIENCE;
        loop {
            let Some(mut answer) = self.line(end)? else {
                bail!(
                    "the daemon has not answered '{command}' within {} seconds",
                    PATIENCE.as_secs()
                );
            };
            if let Some(error) = answer.get("error") {
                bail!(
                    "{}",
                    error["desc"].as_str().unwrap_or("the daemon gives no reason")
                );
            }
            match answer.get_mut("return") {
                Some(result) => return Ok(result.take()),
                None => self.events.push_back(answer),
            }
        }
    }

    /// Runs a command without arguments, and reads its result.
    ///
    /// # Errors
    /// See [`execute`](Self::execute). The result of another version of the daemon may not be readable.
    pub(crate) fn query<T: DeserializeOwned>(&mut self, command: &str) -> Result<T> {
        let result = self.execute(command, &json!({}))?;
        serde_json::from_value(result).with_context(|| format!("cannot read the result of '{command}'"))
    }

    /// Returns the next event, or `None` if none arrives until `end`.
    ///
    /// # Errors
    /// The daemon has ended.
    pub(crate) fn event(&mut self, end: Instant) -> Result<Option<Value>> {
        match self.events.pop_front() {
            Some(event) => Ok(Some(event)),
            None => self.line(end),
        }
    }

    /// Reads a line until `end`.
    fn line(&mut self, end: Instant) -> Result<Option<Value>> {
        let left = end.saturating_duration_since(Instant::now());
        let timeout = left.max(Duration::from_millis(1));
        self.socket.get_ref().set_read_timeout(Some(timeout))?;
        match self.socket.read_until(b'\n', &mut self.partial) {
            Ok(0) => bail!("the daemon has closed the connection"),
            Ok(_) => {
                let line = std::mem::take(&mut self.partial);
                Ok(Some(
                    serde_json::from_slice(&line).context("the answer is not JSON")?,
                ))
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(None),
            Err(error) => Err(error).context("the daemon has closed the connection"),
        }
    }
}

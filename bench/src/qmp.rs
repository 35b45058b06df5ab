//! A QMP client that can pass file descriptors.

use std::io::{BufRead, BufReader, Write};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

/// Time limit for an answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// A connection to a monitor.
pub(crate) struct Qmp(BufReader<UnixStream>);

impl Qmp {
    /// # Errors
    /// Nobody listens, or the monitor does not answer in time.
    pub(crate) fn connect(path: &Path) -> Result<Self> {
        let socket = UnixStream::connect(path).context("connect to the monitor")?;
        socket.set_read_timeout(Some(PATIENCE))?;
        let mut qmp = Self(BufReader::new(socket));
        qmp.next()?;
        qmp.run("qmp_capabilities", &json!({}))?;
        Ok(qmp)
    }

    /// Runs a command, and returns its result. Events that come before the answer are dropped.
    ///
    /// # Errors
    /// The command is refused, or the monitor does not answer in time.
    pub(crate) fn run(&mut self, command: &str, arguments: &Value) -> Result<Value> {
        self.run_with(command, arguments, &[])
    }

    /// As [`run`](Self::run), and passes a descriptor with the command.
    ///
    /// # Errors
    /// The same.
    pub(crate) fn run_with(
        &mut self,
        command: &str,
        arguments: &Value,
        fds: &[BorrowedFd<'_>],
    ) -> Result<Value> {
        let text = json!({"execute": command, "arguments": arguments}).to_string() + "\n";
        let socket = self.0.get_mut();
        if fds.is_empty() {
            socket.write_all(text.as_bytes())
        } else {
            let fds: Vec<_> = fds.iter().map(AsRawFd::as_raw_fd).collect();
            let sent = socket.send_with_fds(&[text.as_bytes()], &fds);
            sent.map(drop).map_err(Into::into)
        }
        .with_context(|| format!("{command}: send"))?;
        loop {
            let mut line = self.next().with_context(|| command.to_owned())?;
            if let Some(error) = line.get("error") {
                bail!("{command} is refused: {}", error["desc"]);
            }
            if let Some(result) = line.get_mut("return") {
                return Ok(result.take());
            }
        }
    }

    fn next(&mut self) -> Result<Value> {
        let mut line = String::new();
        match self.0.read_line(&mut line) {
            Ok(0) => bail!("the monitor has closed the connection"),
            Ok(_) => serde_json::from_str(&line).context("the monitor speaks no JSON"),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                bail!("no answer within {} seconds", PATIENCE.as_secs())
            }
            Err(error) => Err(error).context("read from the monitor"),
        }
    }
}

//! A control socket: QEMU's, or the daemon's.

use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;

use serde_json::{Value, json};
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use crate::process::{DEADLINE, wait_for};

/// A connection to a monitor.
pub struct Qmp {
    socket: BufReader<UnixStream>,
}

impl Qmp {
    /// Connects as soon as the monitor listens, and leaves negotiation mode.
    pub fn connect(path: &Path) -> Self {
        let socket = wait_for("the monitor", || UnixStream::connect(path).ok());
        socket
            .set_read_timeout(Some(DEADLINE))
            .expect("the timeout is not zero");
        let mut qmp = Self {
            socket: BufReader::new(socket),
        };
        qmp.next(); // the greeting
        qmp.execute("qmp_capabilities", &json!({}));
        qmp
    }

    /// Runs a command and returns its result. Events that arrive in between are dropped.
    ///
    /// # Panics
    ///
    /// The command is refused.
    pub fn execute(&mut self, command: &str, arguments: &Value) -> Value {
        let result = self.try_execute(command, arguments);
        result.unwrap_or_else(|error| panic!("{command}: {error}"))
    }

    /// Runs a command that may be refused.
    pub fn try_execute(&mut self, command: &str, arguments: &Value) -> Result<Value, Value> {
        self.send(command, arguments);
        self.result()
    }

    /// Sends a command without waiting for its result.
    pub fn send(&mut self, command: &str, arguments: &Value) {
        let request = json!({ "execute": command, "arguments": arguments });
        writeln!(self.socket.get_mut(), "{request}").expect("the monitor reads");
    }

    /// Returns the major and the minor version of this QEMU.
    pub fn version(&mut self) -> (u64, u64) {
        let version = self.execute("query-version", &json!({}))["qemu"].take();
        let number = |part: &str| version[part].as_u64().expect("a number");
        (number("major"), number("minor"))
    }

    /// Runs a command that comes with a descriptor.
    ///
    /// # Panics
    ///
    /// The command is refused.
    pub fn execute_with(&mut self, command: &str, arguments: &Value, fd: &impl AsRawFd) -> Value {
        let request = json!({ "execute": command, "arguments": arguments }).to_string();
        let sent = self
            .socket
            .get_ref()
            .send_with_fd(request.as_bytes(), fd.as_raw_fd());
        assert_eq!(sent.expect("the monitor reads"), request.len());
        self.result().unwrap_or_else(|error| panic!("{command}: {error}"))
    }

    fn result(&mut self) -> Result<Value, Value> {
        loop {
            let mut answer = self.next();
            if let Some(error) = answer.get_mut("error") {
                return Err(error.take());
            }
            if let Some(result) = answer.get_mut("return") {
                return Ok(result.take());
            }
        }
    }

    /// Waits for an event. Drops others.
    pub fn event(&mut self, name: &str) -> Value {
        loop {
            let line = self.next();
            if line["event"] == name {
                return line;
            }
        }
    }

    fn next(&mut self) -> Value {
        let mut line = String::new();
        self.socket
            .read_line(&mut line)
            .expect("the monitor answers in time");
        serde_json::from_str(&line).expect("the monitor speaks JSON")
    }
}

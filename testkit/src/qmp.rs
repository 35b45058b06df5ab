//! QEMU's control socket.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use serde_json::{Value, json};

use crate::process::{DEADLINE, wait_for};

/// A connection to QEMU's monitor.
pub struct Qmp {
    socket: BufReader<UnixStream>,
}

impl Qmp {
    /// Connects as soon as QEMU listens, and leaves negotiation mode.
    pub fn connect(path: &Path) -> Self {
        let socket = wait_for("QEMU's monitor", || UnixStream::connect(path).ok());
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
    /// QEMU refuses the command.
    pub fn execute(&mut self, command: &str, arguments: &Value) -> Value {
        let request = json!({ "execute": command, "arguments": arguments });
        writeln!(self.socket.get_mut(), "{request}").expect("QEMU runs");
        loop {
            let mut answer = self.next();
            assert!(answer.get("error").is_none(), "{command}: {answer}");
            if let Some(result) = answer.get_mut("return") {
                return result.take();
            }
        }
    }

    fn next(&mut self) -> Value {
        let mut line = String::new();
        self.socket.read_line(&mut line).expect("QEMU answers in time");
        serde_json::from_str(&line).expect("QEMU speaks JSON")
    }
}

//! A client that sees each line, and can send incomplete lines.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use serde_json::{Value, json};

use testkit::process::DEADLINE;

/// A connection to a monitor.
pub(crate) struct Client {
    socket: BufReader<UnixStream>,
    /// Shows the events that only this daemon has, too.
    pub(crate) sees_own_events: bool,
}

impl Client {
    /// Connects. Returns the client and the greeting.
    pub(crate) fn greeted(path: &Path) -> (Self, Value) {
        Self::on(UnixStream::connect(path).expect("the monitor listens"))
    }

    /// Takes a new connection. Returns the client and the greeting.
    fn on(socket: UnixStream) -> (Self, Value) {
        socket.set_read_timeout(Some(DEADLINE)).expect("not zero");
        let mut client = Self {
            socket: BufReader::new(socket),
            sees_own_events: false,
        };
        let greeting = client.next();
        (client, greeting)
    }

    /// Connects and negotiates.
    pub(crate) fn connect(path: &Path) -> Self {
        Self::negotiate(UnixStream::connect(path).expect("the monitor listens"))
    }

    /// Takes a new connection and negotiates.
    pub(crate) fn negotiate(socket: UnixStream) -> Self {
        let (mut client, _) = Self::on(socket);
        assert_eq!(
            client.ask(&json!({"execute": "qmp_capabilities"})),
            json!({"return": {}})
        );
        client
    }

    pub(crate) fn socket(&self) -> &UnixStream {
        self.socket.get_ref()
    }

    pub(crate) fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.socket
            .get_mut()
            .write_all(bytes.as_ref())
            .expect("the monitor reads");
    }

    /// Returns the next line.
    ///
    /// # Panics
    /// The connection has ended.
    pub(crate) fn next(&mut self) -> Value {
        self.try_next().expect("the connection has not ended")
    }

    /// Returns the next line, or `None` at the end.
    pub(crate) fn try_next(&mut self) -> Option<Value> {
        loop {
            let line = self.line()?;
            let own = line["event"].as_str().is_some_and(|name| name.starts_with("__"));
            if self.sees_own_events || !own {
                return Some(line);
            }
        }
    }

    fn line(&mut self) -> Option<Value> {
        let mut line = String::new();
        match self.socket.read_line(&mut line) {
            Ok(0) => None,
            Ok(_) => Some(serde_json::from_str(&line).expect("the monitor speaks JSON")),
            // The other end was closed while data from here was unread.
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => None,
            Err(error) => panic!("the monitor answers in time: {error}"),
        }
    }

    /// Sends a message and returns the next line.
    pub(crate) fn ask(&mut self, message: &Value) -> Value {
        self.send(format!("{message}\n"));
        self.next()
    }

    /// Runs a command and returns its result. Events before the result are dropped.
    ///
    /// # Panics
    /// The command is refused.
    pub(crate) fn run(&mut self, command: &str, arguments: &Value) -> Value {
        let mut answer = self.answer(command, arguments);
        assert!(answer.get("error").is_none(), "{command}: {answer}");
        answer["return"].take()
    }

    /// Runs a command that is refused. Returns the class and the description.
    ///
    /// # Panics
    /// The command is not refused.
    pub(crate) fn refusal(&mut self, command: &str, arguments: &Value) -> (String, String) {
        let answer = self.answer(command, arguments);
        let text = |key| answer["error"][key].as_str().map(str::to_owned);
        match (text("class"), text("desc")) {
            (Some(class), Some(desc)) => (class, desc),
            _ => panic!("{command} was not refused: {answer}"),
        }
    }

    fn answer(&mut self, command: &str, arguments: &Value) -> Value {
        let mut line = self.ask(&json!({"execute": command, "arguments": arguments}));
        while line.get("event").is_some() {
            line = self.next();
        }
        line
    }

    /// Reads until the monitor closes the connection. Returns the number of bytes.
    pub(crate) fn drain(&mut self) -> usize {
        let mut bytes = Vec::new();
        // If the other end had unread data, the connection ends with a reset.
        let _ = self.socket.read_to_end(&mut bytes);
        bytes.len()
    }
}

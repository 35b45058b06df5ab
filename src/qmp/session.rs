//! The state of a client between two commands. Turns messages into requests, and outcomes into answers.

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::OwnedFd;

use serde_json::{Map, Value, json};

use super::error::{ErrorClass, Outcome, QmpError};

/// Maximum number of named descriptors of a client.
const MAX_NAMED: usize = 64;

/// The state of one client.
#[derive(Debug, Default)]
pub(super) struct Session {
    /// True after negotiation: commands are accepted, and events are sent.
    pub(super) negotiated: bool,
    /// The descriptors that came with the latest message that had any. Commands take them from here.
    pub(super) passed: VecDeque<OwnedFd>,
    /// The descriptors that the client has named.
    named: BTreeMap<String, OwnedFd>,
}

impl Session {
    /// Takes the first of the passed descriptors.
    pub(super) fn take_passed(&mut self) -> Result<OwnedFd, QmpError> {
        let none = || QmpError::generic("No file descriptor came with this message (SCM_RIGHTS)");
        self.passed.pop_front().ok_or_else(none)
    }

    /// Names a descriptor. Closes another descriptor with that name.
    pub(super) fn name(&mut self, name: &str, fd: OwnedFd) -> Result<(), QmpError> {
        // A leading digit could be mistaken for the number of a descriptor.
        if name.starts_with(|first: char| first.is_ascii_digit()) {
            return Err(QmpError::expects("fdname", "a name not starting with a digit"));
        }
        if self.named.len() >= MAX_NAMED && !self.named.contains_key(name) {
            return Err(QmpError::generic(format!(
                "This client has named {MAX_NAMED} descriptors already"
            )));
        }
        self.named.insert(name.to_owned(), fd);
        Ok(())
    }

    /// Takes the descriptor with this name.
    pub(super) fn take_named(&mut self, name: &str) -> Result<OwnedFd, QmpError> {
        let unknown = || QmpError::generic(format!("File descriptor named '{name}' not found"));
        self.named.remove(name).ok_or_else(unknown)
    }
}

/// A command from the client, whose arguments are not checked yet.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) command: String,
    pub(super) arguments: Map<String, Value>,
}

/// Splits a message into its id and the request, or the reason why it is not a request.
pub(super) fn parse(mut message: Map<String, Value>) -> (Option<Value>, Result<Request, QmpError>) {
    let id = message.remove("id");
    (id, request(message))
}

fn request(mut message: Map<String, Value>) -> Result<Request, QmpError> {
    let wrong = |member, must_be| QmpError::generic(format!("QMP input member '{member}' must be {must_be}"));
    let command = message.remove("execute");
    let arguments = message.remove("arguments");
    if let Some(member) = message.keys().next() {
        return Err(QmpError::generic(format!(
            "QMP input member '{member}' is unexpected"
        )));
    }
    let command = match command {
        Some(Value::String(command)) => command,
        Some(_) => return Err(wrong("execute", "a string")),
        None => return Err(QmpError::generic("QMP input member 'execute' is missing")),
    };
    let arguments = match arguments {
        Some(Value::Object(arguments)) => arguments,
        Some(_) => return Err(wrong("arguments", "an object")),
        None => Map::new(),
    };
    Ok(Request { command, arguments })
}

/// Makes the answer to a message.
pub(super) fn answer(id: Option<Value>, outcome: Outcome) -> Value {
    let mut answer = match outcome {
        Ok(result) => json!({"return": result}),
        Err(QmpError { class, desc }) => json!({"error": {"class": class.to_string(), "desc": desc}}),
    };
    if let Some(id) = id {
        answer["id"] = id;
    }
    answer
}

/// Refuses a command that does not fit the mode of the connection.
pub(super) fn check_mode(command: &str, negotiated: bool) -> Result<(), QmpError> {
    let refusal = match (command == "qmp_capabilities", negotiated) {
        (false, false) => "Negotiate capabilities first, with 'qmp_capabilities'",
        (true, true) => "Capabilities are negotiated already; this command was ignored",
        _ => return Ok(()),
    };
    Err(QmpError::new(ErrorClass::CommandNotFound, refusal))
}

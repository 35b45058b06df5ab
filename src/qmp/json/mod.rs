//! Splits a stream into JSON messages, parses them strictly, and writes values with QEMU's spacing.
//!
//! The stream comes from a client, so everything is bounded: the length of a message, its nesting, and the number of
//! errors that garbage causes. After an error, input is skipped up to a place where a new message may start. An ASCII
//! control character (other than a tab) or one of the bytes 0xFE and 0xFF ends the current message or error at once. So
//! a client can always reach a known state.

use std::io::{self, Write};

use serde::ser::Serialize;
use serde_json::ser::Formatter;
use serde_json::{Map, Value};

use crate::strict_json::Strict;

/// Maximum length of a message. Commands are far shorter.
const MAX_LENGTH: usize = 1 << 20;
/// Maximum nesting of arrays and objects. The parser's own limit is 128.
const MAX_DEPTH: u32 = 100;

/// The reason why input is not a message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum SyntaxError {
    #[error("JSON parse error, stray byte 0x{0:02x}")]
    Stray(u8),
    #[error("JSON parse error, {0}")]
    Parse(String),
    #[error("JSON parse error, more than {MAX_DEPTH} levels of nesting")]
    TooDeep,
    #[error("JSON parse error, message longer than {MAX_LENGTH} bytes")]
    TooLong,
    #[error("QMP input must be a JSON object")]
    NotAnObject,
}

/// Splits a stream of bytes into messages.
#[derive(Debug, Default)]
pub(super) struct Framer {
    /// The message so far. Strings in single quotes, which QEMU accepts, have been converted to double quotes.
    text: Vec<u8>,
    depth: u32,
    state: State,
}

#[derive(Clone, Copy, Debug, Default)]
enum State {
    /// Between two messages.
    #[default]
    Between,
    /// In a message, but not in a string.
    Inside,
    /// In a string that this quote ends.
    String(u8),
    /// After a backslash in such a string.
    Escape(u8),
    /// After an error: skips input up to `{` or a control character.
    Recovering,
    /// After input that exceeds a limit: skips it up to a control character.
    Skipping,
}

impl Framer {
    /// Adds a byte. Returns a message or an error if the byte completes one.
    pub(super) fn push(&mut self, byte: u8) -> Option<Result<Map<String, Value>, SyntaxError>> {
        let control = is_reset(byte);
        match self.state {
            State::Between => self.start(byte),
            State::Recovering if byte == b'{' => self.start(byte),
            State::Recovering | State::Skipping => {
                if control {
                    self.state = State::Between;
                }
                None
            }
            State::Inside => self.inside(byte),
            State::String(_) | State::Escape(_) if control || byte == b'\t' => {
                self.fail(SyntaxError::Stray(byte), control)
            }
            State::String(quote) => self.in_string(quote, byte),
            State::Escape(quote) => {
                self.state = State::String(quote);
                match byte {
                    b'\'' => self.keep(b"'"),
                    _ => self.keep(&[b'\\', byte]),
                }
            }
        }
    }

    fn start(&mut self, byte: u8) -> Option<Result<Map<String, Value>, SyntaxError>> {
        match byte {
            b' ' | b'\t' | b'\r' | b'\n' => None,
            b'{' | b'[' => {
                self.state = State::Inside;
                self.inside(byte)
            }
            b'0'..=b'9' | b'-' | b'"' | b'\'' => self.fail(SyntaxError::NotAnObject, false),
            _ => self.fail(SyntaxError::Stray(byte), is_reset(byte)),
        }
    }

    fn inside(&mut self, byte: u8) -> Option<Result<Map<String, Value>, SyntaxError>> {
        match byte {
            b'{' | b'[' => {
                self.depth += 1;
                if self.depth > MAX_DEPTH {
                    return self.exceed(SyntaxError::TooDeep);
                }
            }
            b'}' | b']' => {
                self.depth -= 1;
                if self.depth == 0 {
                    self.text.push(byte);
                    return Some(self.take());
                }
            }
            b'"' | b'\'' => {
                self.state = State::String(byte);
                return self.keep(b"\"");
            }
            b'\t' | b'\r' | b'\n' | 0x20..0xfe => {}
            _ => return self.fail(SyntaxError::Stray(byte), true),
        }
        self.keep(&[byte])
    }

    fn in_string(&mut self, quote: u8, byte: u8) -> Option<Result<Map<String, Value>, SyntaxError>> {
        if byte == quote {
            self.state = State::Inside;
            return self.keep(b"\"");
        }
        match byte {
            b'\\' => {
                self.state = State::Escape(quote);
                None
            }
            b'"' => self.keep(b"\\\""),
            _ => self.keep(&[byte]),
        }
    }

    fn keep(&mut self, bytes: &[u8]) -> Option<Result<Map<String, Value>, SyntaxError>> {
        if self.text.len() + bytes.len() > MAX_LENGTH {
            return self.exceed(SyntaxError::TooLong);
        }
        self.text.extend_from_slice(bytes);
        None
    }

    /// Parses the complete message.
    fn take(&mut self) -> Result<Map<String, Value>, SyntaxError> {
        let text = std::mem::take(self).text;
        match serde_json::from_slice(&text) {
            Ok(Strict(Value::Object(message))) => Ok(message),
            Ok(Strict(_)) => Err(SyntaxError::NotAnObject),
            Err(error) => Err(SyntaxError::Parse(error.to_string())),
        }
    }

    /// Discards the message. `known` is true if the offending byte itself already ends the recovery.
    fn fail(&mut self, error: SyntaxError, known: bool) -> Option<Result<Map<String, Value>, SyntaxError>> {
        *self = Self::default();
        self.state = match known {
            true => State::Between,
            false => State::Recovering,
        };
        Some(Err(error))
    }

    fn exceed(&mut self, error: SyntaxError) -> Option<Result<Map<String, Value>, SyntaxError>> {
        *self = Self::default();
        self.state = State::Skipping;
        Some(Err(error))
    }
}

/// Returns whether a byte ends a message or an error in any state.
fn is_reset(byte: u8) -> bool {
    byte >= 0xfe || (byte < 0x20 && byte != b'\t')
}

/// Parses a text that is one JSON object, with the rules of messages. Strings may have single quotes.
///
/// # Errors
/// The text is no object, or has more after the object than spaces.
pub fn parse_object(text: &str) -> Result<Map<String, Value>, String> {
    let mut framer = Framer::default();
    let mut bytes = text.bytes();
    let object = bytes.find_map(|byte| framer.push(byte));
    let object = object.ok_or("the end is missing")?;
    let object = object.map_err(|error| error.to_string())?;
    match bytes.all(|byte| byte.is_ascii_whitespace()) {
        true => Ok(object),
        false => Err("text after the end of the object".to_owned()),
    }
}

/// Writes a value on one line, spaced like QEMU's output, because scripts search for texts such as `"return": {}`.
pub(super) fn to_line(value: &Value) -> Vec<u8> {
    let mut line = Vec::new();
    let mut serializer = serde_json::Serializer::with_formatter(&mut line, Spaced);
    value
        .serialize(&mut serializer)
        .expect("a value has only text keys, and memory takes all of it");
    line.extend_from_slice(b"\r\n");
    line
}

/// A formatter that puts spaces after commas and colons.
struct Spaced;

impl Formatter for Spaced {
    fn begin_array_value<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        separate(writer, first)
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        separate(writer, first)
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b": ")
    }
}

fn separate<W: ?Sized + Write>(writer: &mut W, first: bool) -> io::Result<()> {
    match first {
        true => Ok(()),
        false => writer.write_all(b", "),
    }
}

#[cfg(test)]
mod tests;

//! Options of the handshake, and the answers to them. Lengths from the server are limited before anything is allocated.

use std::io::{Read, Write};

use super::handshake_error::HandshakeError;
use super::wire::{self, u32_at, u64_at};

/// The longest answer to an option.
const ANSWER_MAX: u32 = 64 << 10;

/// Sends an option.
pub(super) fn send(stream: &mut impl Write, option: u32, data: &[u8]) -> Result<(), HandshakeError> {
    let mut message = wire::OPTION_MAGIC.to_be_bytes().to_vec();
    message.extend(option.to_be_bytes());
    let len = u32::try_from(data.len()).map_err(|_| HandshakeError::LongName)?;
    message.extend(len.to_be_bytes());
    message.extend(data);
    Ok(stream.write_all(&message)?)
}

/// An answer to an option.
pub(super) struct Answer {
    pub(super) kind: u32,
    pub(super) data: Vec<u8>,
}

/// Reads the next answer to an option.
pub(super) fn answer(stream: &mut impl Read, option: u32) -> Result<Answer, HandshakeError> {
    let header = bytes::<20>(stream)?;
    if u64_at(&header, 0) != wire::OPTION_REPLY_MAGIC || u32_at(&header, 8) != option {
        return Err(HandshakeError::Protocol("an answer to another question"));
    }
    let len = u32_at(&header, 16);
    if len > ANSWER_MAX {
        return Err(HandshakeError::Protocol("an answer that is too long"));
    }
    let mut data = vec![0; len as usize];
    stream.read_exact(&mut data)?;
    Ok(Answer {
        kind: u32_at(&header, 12),
        data,
    })
}

/// Reads this many bytes.
pub(super) fn bytes<const N: usize>(stream: &mut impl Read) -> Result<[u8; N], HandshakeError> {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}

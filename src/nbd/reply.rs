//! Replies of the server, one header at a time.
//!
//! A header is decoded once its fixed part is there. The data of a read follows it in the stream, and the caller moves
//! it to its place. Whatever the server says is checked against the request that it answers: a wrong cookie, a length
//! that is not the request's, or data outside its range end the connection.

use super::export::Replies;
use super::wire::{self, u16_at, u32_at, u64_at};

/// Length of the longest fixed part of a reply.
pub const HEADER_MAX: usize = 32 + 12;
/// The longest text of an error that is skipped.
const TEXT_MAX: u64 = 64 << 10;

/// The answer that a request needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expected {
    /// The answer is data: the first byte of the read and its length. `None` for other requests.
    pub read: Option<(u64, u32)>,
}

/// A part of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// `len` bytes for the read follow, which belong to byte `at` of its memory. `last`: they end the answer.
    Data {
        /// The request.
        cookie: u64,
        /// Distance from the first byte of the read.
        at: u32,
        /// Number of bytes.
        len: u32,
        /// The answer ends with these bytes.
        last: bool,
    },
    /// `len` bytes of the read, from byte `at` on, are zero.
    Hole {
        /// The request.
        cookie: u64,
        /// Distance from the first byte of the read.
        at: u32,
        /// Number of bytes.
        len: u32,
        /// The answer ends here.
        last: bool,
    },
    /// The request has failed with this error number of the protocol. `skip` bytes of no interest follow.
    Error {
        /// The request.
        cookie: u64,
        /// The number.
        error: u32,
        /// Number of bytes to skip.
        skip: u32,
        /// The answer ends here.
        last: bool,
    },
    /// The answer ends here.
    Done {
        /// The request.
        cookie: u64,
    },
}

/// The result of a look at the next bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decoded {
    /// This many bytes are needed in all.
    More(usize),
    /// A header of this length.
    Header(usize, Event),
}

/// A violation of the protocol. The connection cannot be used any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum ProtocolError {
    #[error("the server sent {0:#x} where a reply begins")]
    Magic(u32),
    #[error("the server answered a request that was not sent")]
    Cookie,
    #[error("the server sent a reply of an unknown type, {0}")]
    Type(u16),
    #[error("the server sent a reply with the wrong length")]
    Length,
    #[error("the server sent data outside the range of the read")]
    Range,
    #[error("the server sent data in answer to another request than a read")]
    NotARead,
    #[error("the server sent less or more data than the read asked for")]
    Amount,
    #[error("the server sent a part of a read twice")]
    Overlap,
    #[error("the server sent a read in too many separate parts")]
    Parts,
}

/// Decodes the header at the start of `bytes`. `find` returns what is expected in answer to a request, or `None` if
/// there is no such request.
///
/// # Errors
/// The server violates the protocol.
pub fn decode(
    bytes: &[u8],
    replies: Replies,
    find: impl FnOnce(u64) -> Option<Expected>,
) -> Result<Decoded, ProtocolError> {
    if bytes.len() < 4 {
        return Ok(Decoded::More(16));
    }
    match (u32_at(bytes, 0), replies) {
        (wire::SIMPLE_REPLY_MAGIC, Replies::Simple | Replies::Structured) => simple(bytes, replies, find),
        (wire::STRUCTURED_REPLY_MAGIC, Replies::Structured) => chunk(bytes, 20, find),
        (wire::EXTENDED_REPLY_MAGIC, Replies::Extended) => chunk(bytes, 32, find),
        (magic, _) => Err(ProtocolError::Magic(magic)),
    }
}

fn simple(
    bytes: &[u8],
    replies: Replies,
    find: impl FnOnce(u64) -> Option<Expected>,
) -> Result<Decoded, ProtocolError> {
    const LEN: usize = 16;
    if bytes.len() < LEN {
        return Ok(Decoded::More(LEN));
    }
    let (error, cookie) = (u32_at(bytes, 4), u64_at(bytes, 8));
    let expected = find(cookie).ok_or(ProtocolError::Cookie)?;
    let event = match (error, expected.read) {
        // A server that has agreed to chunks must use them for reads.
        (0, Some(_)) if replies == Replies::Structured => {
            return Err(ProtocolError::Magic(wire::SIMPLE_REPLY_MAGIC));
        }
        (0, Some((_, len))) => Event::Data {
            cookie,
            at: 0,
            len,
            last: true,
        },
        (0, None) => Event::Done { cookie },
        (error, _) => Event::Error {
            cookie,
            error,
            skip: 0,
            last: true,
        },
    };
    Ok(Decoded::Header(LEN, event))
}

fn chunk(
    bytes: &[u8],
    header: usize,
    find: impl FnOnce(u64) -> Option<Expected>,
) -> Result<Decoded, ProtocolError> {
    if bytes.len() < header {
        return Ok(Decoded::More(header));
    }
    let (flags, kind, cookie) = (u16_at(bytes, 4), u16_at(bytes, 6), u64_at(bytes, 8));
    let len = match header {
        20 => u64::from(u32_at(bytes, 16)),
        _ => u64_at(bytes, 24),
    };
    let expected = find(cookie).ok_or(ProtocolError::Cookie)?;
    let last = flags & wire::REPLY_FLAG_DONE != 0;
    let (fixed, range) = match kind {
        wire::REPLY_NONE if len == 0 && last => return Ok(Decoded::Header(header, Event::Done { cookie })),
        wire::REPLY_NONE => return Err(ProtocolError::Length),
        wire::REPLY_OFFSET_DATA => (8, 9..=8 + u64::from(u32::MAX)),
        wire::REPLY_OFFSET_HOLE => (12, 12..=12),
        kind if kind & wire::REPLY_ERROR_BIT != 0 => (6, 6..=TEXT_MAX),
        kind => return Err(ProtocolError::Type(kind)),
    };
    if !range.contains(&len) {
        return Err(ProtocolError::Length);
    }
    if bytes.len() < header + fixed {
        return Ok(Decoded::More(header + fixed));
    }
    let payload = &bytes[header..];
    let event = match kind {
        wire::REPLY_OFFSET_DATA => {
            let (at, len) = place(expected, u64_at(payload, 0), len - 8)?;
            Event::Data {
                cookie,
                at,
                len,
                last,
            }
        }
        wire::REPLY_OFFSET_HOLE => {
            let (at, len) = place(expected, u64_at(payload, 0), u32_at(payload, 8).into())?;
            Event::Hole {
                cookie,
                at,
                len,
                last,
            }
        }
        _ => error(payload, len, cookie, last)?,
    };
    Ok(Decoded::Header(header + fixed, event))
}

/// Decodes a chunk that says that the request has failed.
fn error(payload: &[u8], len: u64, cookie: u64, last: bool) -> Result<Event, ProtocolError> {
    let error = u32_at(payload, 0);
    let skip = u32::try_from(len - 6).map_err(|_| ProtocolError::Length)?;
    if error == 0 || u32::from(u16_at(payload, 4)) > skip {
        return Err(ProtocolError::Length);
    }
    Ok(Event::Error {
        cookie,
        error,
        skip,
        last,
    })
}

/// Returns the place of data in the memory of its read.
fn place(expected: Expected, offset: u64, len: u64) -> Result<(u32, u32), ProtocolError> {
    let (first, whole) = expected.read.ok_or(ProtocolError::NotARead)?;
    let at = offset.checked_sub(first).ok_or(ProtocolError::Range)?;
    let end = at.checked_add(len).ok_or(ProtocolError::Range)?;
    if len == 0 || end > u64::from(whole) {
        return Err(ProtocolError::Range);
    }
    let [at, len] = [at, len].map(u32::try_from);
    match (at, len) {
        (Ok(at), Ok(len)) => Ok((at, len)),
        _ => Err(ProtocolError::Range),
    }
}

/// Returns the error of the operating system for a number of the protocol, which has numbers of its own.
pub fn error_of(number: u32) -> i32 {
    match number {
        1 => libc::EPERM,
        12 => libc::ENOMEM,
        22 => libc::EINVAL,
        28 => libc::ENOSPC,
        75 => libc::EOVERFLOW,
        95 => libc::EOPNOTSUPP,
        108 => libc::ESHUTDOWN,
        _ => libc::EIO,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const READ: Expected = Expected {
        read: Some((4096, 1024)),
    };
    const OTHER: Expected = Expected { read: None };

    /// Cookie 1 is a read, cookie 2 another request.
    fn find(cookie: u64) -> Option<Expected> {
        match cookie {
            1 => Some(READ),
            2 => Some(OTHER),
            _ => None,
        }
    }

    fn simple_reply(error: u32, cookie: u64) -> Vec<u8> {
        let mut bytes = wire::SIMPLE_REPLY_MAGIC.to_be_bytes().to_vec();
        bytes.extend(error.to_be_bytes());
        bytes.extend(cookie.to_be_bytes());
        bytes
    }

    fn chunk_of(replies: Replies, flags: u16, kind: u16, cookie: u64, payload: &[u8]) -> Vec<u8> {
        let magic = match replies {
            Replies::Extended => wire::EXTENDED_REPLY_MAGIC,
            _ => wire::STRUCTURED_REPLY_MAGIC,
        };
        let mut bytes = magic.to_be_bytes().to_vec();
        bytes.extend(flags.to_be_bytes());
        bytes.extend(kind.to_be_bytes());
        bytes.extend(cookie.to_be_bytes());
        let len = u32::try_from(payload.len()).expect("short");
        if replies == Replies::Extended {
            bytes.extend(4096_u64.to_be_bytes());
            bytes.extend([0; 4]);
        }
        bytes.extend(len.to_be_bytes());
        bytes.extend(payload);
        bytes
    }

    fn data(offset: u64, len: usize) -> Vec<u8> {
        let mut payload = offset.to_be_bytes().to_vec();
        payload.resize(8 + len, 7);
        payload
    }

    fn hole(offset: u64, len: u32) -> Vec<u8> {
        [&offset.to_be_bytes()[..], &len.to_be_bytes()].concat()
    }

    fn error_payload(error: u32, text_len: u16, text: &[u8]) -> Vec<u8> {
        [&error.to_be_bytes()[..], &text_len.to_be_bytes(), text].concat()
    }

    #[test]
    fn simple_replies_are_decoded() {
        let decoded = |bytes: &[u8]| decode(bytes, Replies::Simple, find);
        let data = Event::Data {
            cookie: 1,
            at: 0,
            len: 1024,
            last: true,
        };
        assert_eq!(decoded(&simple_reply(0, 1)), Ok(Decoded::Header(16, data)));
        let done = Event::Done { cookie: 2 };
        assert_eq!(decoded(&simple_reply(0, 2)), Ok(Decoded::Header(16, done)));
        let failed = Event::Error {
            cookie: 1,
            error: 5,
            skip: 0,
            last: true,
        };
        assert_eq!(decoded(&simple_reply(5, 1)), Ok(Decoded::Header(16, failed)));
        assert_eq!(decoded(&simple_reply(0, 3)), Err(ProtocolError::Cookie));
        for len in 0..16 {
            assert_eq!(decoded(&simple_reply(0, 1)[..len]), Ok(Decoded::More(16)));
        }
    }

    #[test]
    fn chunks_are_decoded_in_both_forms() {
        for (replies, header) in [(Replies::Structured, 20), (Replies::Extended, 32)] {
            let event = |flags, kind, cookie, payload: &[u8]| {
                decode(&chunk_of(replies, flags, kind, cookie, payload), replies, find)
            };
            let expected = Event::Data {
                cookie: 1,
                at: 24,
                len: 1000,
                last: false,
            };
            assert_eq!(
                event(0, 1, 1, &data(4120, 1000)),
                Ok(Decoded::Header(header + 8, expected))
            );
            let expected = Event::Hole {
                cookie: 1,
                at: 0,
                len: 1024,
                last: true,
            };
            assert_eq!(
                event(1, 2, 1, &hole(4096, 1024)),
                Ok(Decoded::Header(header + 12, expected))
            );
            let expected = Event::Error {
                cookie: 2,
                error: 28,
                skip: 4,
                last: true,
            };
            assert_eq!(
                event(1, 0x8001, 2, &error_payload(28, 4, b"full")),
                Ok(Decoded::Header(header + 6, expected))
            );
            let expected = Event::Done { cookie: 2 };
            assert_eq!(event(1, 0, 2, &[]), Ok(Decoded::Header(header, expected)));
        }
    }

    #[test]
    fn hostile_replies_are_refused() {
        use ProtocolError::{Cookie, Length, Magic, NotARead, Range, Type};
        let chunk = |flags, kind, cookie, payload: &[u8]| {
            let bytes = chunk_of(Replies::Structured, flags, kind, cookie, payload);
            decode(&bytes, Replies::Structured, find)
        };
        for (flags, kind, cookie, payload, expected) in [
            (1, 1, 3, data(4096, 8), Cookie),
            (1, 1, 2, data(4096, 8), NotARead),
            (1, 2, 2, hole(4096, 8), NotARead),
            (1, 1, 1, data(4095, 8), Range),
            (1, 1, 1, data(4096, 1025), Range),
            (1, 1, 1, data(5120, 1), Range),
            (1, 1, 1, data(u64::MAX, 8), Range),
            (1, 2, 1, hole(4096, 1025), Range),
            (1, 2, 1, hole(4096, 0), Range),
            (1, 2, 1, hole(u64::MAX - 1, u32::MAX), Range),
            (1, 1, 1, data(4096, 0), Length),
            (1, 2, 1, [hole(4096, 8), vec![0]].concat(), Length),
            (1, 0, 1, vec![0], Length),
            (0, 0, 1, vec![], Length),
            (1, 0x8001, 1, error_payload(5, 9, b"short"), Length),
            (1, 0x8001, 1, error_payload(0, 0, b""), Length),
            (1, 5, 1, vec![0; 16], Type(5)),
        ] {
            assert_eq!(
                chunk(flags, kind, cookie, &payload),
                Err(expected),
                "{kind} {payload:?}"
            );
        }
        let mut endless = chunk_of(Replies::Structured, 0, 0x8001, 1, &error_payload(5, 0, b""));
        endless[16..20].copy_from_slice(&u32::MAX.to_be_bytes());
        assert_eq!(decode(&endless, Replies::Structured, find), Err(Length));
        let simple = simple_reply(0, 1);
        let magic = Err(Magic(wire::SIMPLE_REPLY_MAGIC));
        assert_eq!(decode(&simple, Replies::Structured, find), magic);
        assert_eq!(decode(&simple, Replies::Extended, find), magic);
        let chunk = chunk_of(Replies::Structured, 1, 0, 2, &[]);
        assert_eq!(
            decode(&chunk, Replies::Simple, find),
            Err(Magic(wire::STRUCTURED_REPLY_MAGIC))
        );
    }

    #[test]
    fn a_header_is_decoded_when_it_is_whole() {
        for replies in [Replies::Structured, Replies::Extended] {
            let bytes = chunk_of(replies, 1, 2, 1, &hole(4096, 8));
            for len in 0..bytes.len() {
                let Ok(Decoded::More(needed)) = decode(&bytes[..len], replies, find) else {
                    panic!("{len}");
                };
                assert!(needed > len && needed <= HEADER_MAX);
            }
            assert!(matches!(decode(&bytes, replies, find), Ok(Decoded::Header(..))));
        }
    }
}

//! The handshake: fixed newstyle, with older servers as far as they have exports with names.
//!
//! It runs before there is any data of a guest, on a stream that the caller has given a timeout. Lengths from the server
//! are limited before anything is allocated, and so is the number of its answers.

use std::io::{Read, Write};

use super::address::EXPORT_MAX;
use super::export::{Export, Replies};
use super::handshake_error::HandshakeError;
use super::option::{Answer, answer, bytes, send};
use super::wire::{self, u16_at, u32_at, u64_at};

/// The largest number of answers to one option.
const ANSWERS_MAX: usize = 64;

/// The server's part of the greetings.
#[derive(Clone, Copy, Debug)]
pub struct Greeting(u16);

/// Negotiates the use of an export with the server at the other end of `stream`, without TLS. Afterwards the stream is
/// ready for requests, and not a byte too much was read.
///
/// # Errors
/// The server refuses, violates the protocol, or needs something that this client lacks.
pub fn negotiate(stream: &mut (impl Read + Write), name: &str) -> Result<Export, HandshakeError> {
    let greeting = greet(stream)?;
    choose_export(stream, greeting, name)
}

/// Negotiates the use of an export after the greetings, and after the start of TLS if there is TLS.
///
/// # Errors
/// As [`negotiate`].
pub fn choose_export(
    stream: &mut (impl Read + Write),
    Greeting(flags): Greeting,
    name: &str,
) -> Result<Export, HandshakeError> {
    if name.len() > EXPORT_MAX {
        return Err(HandshakeError::LongName);
    }
    if flags & wire::FIXED_NEWSTYLE == 0 {
        return choose_by_name(stream, name, flags, Replies::Simple);
    }
    let replies = choose_replies(stream)?;
    match choose(stream, name, replies)? {
        Some(export) => Ok(export),
        None => choose_by_name(stream, name, flags, replies),
    }
}

/// Asks for TLS. The handshake of TLS begins with the next byte in both directions.
///
/// # Errors
/// The server has no TLS, or violates the protocol.
pub fn start_tls(stream: &mut (impl Read + Write), Greeting(flags): Greeting) -> Result<(), HandshakeError> {
    if flags & wire::FIXED_NEWSTYLE == 0 {
        return Err(HandshakeError::NoTls);
    }
    send(stream, wire::OPT_STARTTLS, &[])?;
    match answer(stream, wire::OPT_STARTTLS)?.kind {
        wire::REP_ACK => Ok(()),
        wire::REP_ERR_UNSUP => Err(HandshakeError::NoTls),
        // qemu-nbd without credentials.
        wire::REP_ERR_POLICY => Err(HandshakeError::TlsRefused("its policy forbids it")),
        kind if kind & wire::REP_ERROR != 0 => Err(HandshakeError::TlsRefused("it gives no known reason")),
        _ => Err(HandshakeError::Protocol("an answer without a question")),
    }
}

/// Exchanges the greetings.
///
/// # Errors
/// The other end is no server of this protocol, or an old one.
pub fn greet(stream: &mut (impl Read + Write)) -> Result<Greeting, HandshakeError> {
    if u64_at(&bytes::<8>(stream)?, 0) != wire::INIT_MAGIC {
        return Err(HandshakeError::NotNbd);
    }
    match u64_at(&bytes::<8>(stream)?, 0) {
        wire::OPTION_MAGIC => {}
        wire::OLDSTYLE_MAGIC => return Err(HandshakeError::OldStyle),
        _ => return Err(HandshakeError::NotNbd),
    }
    let flags = u16_at(&bytes::<2>(stream)?, 0);
    let known = flags & (wire::FIXED_NEWSTYLE | wire::NO_ZEROES);
    stream.write_all(&u32::from(known).to_be_bytes())?;
    Ok(Greeting(flags))
}

/// Negotiates the best form of replies.
fn choose_replies(stream: &mut (impl Read + Write)) -> Result<Replies, HandshakeError> {
    for (option, replies) in [
        (wire::OPT_EXTENDED_HEADERS, Replies::Extended),
        (wire::OPT_STRUCTURED_REPLY, Replies::Structured),
    ] {
        send(stream, option, &[])?;
        match answer(stream, option)? {
            Answer {
                kind: wire::REP_ACK, ..
            } => return Ok(replies),
            Answer { kind, .. } if kind & wire::REP_ERROR == 0 => {
                return Err(HandshakeError::Protocol("an answer without a question"));
            }
            Answer {
                kind: wire::REP_ERR_TLS_REQD,
                ..
            } => return Err(HandshakeError::Tls),
            // Whatever the reason is, replies can be simpler.
            Answer { .. } => {}
        }
    }
    Ok(Replies::Simple)
}

/// Chooses an export. Returns `None` if the server is too old for this option.
fn choose(
    stream: &mut (impl Read + Write),
    name: &str,
    replies: Replies,
) -> Result<Option<Export>, HandshakeError> {
    let len = u32::try_from(name.len()).map_err(|_| HandshakeError::LongName)?;
    let mut data = len.to_be_bytes().to_vec();
    data.extend(name.as_bytes());
    data.extend(1_u16.to_be_bytes());
    data.extend(wire::INFO_BLOCK_SIZE.to_be_bytes());
    send(stream, wire::OPT_GO, &data)?;
    let (mut export, mut blocks) = (None, None);
    for _ in 0..ANSWERS_MAX {
        let Answer { kind, data } = answer(stream, wire::OPT_GO)?;
        match kind {
            wire::REP_ACK => {
                let export: Export = export.ok_or(HandshakeError::Protocol("an export without a size"))?;
                let Some((min, preferred, max)) = blocks else {
                    return Ok(Some(export));
                };
                let export = export.with_blocks(min, preferred, max);
                return export
                    .map(Some)
                    .ok_or(HandshakeError::Protocol("impossible block sizes"));
            }
            wire::REP_INFO if data.len() < 2 => return Err(HandshakeError::Protocol("a short answer")),
            wire::REP_INFO => match (u16_at(&data, 0), data.len()) {
                (wire::INFO_EXPORT, 12) => {
                    export = Some(export_of(u64_at(&data, 2), u16_at(&data, 10), replies)?);
                }
                (wire::INFO_BLOCK_SIZE, 14) => {
                    blocks = Some((u32_at(&data, 2), u32_at(&data, 6), u32_at(&data, 10)));
                }
                (wire::INFO_EXPORT | wire::INFO_BLOCK_SIZE, _) => {
                    return Err(HandshakeError::Protocol("an answer with the wrong length"));
                }
                _ => {}
            },
            wire::REP_ERR_UNSUP => return Ok(None),
            kind if kind & wire::REP_ERROR != 0 => return Err(refusal(kind, name, &data)),
            _ => return Err(HandshakeError::Protocol("an answer without a question")),
        }
    }
    Err(HandshakeError::Protocol("endless answers"))
}

/// Chooses an export with the option that every server with a newstyle handshake has.
fn choose_by_name(
    stream: &mut (impl Read + Write),
    name: &str,
    flags: u16,
    replies: Replies,
) -> Result<Export, HandshakeError> {
    send(stream, wire::OPT_EXPORT_NAME, name.as_bytes())?;
    let properties = bytes::<10>(stream).map_err(|error| match error {
        // There is no other answer to a name that the server does not know.
        HandshakeError::Closed => HandshakeError::ExportClosed(name.to_owned()),
        error => error,
    })?;
    let export = export_of(u64_at(&properties, 0), u16_at(&properties, 8), replies)?;
    if flags & wire::NO_ZEROES == 0 {
        bytes::<124>(stream)?;
    }
    Ok(export)
}

fn export_of(size: u64, flags: u16, replies: Replies) -> Result<Export, HandshakeError> {
    let export = Export::new(size, flags, replies);
    export.ok_or(HandshakeError::Protocol("an export of impossible size"))
}

fn refusal(kind: u32, name: &str, data: &[u8]) -> HandshakeError {
    let export = name.to_owned();
    let why = match kind {
        wire::REP_ERR_UNKNOWN => return HandshakeError::NoExport(export),
        wire::REP_ERR_TLS_REQD => return HandshakeError::Tls,
        wire::REP_ERR_POLICY => "its policy forbids it",
        wire::REP_ERR_INVALID => "it considers the request invalid",
        wire::REP_ERR_SHUTDOWN => "it is shutting down",
        _ => "it gives no known reason",
    };
    // The text is the server's: it stays short, on one line, and without control characters.
    let text = String::from_utf8_lossy(data);
    let text: String = text.chars().filter(|c| !c.is_control()).take(200).collect();
    let why = match text.is_empty() {
        true => why.to_owned(),
        false => format!("{why} ({text})"),
    };
    HandshakeError::Refused { export, why }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    /// A server that has said everything in advance.
    struct Script {
        says: io::Cursor<Vec<u8>>,
        heard: Vec<u8>,
    }

    impl Read for Script {
        fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
            self.says.read(to)
        }
    }

    impl Write for Script {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.heard.write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn greeting(flags: u16) -> Vec<u8> {
        let mut says = wire::INIT_MAGIC.to_be_bytes().to_vec();
        says.extend(wire::OPTION_MAGIC.to_be_bytes());
        says.extend(flags.to_be_bytes());
        says
    }

    fn reply(option: u32, kind: u32, data: &[u8]) -> Vec<u8> {
        let mut says = wire::OPTION_REPLY_MAGIC.to_be_bytes().to_vec();
        says.extend(option.to_be_bytes());
        says.extend(kind.to_be_bytes());
        says.extend(u32::try_from(data.len()).expect("short").to_be_bytes());
        says.extend(data);
        says
    }

    fn info_export(size: u64, flags: u16) -> Vec<u8> {
        [
            &wire::INFO_EXPORT.to_be_bytes()[..],
            &size.to_be_bytes(),
            &flags.to_be_bytes(),
        ]
        .concat()
    }

    fn info_blocks(min: u32, preferred: u32, max: u32) -> Vec<u8> {
        let mut data = wire::INFO_BLOCK_SIZE.to_be_bytes().to_vec();
        [min, preferred, max]
            .iter()
            .for_each(|size| data.extend(size.to_be_bytes()));
        data
    }

    /// Negotiates export `e` with a server that says these parts, and says nothing else.
    fn run(parts: &[Vec<u8>]) -> (Result<Export, String>, Script) {
        let mut script = Script {
            says: io::Cursor::new(parts.concat()),
            heard: Vec::new(),
        };
        let result = negotiate(&mut script, "e").map_err(|error| error.to_string());
        (result, script)
    }

    fn refused(parts: &[Vec<u8>]) -> String {
        run(parts).0.expect_err("refused")
    }

    const FIXED: u16 = wire::FIXED_NEWSTYLE | wire::NO_ZEROES;

    /// A server that knows neither extended headers nor structured replies.
    fn plain() -> Vec<u8> {
        [
            greeting(FIXED),
            reply(wire::OPT_EXTENDED_HEADERS, wire::REP_ERR_UNSUP, &[]),
            reply(wire::OPT_STRUCTURED_REPLY, wire::REP_ERR_UNSUP, b"no"),
        ]
        .concat()
    }

    #[test]
    fn a_modern_server_gives_all_it_has() {
        let (export, script) = run(&[
            greeting(FIXED),
            reply(wire::OPT_EXTENDED_HEADERS, wire::REP_ACK, &[]),
            reply(wire::OPT_GO, wire::REP_INFO, &info_blocks(512, 4096, 1 << 20)),
            reply(wire::OPT_GO, wire::REP_INFO, &[0, 1, 2, 3]),
            reply(wire::OPT_GO, wire::REP_INFO, &info_export(1 << 30, 0x8fd)),
            reply(wire::OPT_GO, wire::REP_ACK, &[]),
            vec![7; 4],
        ]);
        let export = export.expect("an export");
        assert_eq!(
            (export.size, export.min_block, export.max_block),
            (1 << 30, 512, 1 << 20)
        );
        assert_eq!(export.replies, Replies::Extended);
        assert!(export.has_fast_zero() && export.has_df() && !export.is_multi_conn());
        let left = script.says.get_ref().len() as u64 - script.says.position();
        assert_eq!(left, 4, "what follows the handshake is not read");
        assert_eq!(script.heard[..4], u32::from(FIXED).to_be_bytes());
    }

    #[test]
    fn old_servers_get_the_option_that_they_know() {
        let size = [&(1_u64 << 20).to_be_bytes()[..], &5_u16.to_be_bytes()].concat();
        let unsupported = reply(wire::OPT_GO, wire::REP_ERR_UNSUP, &[]);
        let (export, script) = run(&[plain(), unsupported, size.clone()]);
        assert_eq!(export.map(|export| export.size), Ok(1 << 20));
        assert!(script.heard.ends_with(&[0, 0, 0, 1, 0, 0, 0, 1, b'e']));
        let (export, _) = run(&[greeting(0), size.clone(), vec![0; 124]]);
        let export = export.expect("an export");
        assert_eq!((export.replies, export.flushes()), (Replies::Simple, true));
        assert!(run(&[greeting(0), size, vec![0; 123]]).0.is_err());
    }

    #[test]
    fn refusals_name_the_reason() {
        let go = |kind, text: &[u8]| refused(&[plain(), reply(wire::OPT_GO, kind, text)]);
        assert_eq!(go(wire::REP_ERR_UNKNOWN, b"x"), "the server has no export 'e'");
        assert!(go(wire::REP_ERR_TLS_REQD, b"").contains("TLS"));
        assert_eq!(
            go(wire::REP_ERR_POLICY, b"not\n you"),
            "the server refuses export 'e': its policy forbids it (not you)"
        );
        let tls = reply(wire::OPT_EXTENDED_HEADERS, wire::REP_ERR_TLS_REQD, &[]);
        assert!(refused(&[greeting(FIXED), tls]).contains("TLS"));
        let old = [wire::INIT_MAGIC, wire::OLDSTYLE_MAGIC]
            .map(u64::to_be_bytes)
            .concat();
        assert!(refused(&[old]).contains("old server"));
        assert_eq!(
            refused(&[b"SSH-2.0-OpenSSH_9".to_vec()]),
            "it is not an NBD server"
        );
        assert!(refused(&[plain()]).contains("closed the connection"));
        assert!(refused(&[greeting(0)]).contains("no export 'e'"));
    }

    #[test]
    fn tls_begins_only_after_consent() {
        let start = |flags, kind| {
            let parts = [greeting(flags), reply(wire::OPT_STARTTLS, kind, &[]), vec![22; 5]];
            let mut script = Script {
                says: io::Cursor::new(parts.concat()),
                heard: Vec::new(),
            };
            let greeted = greet(&mut script).expect("a greeting");
            let started = start_tls(&mut script, greeted).map_err(|error| error.to_string());
            (
                started,
                script.says.get_ref().len() as u64 - script.says.position(),
            )
        };
        assert_eq!(start(FIXED, wire::REP_ACK), (Ok(()), 5));
        let why = |flags, kind| start(flags, kind).0.expect_err("refused");
        assert!(why(0, wire::REP_ACK).contains("it has no TLS"));
        assert!(why(FIXED, wire::REP_ERR_UNSUP).contains("it has no TLS"));
        assert!(why(FIXED, wire::REP_ERR_POLICY).contains("its policy"));
        assert!(why(FIXED, wire::REP_INFO).contains("without a question"));
    }

    #[test]
    fn hostile_answers_are_refused() {
        let go = |parts: &[Vec<u8>]| refused(&[&[plain()], parts].concat());
        let info = |data: &[u8]| reply(wire::OPT_GO, wire::REP_INFO, data);
        let ack = || reply(wire::OPT_GO, wire::REP_ACK, &[]);
        assert!(go(&[ack()]).contains("without a size"));
        assert!(go(&[info(&info_export(1 << 63, 1))]).contains("impossible size"));
        assert!(go(&[info(&info_export(1, 1)), info(&info_blocks(3, 4, 5)), ack()]).contains("block sizes"));
        assert!(go(&[info(&info_export(1, 1)[..11])]).contains("wrong length"));
        assert!(go(&[info(&[0])]).contains("short"));
        assert!(go(&vec![info(&[0, 9]); 64]).contains("endless"));
        assert!(go(&[reply(wire::OPT_EXPORT_NAME, wire::REP_ACK, &[])]).contains("another question"));
        assert!(go(&[reply(wire::OPT_GO, 2, &[])]).contains("without a question"));
        let mut long = reply(wire::OPT_GO, wire::REP_INFO, &[]);
        long[16..20].copy_from_slice(&u32::MAX.to_be_bytes());
        assert!(go(&[long]).contains("too long"));
    }
}

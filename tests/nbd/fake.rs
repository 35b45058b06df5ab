//! A server that answers as a test says, with structured replies.

use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::thread;

use crate::server::SOCKET;

pub(crate) const SIZE: u64 = 1 << 20;

const READ: u16 = 0;
pub(crate) const WRITE: u16 = 1;
pub(crate) const DISCONNECT: u16 = 2;
pub(crate) const WRITE_ZEROES: u16 = 6;

pub(crate) const EIO: u32 = 5;

/// HAS_FLAGS, SEND_FLUSH, SEND_TRIM and SEND_WRITE_ZEROES.
const FLAGS: u16 = 0b110_0101;

const DONE: u16 = 1;

/// A request of the daemon.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) kind: u16,
    cookie: u64,
    pub(crate) offset: u64,
    pub(crate) len: u32,
}

impl Asked {
    /// Returns whether this is a read of the first or the last block, as the look for the format makes.
    pub(crate) fn is_look(&self) -> bool {
        self.kind == READ && (self.offset == 0 || self.offset + u64::from(self.len) == SIZE)
    }
}

/// A connection.
pub(crate) struct Peer(UnixStream);

/// Listens in a directory, and runs `serve` for each connection after the handshake, with the number of the connection.
/// The threads end with the test's process, if not before.
pub(crate) fn fake(dir: &Path, serve: impl Fn(usize, Peer) + Clone + Send + 'static) {
    let listener = UnixListener::bind(dir.join(SOCKET)).expect("a socket");
    thread::spawn(move || {
        for (number, client) in listener.incoming().flatten().enumerate() {
            let serve = serve.clone();
            thread::spawn(move || {
                if let Ok(peer) = Peer::greet(client) {
                    serve(number, peer);
                }
            });
        }
    });
}

impl Peer {
    fn greet(mut stream: UnixStream) -> io::Result<Self> {
        stream.write_all(b"NBDMAGICIHAVEOPT\0\x03")?;
        let mut client = [0; 4];
        stream.read_exact(&mut client)?;
        loop {
            let mut option = [0; 16];
            stream.read_exact(&mut option)?;
            let number = &option[8..12];
            let len = u32::from_be_bytes(option[12..].try_into().expect("four bytes"));
            stream.read_exact(&mut vec![0; len as usize])?;
            let mut reply = |kind: u32, data: &[u8]| {
                let mut bytes = 0x0003_e889_0455_65a9_u64.to_be_bytes().to_vec();
                bytes.extend(number);
                bytes.extend(kind.to_be_bytes());
                bytes.extend((data.len() as u32).to_be_bytes());
                bytes.extend(data);
                stream.write_all(&bytes)
            };
            match number[3] {
                7 => {
                    let export = [&[0, 0][..], &SIZE.to_be_bytes(), &FLAGS.to_be_bytes()];
                    reply(3, &export.concat())?;
                    reply(1, &[])?;
                    return Ok(Self(stream));
                }
                8 => reply(1, &[])?,
                _ => reply(1 << 31 | 1, &[])?,
            }
        }
    }

    /// Returns the next request, or `None` at the end of the connection.
    pub(crate) fn next(&mut self) -> Option<Asked> {
        let mut header = [0; 28];
        self.0.read_exact(&mut header).ok()?;
        let number = |at: usize| u64::from_be_bytes(header[at..at + 8].try_into().expect("eight bytes"));
        let asked = Asked {
            kind: u16::from_be_bytes([header[6], header[7]]),
            cookie: number(8),
            offset: number(16),
            len: (number(20) & 0xffff_ffff) as u32,
        };
        if asked.kind == WRITE {
            self.0.read_exact(&mut vec![0; asked.len as usize]).ok()?;
        }
        Some(asked)
    }

    fn chunk(&mut self, asked: &Asked, flags: u16, kind: u16, payload: &[u8]) {
        let mut bytes = 0x668e_33ef_u32.to_be_bytes().to_vec();
        bytes.extend(flags.to_be_bytes());
        bytes.extend(kind.to_be_bytes());
        bytes.extend(asked.cookie.to_be_bytes());
        bytes.extend((payload.len() as u32).to_be_bytes());
        bytes.extend(payload);
        // The daemon may have ended.
        let _ = self.0.write_all(&bytes);
    }

    /// Sends a part of a read's data.
    pub(crate) fn data(&mut self, asked: &Asked, at: u64, bytes: &[u8], last: bool) {
        let payload = [&(asked.offset + at).to_be_bytes(), bytes].concat();
        self.chunk(asked, u16::from(last), 1, &payload);
    }

    pub(crate) fn fail(&mut self, asked: &Asked, error: u32) {
        let payload = [&error.to_be_bytes()[..], &[0, 0]].concat();
        self.chunk(asked, DONE, 0x8001, &payload);
    }

    /// Succeeds. All data is zero.
    pub(crate) fn succeed(&mut self, asked: &Asked) {
        match asked.kind {
            READ => self.data(asked, 0, &vec![0; asked.len as usize], true),
            DISCONNECT => {}
            _ => self.chunk(asked, DONE, 0, &[]),
        }
    }
}

//! A vhost-user client that sends any message, valid or not.

use std::fs::File;
use std::io::{self, Read};
use std::net::Shutdown;
use std::os::fd::RawFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use crate::memory::{PATIENCE, wait_readable};
use crate::message::{self, NEED_REPLY, PROTOCOL, REPLY, REPLY_ACK, VERSION};

pub use crate::message::{
    GET_VRING_BASE_INFLIGHT, GET_VRING_BASE_SKIP_DRAIN, LOG_ALL, NO_FD, PROTOCOL_FEATURES, Region, VERSION_1,
    mem_table, msg,
};

#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
}

/// The backend's answer to a message that can fail.
#[derive(Debug, PartialEq, Eq)]
pub enum Answer {
    Ack,
    Nak,
    /// The backend ended the connection.
    Closed,
}

/// The outcome of a message, valid or not.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The connection continues, perhaps with an answer.
    Survived(Option<Vec<u8>>),
    /// The backend ended the connection.
    Closed,
}

impl Answer {
    /// Returns whether the backend refused the message, by an answer or by ending the connection.
    pub fn is_refusal(&self) -> bool {
        *self != Self::Ack
    }
}

impl Client {
    pub fn new(stream: UnixStream) -> Self {
        stream.set_read_timeout(Some(PATIENCE)).expect("set a timeout");
        Self { stream }
    }

    /// Ends the connection.
    pub fn leave(&self) {
        // The backend may have ended the connection already.
        let _ = self.stream.shutdown(Shutdown::Both);
    }

    /// Waits until the backend ends the connection.
    pub fn wait_for_end(&mut self) {
        let end = self.stream.read(&mut [0]);
        assert_eq!(
            end.expect("the backend ends the connection"),
            0,
            "it says something"
        );
    }

    /// Makes a send fail if it finds no room within `timeout`.
    pub fn set_write_timeout(&mut self, timeout: Duration) {
        self.stream
            .set_write_timeout(Some(timeout))
            .expect("set a timeout");
    }

    /// Negotiates `features` and all protocol features of these tests.
    pub fn negotiate(&mut self, features: u64) -> io::Result<()> {
        self.send(msg::SET_OWNER, 0, &[], &[])?;
        self.accept(features)?;
        self.accept_protocol()
    }

    /// Negotiates all protocol features of these tests, before the virtio features.
    pub fn negotiate_protocol(&mut self) -> io::Result<()> {
        self.send(msg::SET_OWNER, 0, &[], &[])?;
        self.get_u64(msg::GET_FEATURES)?;
        self.accept_protocol()
    }

    /// Accepts the part of `features` that the backend offers.
    pub fn accept(&mut self, features: u64) -> io::Result<()> {
        let offered = self.get_u64(msg::GET_FEATURES)?;
        let accepted = offered & (features | PROTOCOL_FEATURES);
        self.send(msg::SET_FEATURES, 0, &accepted.to_le_bytes(), &[])
    }

    fn accept_protocol(&mut self) -> io::Result<()> {
        let offered = self.get_u64(msg::GET_PROTOCOL_FEATURES)?;
        let accepted = offered & PROTOCOL;
        assert!(accepted & REPLY_ACK != 0, "the backend has no REPLY_ACK");
        self.send(msg::SET_PROTOCOL_FEATURES, 0, &accepted.to_le_bytes(), &[])
    }

    /// Sends a whole message. `flags` are added to the version.
    pub fn send(&mut self, request: u32, flags: u32, payload: &[u8], fds: &[RawFd]) -> io::Result<()> {
        self.send_bytes(&[&message::message(request, flags, payload)], fds)
    }

    /// Sends bytes as they are.
    pub fn send_bytes(&mut self, parts: &[&[u8]], fds: &[RawFd]) -> io::Result<()> {
        let bytes = parts.concat();
        let sent = self.stream.send_with_fds(&[bytes.as_slice()], fds)?;
        assert_eq!(sent, bytes.len(), "a message was cut");
        Ok(())
    }

    /// Reads the next reply to `request`. Fails with `UnexpectedEof` when the connection has ended.
    pub fn receive(&mut self, request: u32) -> io::Result<Vec<u8>> {
        let mut header = [0; 12];
        self.stream.read_exact(&mut header)?;
        let word = |i: usize| u32::from_le_bytes(header[i * 4..][..4].try_into().expect("four bytes"));
        assert_eq!(word(0), request, "the reply is to another request");
        assert_eq!(
            word(1) & (REPLY | 3),
            REPLY | VERSION,
            "the reply's flags are wrong"
        );
        let mut payload = vec![0; usize::try_from(word(2)).expect("it fits")];
        self.stream.read_exact(&mut payload)?;
        Ok(payload)
    }

    /// Reads a reply that comes with a descriptor.
    pub fn receive_with_file(&mut self, request: u32) -> io::Result<(Vec<u8>, File)> {
        let mut header = [0; 12];
        let (len, file) = self.stream.recv_with_fd(&mut header)?;
        if len == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        assert_eq!(len, header.len(), "a header was cut");
        assert_eq!(
            header[..4],
            request.to_le_bytes(),
            "the reply is to another request"
        );
        let mut payload = vec![0; usize::from(header[8])];
        self.stream.read_exact(&mut payload)?;
        let file = file.ok_or(io::ErrorKind::InvalidData)?;
        Ok((payload, file))
    }

    /// Reads the bytes that the backend sends next. At the end of the connection these are none.
    ///
    /// # Errors
    /// `WouldBlock`: nothing arrived within `timeout`.
    pub fn receive_any(&mut self, timeout: Duration) -> io::Result<(Vec<u8>, Option<File>)> {
        if !wait_readable(&self.stream, timeout) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let mut bytes = vec![0; 512];
        let (len, file) = self.stream.recv_with_fd(&mut bytes)?;
        bytes.truncate(len);
        Ok((bytes, file))
    }

    /// Sends a message that has a reply of its own.
    pub fn call(&mut self, request: u32, payload: &[u8]) -> io::Result<Vec<u8>> {
        self.send(request, 0, payload, &[])?;
        self.receive(request)
    }

    pub fn get_u64(&mut self, request: u32) -> io::Result<u64> {
        let reply = self.call(request, &[])?;
        Ok(u64::from_le_bytes(reply.try_into().expect("the reply is a u64")))
    }

    /// Sends a message and asks for an acknowledgement.
    pub fn ask(&mut self, request: u32, payload: &[u8], fds: &[RawFd]) -> Answer {
        if self.send(request, NEED_REPLY, payload, fds).is_err() {
            return Answer::Closed;
        }
        self.answer(request)
    }

    /// Reads the acknowledgement of a message.
    pub fn answer(&mut self, request: u32) -> Answer {
        match self.receive(request) {
            Ok(reply) if reply == [0; 8] => Answer::Ack,
            Ok(_) => Answer::Nak,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                panic!("no answer to request {request}")
            }
            Err(_) => Answer::Closed,
        }
    }

    /// Sends a message with any header, and waits until the backend has handled or refused it.
    pub fn provoke(&mut self, header: [u32; 3], payload: &[u8], fds: &[RawFd]) -> Verdict {
        let [request, ..] = header;
        // A message that is always answered follows.
        let last = if request == msg::GET_FEATURES {
            msg::GET_PROTOCOL_FEATURES
        } else {
            msg::GET_FEATURES
        };
        let sent = self.send_bytes(&[&header.map(u32::to_le_bytes).concat(), payload], fds);
        if sent.and_then(|()| self.send(last, 0, &[], &[])).is_err() {
            return Verdict::Closed;
        }
        let mut answer = None;
        loop {
            let mut header = [0; 12];
            match self.stream.read_exact(&mut header) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    panic!("request {request} is never dealt with")
                }
                Err(_) => return Verdict::Closed,
            }
            let mut reply = vec![0; usize::from(header[8]) + usize::from(header[9]) * 256];
            if self.stream.read_exact(&mut reply).is_err() {
                return Verdict::Closed;
            }
            if header[..4] == last.to_le_bytes() {
                return Verdict::Survived(answer);
            }
            answer = Some(reply);
        }
    }

    /// Sends `SET_VRING_{NUM,BASE,ENABLE}`.
    pub fn vring_state(&mut self, request: u32, index: u32, num: u32) -> Answer {
        self.ask(request, &message::vring_state(index, num), &[])
    }

    /// Hands over a dirty log. Returns `None` when the backend ended the connection.
    pub fn set_log(&mut self, size: u64, offset: u64, fd: RawFd) -> Option<Vec<u8>> {
        let payload = message::log_base(size, offset);
        self.send(msg::SET_LOG_BASE, 0, &payload, &[fd]).ok()?;
        self.receive(msg::SET_LOG_BASE).ok()
    }

    /// Sends `SET_VRING_ADDR` without logging. The addresses are the frontend's.
    pub fn vring_addr(&mut self, index: u32, desc: u64, used: u64, avail: u64) -> Answer {
        self.vring_addr_logged(index, [desc, used, avail], None)
    }

    /// Sends `SET_VRING_ADDR`. `log` is the used ring's guest address if writes to the ring are to be logged.
    pub fn vring_addr_logged(&mut self, index: u32, ring: [u64; 3], log: Option<u64>) -> Answer {
        self.ask(msg::SET_VRING_ADDR, &message::vring_addr(index, ring, log), &[])
    }

    /// Sends `SET_VRING_{KICK,CALL,ERR}`.
    pub fn vring_fd(&mut self, request: u32, index: u64, fd: Option<RawFd>) -> Answer {
        self.ask(request, &message::vring_fd(index, fd.is_some()), fd.as_slice())
    }

    /// Stops the ring with `GET_VRING_BASE` and returns its next available index.
    pub fn stop_ring(&mut self, index: u32) -> io::Result<u32> {
        self.stop_ring_by(msg::GET_VRING_BASE, index)
    }

    /// Stops the ring with this message and returns its next available index.
    pub fn stop_ring_by(&mut self, request: u32, index: u32) -> io::Result<u32> {
        let reply = self.call(request, &message::vring_state(index, 0))?;
        Ok(u32::from_le_bytes(reply[4..8].try_into().expect("eight bytes")))
    }

    /// Sends `ADD_MEM_REG` or `REM_MEM_REG`.
    pub fn mem_region(&mut self, request: u32, region: Region, fds: &[RawFd]) -> Answer {
        self.ask(request, &message::mem_region(region), fds)
    }

    /// Reads a part of the configuration space.
    pub fn config(&mut self, offset: u32, len: u32) -> io::Result<Vec<u8>> {
        let space = vec![0; usize::try_from(len).expect("it fits")];
        let reply = self.call(msg::GET_CONFIG, &message::config(offset, &space))?;
        Ok(reply.get(12..).unwrap_or_default().to_vec())
    }

    /// Writes a part of the configuration space.
    pub fn set_config(&mut self, offset: u32, bytes: &[u8]) -> Answer {
        self.ask(msg::SET_CONFIG, &message::config(offset, bytes), &[])
    }
}

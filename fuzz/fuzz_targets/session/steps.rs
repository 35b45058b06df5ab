//! The steps of a session. An input is a list of steps.

use std::fs::File;

use arbitrary::Arbitrary;
use vhost_user_blk_fuzz::chains::{Addr, Request};
use vhost_user_blk_fuzz::guest::{Guest, eventfd, memfd};

#[derive(Arbitrary, Clone, Debug)]
pub(crate) struct Start {
    pub(crate) event_idx: bool,
    pub(crate) indirect: bool,
    pub(crate) log: bool,
    pub(crate) inflight: bool,
    pub(crate) size: u8,
    pub(crate) base: u16,
}

#[derive(Arbitrary, Debug)]
pub(crate) enum Step {
    Start(Start),
    Request(bool, Request),
    Kick(bool),
    /// Stores arbitrary values in the available ring.
    Avail(bool, u16, u16),
    UsedEvent(bool, u16),
    Poke(Addr, [u8; 8]),
    Barrier,
    /// Waits a short time for the used index to reach the available index.
    Settle(bool),
    /// Sends a message with a vring's index and a number.
    State(StateMessage, u8, u32),
    Addresses {
        queue: u8,
        ring: [Place; 3],
        log: Option<u64>,
    },
    File(FileMessage, u8, Descriptor),
    Features(u64),
    ProtocolFeatures(u64),
    Table(Vec<(u8, Odd)>),
    Add(u8, Odd),
    Remove(u8),
    GetConfig(u16, u16),
    SetConfig(u16, Vec<u8>),
    Log(u64, u64, Descriptor),
    GetInflight(u16, u16),
    /// Sends the region received last, with some bytes changed.
    SetInflight(Vec<(u16, u8)>),
    SetAnyInflight([u64; 2], [u16; 2], Descriptor),
    Channel(Descriptor),
    Reset(bool),
    Resize(u8),
    Raw {
        request: u8,
        flags: u8,
        len: Option<u32>,
        payload: Vec<u8>,
        files: Vec<Descriptor>,
    },
    Again,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
pub(crate) enum StateMessage {
    Num,
    Base,
    GetBase,
    Enable,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
pub(crate) enum FileMessage {
    Kick,
    Call,
    Err,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
pub(crate) enum Place {
    In(u8, u16),
    Any(u64),
}

/// The property of a region that is wrong.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub(crate) enum Odd {
    Nothing,
    Guest(u64),
    User(u64),
    Len(u64),
    Offset(u64),
    File(Descriptor),
}

#[derive(Arbitrary, Clone, Copy, Debug)]
pub(crate) enum Descriptor {
    Event,
    Guest,
    Memory(u16),
    Null,
    Pipe,
    Socket,
    Directory,
    None,
}

impl Descriptor {
    /// Opens a descriptor of this kind, unless the kind is `None`.
    pub(crate) fn open(self, guest: &Guest) -> Option<File> {
        Some(match self {
            Self::Event => eventfd(),
            Self::Guest => guest.file().try_clone().expect("another descriptor"),
            Self::Memory(len) => memfd(len.into()),
            Self::Null => File::open("/dev/null").expect("it is there"),
            Self::Directory => File::open("/").expect("it is there"),
            Self::Pipe => {
                let (reader, _) = std::io::pipe().expect("a pipe");
                std::os::fd::OwnedFd::from(reader).into()
            }
            Self::Socket => {
                let (socket, _) = std::os::unix::net::UnixStream::pair().expect("sockets");
                std::os::fd::OwnedFd::from(socket).into()
            }
            Self::None => return None,
        })
    }
}

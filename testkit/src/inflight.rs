//! The in-flight region as a frontend keeps it, and as a predecessor of the daemon would have left it.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use crate::message;
use crate::raw::{Answer, Client, msg};

/// Bytes of the header of a queue's part.
pub const HEADER: u64 = 16;
/// Bytes of an entry of a queue's part.
pub const ENTRY: u64 = 16;

/// Returns the distance between the parts of two queues of `queue_size` descriptors.
pub fn stride(queue_size: u16) -> u64 {
    (HEADER + ENTRY * u64::from(queue_size)).next_multiple_of(64)
}

/// An in-flight region and its description in the messages.
#[derive(Debug)]
pub struct Inflight {
    pub file: File,
    pub size: u64,
    pub offset: u64,
    pub queues: u16,
    pub queue_size: u16,
}

/// The header of a queue's part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    pub features: u64,
    pub version: u16,
    pub desc_num: u16,
    pub last_batch_head: u16,
    pub used_idx: u16,
}

impl Inflight {
    /// Asks the backend to create a region. Returns the answer as it arrived.
    pub fn ask(client: &mut Client, queues: u16, queue_size: u16) -> (Vec<u8>, File) {
        let payload = message::inflight(0, 0, queues, queue_size);
        client
            .send(msg::GET_INFLIGHT_FD, 0, &payload, &[])
            .expect("GET_INFLIGHT_FD");
        client
            .receive_with_file(msg::GET_INFLIGHT_FD)
            .expect("the backend makes a region")
    }

    /// Asks the backend to create a region.
    pub fn get(client: &mut Client, queues: u16, queue_size: u16) -> Self {
        let (reply, file) = Self::ask(client, queues, queue_size);
        let u64_at = |at: usize| u64::from_le_bytes(reply[at..at + 8].try_into().expect("eight bytes"));
        Self {
            file,
            size: u64_at(0),
            offset: u64_at(8),
            queues,
            queue_size,
        }
    }

    /// Hands the region to a backend.
    pub fn set(&self, client: &mut Client) -> Answer {
        let payload = message::inflight(self.size, self.offset, self.queues, self.queue_size);
        client.ask(msg::SET_INFLIGHT_FD, &payload, &[self.file.as_raw_fd()])
    }

    fn part(&self, queue: u16) -> u64 {
        u64::from(queue) * stride(self.queue_size)
    }

    /// The end of the queues' parts.
    pub fn trailer(&self) -> u64 {
        self.part(self.queues)
    }

    fn read<const N: usize>(&self, offset: u64) -> [u8; N] {
        let mut bytes = [0; N];
        self.file
            .read_exact_at(&mut bytes, offset)
            .expect("the region has it");
        bytes
    }

    pub fn write(&self, offset: u64, bytes: &[u8]) {
        self.file.write_all_at(bytes, offset).expect("the region has it");
    }

    pub fn header(&self, queue: u16) -> Header {
        let bytes: [u8; 16] = self.read(self.part(queue));
        let u16_at = |at: usize| u16::from_ne_bytes([bytes[at], bytes[at + 1]]);
        Header {
            features: u64::from_ne_bytes(bytes[..8].try_into().expect("eight bytes")),
            version: u16_at(8),
            desc_num: u16_at(10),
            last_batch_head: u16_at(12),
            used_idx: u16_at(14),
        }
    }

    /// Returns the heads that are marked as in flight.
    pub fn marked(&self, queue: u16) -> Vec<u16> {
        let marked = |&head: &u16| self.read::<1>(self.entry(queue, head)) != [0];
        (0..self.queue_size).filter(marked).collect()
    }

    fn entry(&self, queue: u16, head: u16) -> u64 {
        self.part(queue) + HEADER + ENTRY * u64::from(head)
    }

    /// Marks a queue's part as used, with these chains and their counters in flight.
    pub fn leave(&self, queue: u16, used_idx: u16, chains: &[(u16, u64)]) {
        let header = [0, 0, 0, 0, 1, self.queue_size, 0, used_idx];
        self.write(self.part(queue), &header.map(u16::to_ne_bytes).concat());
        for &(head, counter) in chains {
            self.write(self.entry(queue, head), &[1]);
            self.write(self.entry(queue, head) + 8, &counter.to_ne_bytes());
        }
    }
}

//! The frontend of a session: its messages and its state.

use std::fs::File;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::FileExt;
use std::thread;
use std::time::{Duration, Instant};

use testkit::message::{self, LOG_ALL, NEED_REPLY, PROTOCOL, PROTOCOL_FEATURES, VERSION_1, msg};
use testkit::ring::DriverRing;
use vhost_user_blk::memory::RegionInfo;
use vhost_user_blk::vhost_user::Resizer;
use vhost_user_blk_fuzz::chains::{AVAIL, DESC, Request, USED};
use vhost_user_blk_fuzz::frontend::{Backend, Client, PATIENCE, QUEUES};
use vhost_user_blk_fuzz::guest::{Guest, REGIONS, RINGS, eventfd, memfd};

use crate::steps::{Descriptor, Odd, Start};

/// The device feature VIRTIO_BLK_F_FLUSH.
const FLUSH: u64 = 1 << 9;

/// A frontend that makes one connection after the other.
pub(crate) struct Frontend<'a> {
    pub(crate) backend: &'a Backend,
    pub(crate) client: Option<Client>,
    pub(crate) resizer: Resizer,
    pub(crate) guest: Guest,
    pub(crate) kicks: [File; QUEUES as usize],
    pub(crate) sizes: [u16; QUEUES as usize],
    pub(crate) inflight: Option<(Vec<u8>, File)>,
    /// The frontend has sent only complete messages on this connection, so replies can be expected.
    pub(crate) whole: bool,
    /// The backend may have mapped the guest's memory outside the standard regions.
    pub(crate) odd_memory: bool,
    pub(crate) resized: bool,
}

pub(crate) fn in_message(region: RegionInfo) -> message::Region {
    message::Region {
        guest_addr: region.guest,
        size: region.len,
        user_addr: region.user,
        mmap_offset: region.file_offset,
    }
}

/// Translates a guest address of queue 0 to the corresponding address of `queue`.
pub(crate) fn of_queue(queue: usize, at: u64) -> u64 {
    match at {
        _ if queue == 0 => at,
        DESC..0x200 => at + 0x400,
        AVAIL..0x900 => at + 0x100,
        USED..0xb80 => at + 0x180,
        _ => at,
    }
}

impl Frontend<'_> {
    pub(crate) fn send(&mut self, request: u32, flags: u32, payload: &[u8], fds: &[RawFd]) {
        if let Some(client) = &mut self.client {
            client.message(request, flags, payload, fds);
        }
    }

    pub(crate) fn state(&mut self, request: u32, queue: u32, number: u32) {
        let payload = message::vring_state(queue, number);
        let flags = NEED_REPLY * u32::from(request != msg::GET_VRING_BASE);
        self.send(request, flags, &payload, &[]);
    }

    pub(crate) fn file(&mut self, request: u32, queue: u8, fd: Option<RawFd>) {
        let payload = message::vring_fd(queue.into(), fd.is_some());
        self.send(request, NEED_REPLY, &payload, fd.as_slice());
    }

    pub(crate) fn barrier(&mut self) {
        if self.whole
            && let Some(client) = &mut self.client
        {
            client.barrier();
        }
    }

    pub(crate) fn end(&mut self) {
        if let Some(client) = self.client.take() {
            self.backend.leave(client);
        }
    }

    /// Sends the messages of an ordinary frontend until both rings run.
    pub(crate) fn start(&mut self, start: &Start) {
        let rings = u64::from(start.event_idx) << 29 | u64::from(start.indirect) << 28;
        let features = VERSION_1 | PROTOCOL_FEATURES | FLUSH | rings | (LOG_ALL * u64::from(start.log));
        self.send(msg::SET_OWNER, 0, &[], &[]);
        self.send(msg::SET_FEATURES, 0, &features.to_le_bytes(), &[]);
        self.send(msg::SET_PROTOCOL_FEATURES, 0, &PROTOCOL.to_le_bytes(), &[]);
        self.table(&[
            (0, Odd::Nothing),
            (1, Odd::Nothing),
            (2, Odd::Nothing),
            (3, Odd::Nothing),
        ]);
        if start.inflight {
            self.get_inflight(QUEUES, 64);
            self.set_inflight(&[]);
        }
        if start.log {
            let log = memfd(0x4000);
            let payload = message::log_base(0x4000, 0);
            self.send(msg::SET_LOG_BASE, 0, &payload, &[log.as_raw_fd()]);
        }
        for queue in 0..QUEUES {
            self.ring(usize::from(queue), start);
        }
    }

    pub(crate) fn ring(&mut self, queue: usize, start: &Start) {
        let (index, size) = (queue as u32, 1u16 << (start.size % 6));
        self.sizes[queue] = size;
        self.guest
            .write(of_queue(queue, AVAIL) + 2, &start.base.to_le_bytes());
        self.guest
            .write(of_queue(queue, USED) + 2, &start.base.to_le_bytes());
        self.state(msg::SET_VRING_NUM, index, size.into());
        self.state(msg::SET_VRING_BASE, index, start.base.into());
        let at = |at| RINGS.user + of_queue(queue, at);
        self.addresses(
            index,
            [at(DESC), at(USED), at(AVAIL)],
            Some(of_queue(queue, USED)),
        );
        let call = eventfd();
        self.file(msg::SET_VRING_CALL, queue as u8, Some(call.as_raw_fd()));
        self.kicks[queue] = eventfd();
        let kick = self.kicks[queue].as_raw_fd();
        self.file(msg::SET_VRING_KICK, queue as u8, Some(kick));
        self.state(msg::SET_VRING_ENABLE, index, 1);
    }

    pub(crate) fn addresses(&mut self, queue: u32, ring: [u64; 3], log: Option<u64>) {
        let payload = message::vring_addr(queue, ring, log);
        self.send(msg::SET_VRING_ADDR, NEED_REPLY, &payload, &[]);
    }

    /// Returns a region that is correct except for one property.
    pub(crate) fn region(&mut self, index: u8, odd: Odd) -> (RegionInfo, Option<File>) {
        let mut region = REGIONS[usize::from(index) % REGIONS.len()];
        let mut file = Descriptor::Guest;
        match odd {
            Odd::Nothing => {}
            Odd::Guest(guest) => region.guest = guest,
            Odd::User(user) => region.user = user,
            Odd::Len(len) => region.len = len,
            Odd::Offset(offset) => region.file_offset = offset,
            Odd::File(other) => file = other,
        }
        self.odd_memory |= matches!(odd, Odd::Len(_) | Odd::Offset(_));
        (region, file.open(&self.guest))
    }

    pub(crate) fn table(&mut self, regions: &[(u8, Odd)]) {
        let regions: Vec<_> = regions
            .iter()
            .take(8)
            .map(|&(i, odd)| self.region(i, odd))
            .collect();
        let in_messages: Vec<_> = regions.iter().map(|(region, _)| in_message(*region)).collect();
        let payload = message::mem_table(&in_messages);
        let fds: Vec<RawFd> = regions
            .iter()
            .flat_map(|(_, file)| file)
            .map(AsRawFd::as_raw_fd)
            .collect();
        self.send(msg::SET_MEM_TABLE, NEED_REPLY, &payload, &fds);
    }

    pub(crate) fn get_inflight(&mut self, queues: u16, size: u16) {
        let payload = message::inflight(0, 0, queues, size);
        self.barrier();
        self.send(msg::GET_INFLIGHT_FD, 0, &payload, &[]);
        let Some(client) = self.client.as_mut().filter(|_| self.whole) else {
            return;
        };
        if let Ok((mut bytes, Some(file))) = client.receive(PATIENCE) {
            while bytes.len() < 12 + 20 {
                match client.receive(PATIENCE) {
                    Ok((more, _)) if !more.is_empty() => bytes.extend(more),
                    _ => return,
                }
            }
            self.inflight = Some((bytes[12..].to_vec(), file));
        }
    }

    pub(crate) fn set_inflight(&mut self, patches: &[(u16, u8)]) {
        let Some((payload, file)) = self.inflight.take() else {
            return;
        };
        let len = file.metadata().expect("a memfd").len();
        for &(at, byte) in patches.iter().take(32) {
            file.write_all_at(&[byte], u64::from(at) % len)
                .expect("write the region");
        }
        self.send(msg::SET_INFLIGHT_FD, NEED_REPLY, &payload, &[file.as_raw_fd()]);
        self.inflight = Some((payload, file));
    }

    pub(crate) fn request(&mut self, queue: usize, request: &Request) {
        let guest = &self.guest;
        let head = request.store(self.sizes[queue], &mut |at, bytes| {
            guest.write(of_queue(queue, at), bytes)
        });
        let [desc, avail, used] = [DESC, AVAIL, USED].map(|at| of_queue(queue, at));
        let mut ring = DriverRing::new(self.sizes[queue], desc as usize, avail as usize, used as usize);
        ring.avail_idx = guest.u16(avail + 2);
        ring.offer(guest, head);
    }

    pub(crate) fn settle(&self, queue: usize) {
        let (begin, used) = (Instant::now(), of_queue(queue, USED) + 2);
        let idx = self.guest.u16(of_queue(queue, AVAIL) + 2);
        while self.guest.u16(used) != idx && begin.elapsed() < Duration::from_millis(2) {
            thread::yield_now();
        }
    }

    pub(crate) fn raw(
        &mut self,
        request: u8,
        flags: u8,
        len: Option<u32>,
        payload: &[u8],
        files: &[Descriptor],
    ) {
        self.whole = false;
        self.odd_memory |= files.iter().any(|file| matches!(file, Descriptor::Guest));
        let files: Vec<File> = files.iter().take(8).filter_map(|f| f.open(&self.guest)).collect();
        let fds: Vec<RawFd> = files.iter().map(AsRawFd::as_raw_fd).collect();
        let payload = &payload[..payload.len().min(400)];
        let header = [request.into(), flags.into(), len.unwrap_or(payload.len() as u32)];
        let bytes = [&header.map(u32::to_le_bytes).concat(), payload].concat();
        if let Some(client) = &mut self.client {
            client.send(&bytes, &fds);
        }
    }
}

//! Whole sessions over a real socket: messages with descriptors, rings, requests, disconnects, in any order.
//!
//! Nothing may panic, hang, be left behind (descriptors, threads), or be written where no ring or request points.
#![no_main]

use std::cell::RefCell;
use std::fs::File;
use std::io::Write;
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::FileExt;
use std::thread;
use std::time::{Duration, Instant};

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use vhost_user_blk::memory::RegionInfo;
use vhost_user_blk::vhost_user::Resizer;
use vhost_user_blk_fuzz::chains::{AVAIL, Addr, DESC, Request, USED};
use vhost_user_blk_fuzz::frontend::{Backend, Client, DISK, PATIENCE, QUEUES, TAIL};
use vhost_user_blk_fuzz::guest::{FILE_LEN, Guest, Image, REGIONS, RINGS, eventfd, memfd};
use vhost_user_blk_fuzz::holdings::{Holdings, descriptors};

#[derive(Arbitrary, Debug)]
struct Input {
    /// Starts with a session like any other.
    set_up: Option<Start>,
    steps: Vec<Step>,
}

#[derive(Arbitrary, Clone, Debug)]
struct Start {
    event_idx: bool,
    indirect: bool,
    log: bool,
    inflight: bool,
    size: u8,
    base: u16,
}

#[derive(Arbitrary, Debug)]
enum Step {
    Start(Start),
    Request(bool, Request),
    Kick(bool),
    /// Any values in the available ring.
    Avail(bool, u16, u16),
    UsedEvent(bool, u16),
    Poke(Addr, [u8; 8]),
    Barrier,
    /// Until the ring's used index has moved, or not for long.
    Settle(bool),
    /// Messages with a vring's index and a number.
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
    /// The region that was got last, with some bytes changed.
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
enum StateMessage {
    Num,
    Base,
    GetBase,
    Enable,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum FileMessage {
    Kick,
    Call,
    Err,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Place {
    In(u8, u16),
    Any(u64),
}

/// What a region may have wrong.
#[derive(Arbitrary, Clone, Copy, Debug)]
enum Odd {
    Nothing,
    Guest(u64),
    User(u64),
    Len(u64),
    Offset(u64),
    File(Descriptor),
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Descriptor {
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
    fn open(self, guest: &Guest) -> Option<File> {
        Some(match self {
            Self::Event => eventfd(),
            Self::Guest => guest.file.try_clone().expect("another descriptor"),
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

/// What lives as long as the process.
struct World {
    backend: Backend,
    idle: Holdings,
}

thread_local! {
    /// Never dropped: its threads end with the process.
    static WORLD: RefCell<Option<ManuallyDrop<World>>> = const { RefCell::new(None) };
}

fuzz_target!(|input: Input| {
    WORLD.with_borrow_mut(|world| {
        let world = world.get_or_insert_with(|| ManuallyDrop::new(World::new()));
        world.run(input.set_up, &input.steps);
    });
});

const NEED_REPLY: u32 = 1 << 3;

/// One connection after the other, and what the frontend knows.
struct Frontend<'a> {
    backend: &'a Backend,
    client: Option<Client>,
    resizer: Resizer,
    guest: Guest,
    kicks: [File; QUEUES as usize],
    sizes: [u16; QUEUES as usize],
    inflight: Option<(Vec<u8>, File)>,
    /// The connection has seen nothing but whole messages.
    whole: bool,
    /// Descriptors of the guest's memory went elsewhere than into the standard regions.
    odd_memory: bool,
    resized: bool,
}

impl World {
    fn new() -> Self {
        let mut world = Self {
            backend: Backend::new(),
            idle: Holdings::now(),
        };
        // Threads and files that stay are there after a first session.
        let start = Start {
            event_idx: true,
            indirect: true,
            log: true,
            inflight: true,
            size: 4,
            base: 0,
        };
        world.session(Some(start), &[Step::Kick(false), Step::Barrier]);
        thread::sleep(Duration::from_millis(200));
        world.idle = Holdings::now();
        world
    }

    fn run(&mut self, start: Option<Start>, steps: &[Step]) {
        self.session(start, steps);
        let begin = Instant::now();
        while Holdings::now() != self.idle {
            assert!(
                begin.elapsed() < Duration::from_secs(2),
                "left behind: {:?}, before the session {:?}; now {:?}",
                Holdings::now(),
                self.idle,
                descriptors()
            );
            thread::yield_now();
            thread::yield_now();
        }
    }

    fn session(&mut self, start: Option<Start>, steps: &[Step]) {
        let tail = [0x5a; TAIL as usize];
        self.backend.disk.set_len(DISK + TAIL).expect("size the disk");
        self.backend
            .disk
            .write_all_at(&tail, DISK)
            .expect("write the tail");
        let (client, resizer) = self.backend.connect();
        resizer.refresh().expect("the first size");
        let mut frontend = Frontend {
            backend: &self.backend,
            client: Some(client),
            resizer,
            guest: Guest::new(),
            kicks: [eventfd(), eventfd()],
            sizes: [32; QUEUES as usize],
            inflight: None,
            whole: true,
            odd_memory: false,
            resized: false,
        };
        if let Some(start) = start {
            frontend.start(&start);
        }
        for step in steps.iter().take(40) {
            frontend.step(step);
        }
        frontend.end();
        let (odd_memory, resized) = (frontend.odd_memory, frontend.resized);
        let image = frontend.guest.image();
        drop(frontend);
        if !odd_memory {
            check_guards(&image);
        }
        if !resized {
            let mut now = tail;
            self.backend
                .disk
                .read_exact_at(&mut now, DISK)
                .expect("read the tail");
            assert!(now == tail, "what is behind the disk was written");
        }
    }
}

/// What is in no region was not written.
fn check_guards(image: &Image) {
    let fresh = Image::new();
    let in_region = |at: usize| {
        let covers = |r: &RegionInfo| (r.file_offset..r.file_offset + r.len).contains(&(at as u64));
        REGIONS.iter().any(covers)
    };
    let changed = (0..FILE_LEN).find(|&at| image.0[at] != fresh.0[at] && !in_region(at));
    assert_eq!(changed, None, "a guard page was written");
}

fn region_bytes(r: RegionInfo) -> Vec<u8> {
    [r.guest, r.len, r.user, r.file_offset]
        .map(u64::to_le_bytes)
        .concat()
}

/// The guest address of something of queue 0 that queue 1 has elsewhere.
fn of_queue(queue: usize, at: u64) -> u64 {
    match at {
        _ if queue == 0 => at,
        DESC..0x200 => at + 0x400,
        AVAIL..0x900 => at + 0x100,
        USED..0xb80 => at + 0x180,
        _ => at,
    }
}

impl Frontend<'_> {
    fn send(&mut self, request: u32, flags: u32, payload: &[u8], fds: &[RawFd]) {
        if let Some(client) = &mut self.client {
            client.message(request, flags, payload, fds);
        }
    }

    fn state(&mut self, request: u32, queue: u32, number: u32) {
        let payload = [queue, number].map(u32::to_le_bytes).concat();
        self.send(request, NEED_REPLY * u32::from(request != 11), &payload, &[]);
    }

    fn file(&mut self, request: u32, queue: u8, fd: Option<RawFd>) {
        let payload = u64::from(queue) | u64::from(fd.is_none()) << 8;
        self.send(request, NEED_REPLY, &payload.to_le_bytes(), fd.as_slice());
    }

    fn barrier(&mut self) {
        if self.whole
            && let Some(client) = &mut self.client
        {
            client.barrier();
        }
    }

    fn end(&mut self) {
        if let Some(client) = self.client.take() {
            self.backend.leave(client);
        }
    }

    /// What a usual frontend says until both rings run.
    fn start(&mut self, start: &Start) {
        let features = 1 << 32 | 1 << 30 | u64::from(start.event_idx) << 29 | u64::from(start.indirect) << 28;
        let features = features | 1 << 9 | u64::from(start.log) << 26;
        self.send(3, 0, &[], &[]);
        self.send(2, 0, &features.to_le_bytes(), &[]);
        let protocol: u64 = 1 | 1 << 1 | 1 << 3 | 1 << 5 | 1 << 9 | 1 << 12 | 1 << 13 | 1 << 15;
        self.send(16, 0, &protocol.to_le_bytes(), &[]);
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
            let payload = [0x4000u64, 0].map(u64::to_le_bytes).concat();
            self.send(6, 0, &payload, &[log.as_raw_fd()]);
        }
        for queue in 0..QUEUES {
            self.ring(usize::from(queue), start);
        }
    }

    fn ring(&mut self, queue: usize, start: &Start) {
        let (index, size) = (queue as u32, 1u16 << (start.size % 6));
        self.sizes[queue] = size;
        self.guest
            .write(of_queue(queue, AVAIL) + 2, &start.base.to_le_bytes());
        self.guest
            .write(of_queue(queue, USED) + 2, &start.base.to_le_bytes());
        self.state(8, index, size.into());
        self.state(10, index, start.base.into());
        let at = |at| RINGS.user + of_queue(queue, at);
        self.addresses(
            index,
            [at(DESC), at(USED), at(AVAIL)],
            Some(of_queue(queue, USED)),
        );
        let call = eventfd();
        self.file(13, queue as u8, Some(call.as_raw_fd()));
        self.kicks[queue] = eventfd();
        let kick = self.kicks[queue].as_raw_fd();
        self.file(12, queue as u8, Some(kick));
        self.state(18, index, 1);
    }

    fn addresses(&mut self, queue: u32, [desc, used, avail]: [u64; 3], log: Option<u64>) {
        let payload = [
            [queue, u32::from(log.is_some())].map(u32::to_le_bytes).concat(),
            [desc, used, avail, log.unwrap_or(0)]
                .map(u64::to_le_bytes)
                .concat(),
        ]
        .concat();
        self.send(9, NEED_REPLY, &payload, &[]);
    }

    /// A region as it should be, but for one thing.
    fn region(&mut self, index: u8, odd: Odd) -> (RegionInfo, Option<File>) {
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

    fn table(&mut self, regions: &[(u8, Odd)]) {
        let regions: Vec<_> = regions
            .iter()
            .take(8)
            .map(|&(i, odd)| self.region(i, odd))
            .collect();
        let mut payload = [regions.len() as u32, 0].map(u32::to_le_bytes).concat();
        regions
            .iter()
            .for_each(|(region, _)| payload.extend(region_bytes(*region)));
        let fds: Vec<RawFd> = regions
            .iter()
            .flat_map(|(_, file)| file)
            .map(AsRawFd::as_raw_fd)
            .collect();
        self.send(5, NEED_REPLY, &payload, &fds);
    }

    fn get_inflight(&mut self, queues: u16, size: u16) {
        let payload = [&[0; 16][..], &queues.to_le_bytes(), &size.to_le_bytes(), &[0; 4]].concat();
        self.barrier();
        self.send(31, 0, &payload, &[]);
        let Some(client) = self.client.as_mut().filter(|_| self.whole) else {
            return;
        };
        if let Ok((_, (mut bytes, Some(file)))) = client.receive(PATIENCE) {
            while bytes.len() < 12 + 20 {
                match client.receive(PATIENCE) {
                    Ok((1.., (more, _))) => bytes.extend(more),
                    _ => return,
                }
            }
            self.inflight = Some((bytes[12..].to_vec(), file));
        }
    }

    fn set_inflight(&mut self, patches: &[(u16, u8)]) {
        let Some((payload, file)) = self.inflight.take() else {
            return;
        };
        let len = file.metadata().expect("a memfd").len();
        for &(at, byte) in patches.iter().take(32) {
            file.write_all_at(&[byte], u64::from(at) % len)
                .expect("write the region");
        }
        self.send(32, NEED_REPLY, &payload, &[file.as_raw_fd()]);
        self.inflight = Some((payload, file));
    }

    fn request(&mut self, queue: usize, request: &Request) {
        let guest = &self.guest;
        let head = request.store(self.sizes[queue], &mut |at, bytes| {
            guest.write(of_queue(queue, at), bytes)
        });
        let idx = guest.u16(of_queue(queue, AVAIL) + 2);
        let slot = u64::from(idx % self.sizes[queue]);
        guest.write(of_queue(queue, AVAIL) + 4 + 2 * slot, &head.to_le_bytes());
        guest.write(of_queue(queue, AVAIL) + 2, &idx.wrapping_add(1).to_le_bytes());
    }

    fn settle(&self, queue: usize) {
        let (begin, used) = (Instant::now(), of_queue(queue, USED) + 2);
        let idx = self.guest.u16(of_queue(queue, AVAIL) + 2);
        while self.guest.u16(used) != idx && begin.elapsed() < Duration::from_millis(2) {
            thread::yield_now();
        }
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Start(start) => self.start(start),
            Step::Request(queue, request) => self.request((*queue).into(), request),
            Step::Kick(queue) => {
                // A kick eventfd is non-blocking, and full at worst.
                let _ = (&self.kicks[usize::from(*queue)]).write(&1u64.to_ne_bytes());
            }
            Step::Avail(queue, idx, head) => {
                let avail = of_queue((*queue).into(), AVAIL);
                self.guest.write(avail + 2, &idx.to_le_bytes());
                self.guest.write(avail + 4, &head.to_le_bytes());
            }
            Step::UsedEvent(queue, event) => {
                let queue = usize::from(*queue);
                let at = of_queue(queue, AVAIL) + 4 + 2 * u64::from(self.sizes[queue]);
                self.guest.write(at, &event.to_le_bytes());
            }
            Step::Poke(at, bytes) => self.guest.write(at.get(), bytes),
            Step::Barrier => self.barrier(),
            Step::Settle(queue) => self.settle((*queue).into()),
            Step::State(message, queue, number) => {
                let request = match message {
                    StateMessage::Num => 8,
                    StateMessage::Base => 10,
                    StateMessage::GetBase => 11,
                    StateMessage::Enable => 18,
                };
                self.state(request, u32::from(queue % 3), *number);
            }
            Step::Addresses { queue, ring, log } => {
                let ring = ring.map(|place| match place {
                    Place::In(i, at) => REGIONS[usize::from(i) % REGIONS.len()].user + u64::from(at),
                    Place::Any(at) => at,
                });
                self.addresses(u32::from(queue % 3), ring, *log);
            }
            Step::File(message, queue, file) => {
                let request = match message {
                    FileMessage::Kick => 12,
                    FileMessage::Call => 13,
                    FileMessage::Err => 14,
                };
                self.odd_memory |= matches!(file, Descriptor::Guest);
                let file = file.open(&self.guest);
                self.file(request, queue % 3, file.as_ref().map(AsRawFd::as_raw_fd));
            }
            other => self.step_device(other),
        }
    }

    /// Messages that concern the whole device.
    fn step_device(&mut self, step: &Step) {
        match step {
            Step::Features(features) => self.send(2, NEED_REPLY, &features.to_le_bytes(), &[]),
            Step::ProtocolFeatures(features) => self.send(16, 0, &features.to_le_bytes(), &[]),
            Step::Table(regions) => self.table(regions),
            Step::Add(index, odd) => {
                let (region, file) = self.region(*index, *odd);
                let fds: Vec<RawFd> = file.iter().map(AsRawFd::as_raw_fd).collect();
                self.send(
                    37,
                    NEED_REPLY,
                    &[&[0; 8], &region_bytes(region)[..]].concat(),
                    &fds,
                );
            }
            Step::Remove(index) => {
                let (region, _) = self.region(*index, Odd::Nothing);
                self.send(
                    38,
                    NEED_REPLY,
                    &[&[0; 8], &region_bytes(region)[..]].concat(),
                    &[],
                );
            }
            Step::GetConfig(offset, len) => {
                let (offset, len) = (u32::from(*offset), u32::from(len % 300));
                let header = [offset, len, 0].map(u32::to_le_bytes).concat();
                self.send(24, 0, &[header, vec![0; len as usize]].concat(), &[]);
            }
            Step::SetConfig(offset, bytes) => {
                let bytes = &bytes[..bytes.len().min(300)];
                let header = [u32::from(*offset), bytes.len() as u32, 0]
                    .map(u32::to_le_bytes)
                    .concat();
                self.send(25, NEED_REPLY, &[&header, bytes].concat(), &[]);
            }
            Step::Log(size, offset, file) => {
                self.odd_memory |= matches!(file, Descriptor::Guest);
                let file = file.open(&self.guest);
                let fds: Vec<RawFd> = file.iter().map(AsRawFd::as_raw_fd).collect();
                self.send(6, 0, &[*size, *offset].map(u64::to_le_bytes).concat(), &fds);
            }
            Step::GetInflight(queues, size) => self.get_inflight(*queues, *size),
            Step::SetInflight(patches) => self.set_inflight(patches),
            Step::SetAnyInflight(sizes, queues, file) => {
                self.odd_memory |= matches!(file, Descriptor::Guest);
                let file = file.open(&self.guest);
                let fds: Vec<RawFd> = file.iter().map(AsRawFd::as_raw_fd).collect();
                let payload = [
                    sizes.map(u64::to_le_bytes).concat(),
                    queues.map(u16::to_le_bytes).concat(),
                    vec![0; 4],
                ];
                self.send(32, NEED_REPLY, &payload.concat(), &fds);
            }
            Step::Channel(file) => {
                self.odd_memory |= matches!(file, Descriptor::Guest);
                let file = file.open(&self.guest);
                let fds: Vec<RawFd> = file.iter().map(AsRawFd::as_raw_fd).collect();
                self.send(21, NEED_REPLY, &[], &fds);
            }
            Step::Reset(owner) => self.send(if *owner { 4 } else { 34 }, NEED_REPLY, &[], &[]),
            Step::Resize(blocks) => {
                self.resized = true;
                let len = u64::from(*blocks) * 4096;
                self.backend.disk.set_len(len).expect("size the disk");
                assert_eq!(self.resizer.refresh().is_ok(), len > 0);
            }
            Step::Raw {
                request,
                flags,
                len,
                payload,
                files,
            } => self.raw(*request, *flags, *len, payload, files),
            Step::Again => {
                self.end();
                let (client, resizer) = self.backend.connect();
                (self.client, self.resizer, self.whole) = (Some(client), resizer, true);
            }
            _ => {}
        }
    }

    fn raw(&mut self, request: u8, flags: u8, len: Option<u32>, payload: &[u8], files: &[Descriptor]) {
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

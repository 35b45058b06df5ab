//! Sends requests through a real queue and engine, and compares them with a disk that is a `Vec<u8>`.
//!
//! Checks data, answers, used ring and dirty log, and that no other byte changes.
#![no_main]

use std::cell::RefCell;
use std::mem::ManuallyDrop;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use testkit::ring::DriverRing;
use vhost_user_blk::blk::config::{MAX_DISCARD_SECTORS, MAX_RANGES, MAX_WRITE_ZEROES_SECTORS};
use vhost_user_blk::engine::Choice;
use vhost_user_blk::memory::{DirtyLog, RingLog};
use vhost_user_blk::virtqueue::RingFeatures;
use vhost_user_blk_fuzz::chains::{AVAIL, DESC, HEAP, Request, USED};
use vhost_user_blk_fuzz::guest::{Guest, Image, memfd};
use vhost_user_blk_fuzz::queue::{DISK, FILE, Queue, SERIAL, Shape};
use vhost_user_blk_fuzz::spec::{self, Broken, Device, Meaning, Operation};

#[derive(Arbitrary, Debug)]
struct Input {
    size: u8,
    base: u16,
    event_idx: bool,
    indirect: bool,
    large_blocks: bool,
    read_only: bool,
    engine: u8,
    write_through: bool,
    log: bool,
    fill: u8,
    requests: Vec<Request>,
}

thread_local! {
    /// Never dropped: the queues' threads end with the process.
    static QUEUES: RefCell<ManuallyDrop<Vec<Queue>>> = const { RefCell::new(ManuallyDrop::new(Vec::new())) };
}

/// Runs `f` with a queue of this shape. The queue is kept for later inputs.
fn with_queue(shape: Shape, f: impl FnOnce(&Queue)) {
    QUEUES.with_borrow_mut(|queues| {
        if !queues.iter().any(|queue| queue.shape == shape) {
            let other = Shape {
                engine: Choice::Threads,
                ..shape
            };
            let mut queue =
                Queue::new(shape).unwrap_or_else(|| Queue::new(other).expect("threads always work"));
            queue.shape = shape;
            queues.push(queue);
        }
        f(queues
            .iter()
            .find(|queue| queue.shape == shape)
            .expect("it was made"));
    });
}

fuzz_target!(|input: Input| {
    let shape = Shape {
        block_size: if input.large_blocks { 4096 } else { 512 },
        read_only: input.read_only,
        engine: [Choice::Auto, Choice::Threads, Choice::IoUring][usize::from(input.engine % 3)],
    };
    with_queue(shape, |queue| run(&input, queue));
});

/// The driver, and the state that it expects.
struct Run<'a> {
    queue: &'a Queue,
    device: Device,
    guest: Guest,
    /// The expected content of the disk's file.
    disk: Vec<u8>,
    ring: DriverRing,
    log: Option<Log>,
}

struct Log {
    file: std::fs::File,
    log: Arc<DirtyLog>,
}

fn run(input: &Input, queue: &Queue) {
    let disk: Vec<u8> = (0..FILE)
        .map(|i| input.fill ^ (i as u8) ^ ((i >> 9) as u8))
        .collect();
    queue.load(&disk);
    queue.set_write_through(input.write_through);
    let device = Device {
        table: DESC,
        queue_size: 4 << (input.size % 4),
        indirect: input.indirect,
        capacity: queue.capacity(),
        block_size: queue.shape.block_size.into(),
        read_only: queue.shape.read_only,
        discard: queue.device.limits.discard_granularity > 0,
        write_zeroes: queue.device.limits.write_zeroes,
        serial: SERIAL,
        max_discard_sectors: MAX_DISCARD_SECTORS.into(),
        max_write_zeroes_sectors: MAX_WRITE_ZEROES_SECTORS.into(),
        max_segments: MAX_RANGES as usize,
    };
    assert_eq!(device.capacity, DISK as u64);
    let guest = Guest::new();
    let mut ring = DriverRing::new(device.queue_size, DESC as usize, AVAIL as usize, USED as usize);
    ring.continue_at(&guest, input.base);
    let log = input.log.then(|| {
        let file = memfd(4096);
        let log = DirtyLog::map(&file, 0, 4096);
        let log = Arc::new(log.expect("a log like any other"));
        Log { file, log }
    });
    let features = RingFeatures {
        event_idx: input.event_idx,
        indirect: input.indirect,
    };
    let ring_log = log.as_ref().map(|l| RingLog {
        log: Arc::clone(&l.log),
        used: Some(USED),
    });
    queue.start(&guest, device.queue_size, input.base, features, ring_log);
    let mut run = Run {
        queue,
        device,
        guest,
        disk,
        ring,
        log,
    };
    let served = input
        .requests
        .iter()
        .take(12)
        .take_while(|request| run.serve(request))
        .count();
    let base = queue.stop();
    // A broken ring has also taken the chain that broke it.
    let broken = u16::from(served < input.requests.len().min(12));
    assert_eq!(base, input.base.wrapping_add(served as u16 + broken));
    assert!(
        queue.bytes() == run.disk,
        "the disk changed after the last answer"
    );
}

/// Returns the ranges of the used ring that the device changes at any time: its flags, and `avail_event` at the end.
fn own_fields(size: u16) -> [std::ops::Range<usize>; 2] {
    let at = |guest| Image::offset(guest).expect("the rings are mapped");
    let event = at(USED + 4 + 8 * u64::from(size));
    [at(USED)..at(USED) + 2, event..event + 2]
}

impl Run<'_> {
    /// Runs one request from the kick to the answer. Returns `false` if the request broke the ring.
    fn serve(&mut self, request: &Request) -> bool {
        let size = self.device.queue_size;
        // Stores only in the descriptor table and the heap: a request that changes its own ring is ambiguous.
        let head = request.store(size, &mut |at, bytes| {
            if (AVAIL..HEAP).contains(&at) || at < AVAIL && at + bytes.len() as u64 > AVAIL {
                return;
            }
            self.guest.write(at, bytes);
        });
        let before = self.guest.image();
        let slot = u64::from(self.ring.avail_idx % size);
        let mut ring = self.ring;
        ring.offer(&self.guest, head);
        let meaning = self.meaning(&self.guest.image(), head);
        let mut other = self.guest.image();
        own_fields(size)
            .into_iter()
            .flatten()
            .for_each(|at| other.0[at] ^= 0xff);
        if meaning != self.meaning(&other, head) || meaning.as_ref().is_ok_and(touches_rings) {
            // The request's meaning depends on when the device writes to the rings. Such a request is not sent.
            self.guest.load(&before);
            self.skip();
            return true;
        }
        let mut expected = self.guest.image();
        let clear = |log: &Log| log.file.write_all_at(&[0; 4096], 0).expect("clear the log");
        self.log.iter().for_each(clear);
        self.queue.kick();
        let Ok(meaning) = meaning else {
            self.queue.poll_some();
            self.guest.image().assert_is(&expected, &own_fields(size));
            assert!(self.queue.bytes() == self.disk, "a broken chain changed the disk");
            return false;
        };
        let next = ring.avail_idx;
        self.queue.poll_until(|| ring.published(&self.guest) == next);
        self.queue.poll_some();
        let (status, written) = meaning.operation.execute(&mut self.disk, &mut expected);
        expected.put(meaning.status_at, status);
        expected.write(USED + 4 + 8 * slot, &u32::from(head).to_le_bytes());
        expected.write(USED + 8 + 8 * slot, &(written + 1).to_le_bytes());
        expected.write(USED + 2, &next.to_le_bytes());
        self.guest.image().assert_is(&expected, &own_fields(size));
        assert!(
            self.queue.bytes() == self.disk,
            "the disk is not what it should be after {meaning:x?}"
        );
        self.check_log(&meaning);
        self.ring = ring;
        true
    }

    fn meaning(&self, image: &Image, head: u16) -> Result<Meaning, Broken> {
        let buffers = spec::walk(&self.device, image, head)?;
        spec::understand(&self.device, image, buffers)
    }

    /// Sends a flush instead of a request that is ambiguous.
    fn skip(&mut self) {
        self.guest
            .write(HEAP, &[4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        let first = vhost_user_blk_fuzz::chains::descriptor(HEAP, 16, 1, 1);
        let second = vhost_user_blk_fuzz::chains::descriptor(HEAP + 16, 1, 2, 0);
        self.guest.write(DESC, &[first, second].concat());
        self.ring.offer(&self.guest, 0);
        self.queue.kick();
        let ring = self.ring;
        self.queue
            .poll_until(|| ring.published(&self.guest) == ring.avail_idx);
    }

    /// Checks that the log has the bit of every page that was written.
    fn check_log(&self, meaning: &Meaning) {
        let Some(log) = &self.log else { return };
        let mut bits = vec![0; 4096];
        log.file.read_exact_at(&mut bits, 0).expect("read the log");
        let data: Vec<u64> = match &meaning.operation {
            Operation::Read { into, .. } => into.clone(),
            Operation::Answer { data, .. } => data.iter().map(|&(at, _)| at).collect(),
            _ => Vec::new(),
        };
        for at in data.into_iter().chain([meaning.status_at, USED]) {
            let page = at / 4096;
            let Some(byte) = bits.get((page / 8) as usize) else {
                continue;
            };
            assert!(
                byte & 1 << (page % 8) != 0,
                "page {page:#x} was written and not logged"
            );
        }
    }
}

/// Returns whether the data or the status lies in the rings.
fn touches_rings(meaning: &Meaning) -> bool {
    let ring = |&at: &u64| at < HEAP;
    let data = match &meaning.operation {
        Operation::Read { into, .. } => into.iter().any(ring),
        Operation::Write { from, .. } => from.iter().any(ring),
        Operation::Answer { data, .. } => data.iter().any(|(at, _)| ring(at)),
        _ => false,
    };
    data || ring(&meaning.status_at)
}

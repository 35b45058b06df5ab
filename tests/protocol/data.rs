//! A guest reads back what it wrote: all request types, on one or several queues, many in flight.

use std::collections::VecDeque;

use virtio_driver::VirtioBlkFeatureFlags as Blk;

use testkit::daemon::Daemon;
use testkit::frontend::{Done, Frontend, Op, Queue, SLOT, all_features};
use testkit::random::Random;

const DEPTH: usize = 64;
/// Each request in flight has its own area of the disk, so that its result is predictable.
const AREA: usize = SLOT;
const SECTOR: usize = 512;

/// Returns a random request inside one area.
fn random_op(random: &mut Random, area: usize) -> Op {
    let sectors = AREA / SECTOR;
    let first = random.below(sectors);
    let len = (1 + random.below(sectors - first)) * SECTOR;
    let offset = (area * AREA + first * SECTOR) as u64;
    match random.below(20) {
        0..8 => Op::Read { offset, len },
        8..16 => Op::Write {
            offset,
            data: random.bytes(len),
        },
        16 => Op::Flush,
        17 => Op::Discard {
            offset,
            len: len as u64,
        },
        n => Op::WriteZeroes {
            offset,
            len: len as u64,
            unmap: n == 18,
        },
    }
}

/// The expected content of the disk.
#[derive(Clone)]
struct Model {
    bytes: Vec<u8>,
    /// Whether the content of each sector is known. After a discard it is not.
    known: Vec<bool>,
}

impl Model {
    fn new(bytes: &[u8]) -> Self {
        Self {
            bytes: bytes.to_vec(),
            known: vec![true; bytes.len() / SECTOR],
        }
    }

    /// Applies a completed `op` to the model.
    fn apply(&mut self, op: &Op) {
        let at = |offset: u64| usize::try_from(offset).expect("a small disk");
        let (start, len) = match op {
            Op::Write { offset, data } => (at(*offset), data.len()),
            Op::WriteZeroes { offset, len, .. } | Op::Discard { offset, len } => (at(*offset), at(*len)),
            Op::Read { .. } | Op::Flush => return,
        };
        match op {
            Op::Write { data, .. } => self.bytes[start..start + len].copy_from_slice(data),
            _ => self.bytes[start..start + len].fill(0),
        }
        let is_known = !matches!(op, Op::Discard { .. });
        self.known[start / SECTOR..(start + len) / SECTOR].fill(is_known);
    }

    fn check(&self, offset: u64, data: &[u8], what: &str) {
        let start = usize::try_from(offset).expect("a small disk");
        for (i, sector) in data.chunks(SECTOR).enumerate() {
            let at = start + i * SECTOR;
            let right = !self.known[at / SECTOR] || sector == &self.bytes[at..at + SECTOR];
            assert!(right, "{what}: sector {} is wrong", at / SECTOR);
        }
    }

    /// Copies these sectors from another model of the disk.
    fn take_over(&mut self, other: &Self, sectors: std::ops::Range<usize>) {
        let bytes = sectors.start * SECTOR..sectors.end * SECTOR;
        self.bytes[bytes.clone()].copy_from_slice(&other.bytes[bytes]);
        self.known[sectors.clone()].copy_from_slice(&other.known[sectors]);
    }
}

/// Keeps `DEPTH` random requests in flight in the areas from `first_area` on, and checks each result.
fn check_against_model(queue: &mut Queue, first_area: usize, model: &mut Model, rounds: usize) {
    let mut random = Random::new(first_area as u64 + 1);
    let mut running: Vec<Option<Op>> = vec![None; DEPTH];
    let mut idle: VecDeque<usize> = (0..DEPTH).collect();
    let mut left = rounds;
    while left > 0 || queue.in_flight() > 0 {
        for tag in idle.drain(..).take(left) {
            left -= 1;
            let op = random_op(&mut random, first_area + tag);
            queue.submit(&op, tag);
            running[tag] = Some(op);
        }
        queue.kick();
        if queue.in_flight() == 0 {
            break;
        }
        for Done { tag, ret, data } in queue.wait().0 {
            let op = running[tag].take().expect("it was submitted");
            assert_eq!(ret, 0, "{op:?} failed");
            if let Op::Read { offset, len } = op {
                assert_eq!(data.len(), len);
                model.check(offset, &data, "read");
            }
            model.apply(&op);
            idle.push_back(tag);
        }
    }
}

#[test]
fn random_requests_match_an_array_on_one_queue() {
    random_requests_match(1, &[]);
}

#[test]
fn random_requests_match_an_array_on_four_queues() {
    random_requests_match(4, &[]);
}

#[test]
fn random_requests_match_an_array_on_two_iothreads() {
    random_requests_match(4, &["--iothreads", "2"]);
}

#[test]
fn random_requests_match_an_array_on_mapped_iothreads() {
    let mapping = ["--iothread-vq-mapping", "1:0-2;0:3", "--iothread-cpus", "0:0"];
    random_requests_match(4, &[&["--iothreads", "2"][..], &mapping].concat());
}

#[test]
fn random_requests_match_an_array_without_batching() {
    random_requests_match(1, &["--notify", "each"]);
}

fn random_requests_match(queues: usize, options: &[&str]) {
    let image = Random::new(7).bytes(queues * DEPTH * AREA);
    let count = queues.to_string();
    let options = [&["--num-queues", &count], options].concat();
    let mut daemon = Daemon::start(&image, &options);
    let mut frontend = Frontend::connect(&daemon.socket(), queues, DEPTH, all_features()).expect("connect");
    // Each queue has a model of the whole disk, which is simple. A queue uses only its own areas.
    let mut models = vec![Model::new(&image); queues];
    std::thread::scope(|scope| {
        for (i, (queue, model)) in frontend.queues().iter_mut().zip(&mut models).enumerate() {
            scope.spawn(move || check_against_model(queue, i * DEPTH, model, 2000));
        }
    });
    drop(frontend);
    assert!(daemon.terminate().status.success());
    let disk = daemon.image();
    assert_eq!(disk.len(), image.len(), "the image's size changed");
    let mut whole = Model::new(&image);
    let sectors = DEPTH * AREA / SECTOR;
    for (i, model) in models.iter().enumerate() {
        whole.take_over(model, i * sectors..(i + 1) * sectors);
    }
    whole.check(0, &disk, "image");
}

#[test]
fn a_write_changes_only_its_own_range() {
    let image = vec![0x11; 64 << 10];
    let mut daemon = Daemon::start(&image, &[]);
    let mut frontend = Frontend::connect(&daemon.socket(), 1, 4, all_features()).expect("connect");
    let write = Op::Write {
        offset: 1024,
        data: vec![0x22; 1536],
    };
    assert_eq!(frontend.queue(0).run(&write).ret, 0);
    assert_eq!(frontend.queue(0).run(&Op::Flush).ret, 0);
    drop(frontend);
    let mut expected = image;
    expected[1024..2560].fill(0x22);
    assert!(daemon.terminate().status.success());
    assert!(daemon.image() == expected, "the image has other content");
}

#[test]
fn discard_frees_space_and_zeroes_read_as_zero() {
    let daemon = Daemon::start(&vec![0x11; 1 << 20], &[]);
    let mut frontend = Frontend::connect(&daemon.socket(), 1, 4, all_features()).expect("connect");
    let blocks = || {
        use std::os::unix::fs::MetadataExt;
        std::fs::metadata(daemon.image_path())
            .expect("the image is there")
            .blocks()
    };
    let before = blocks();
    let queue = frontend.queue(0);
    assert_eq!(
        queue
            .run(&Op::Discard {
                offset: 0,
                len: 512 << 10
            })
            .ret,
        0
    );
    assert_eq!(queue.run(&Op::Flush).ret, 0);
    assert!(
        blocks() <= before - 512,
        "{} of {before} sectors are still allocated",
        blocks()
    );
    let zeroes = Op::WriteZeroes {
        offset: 512 << 10,
        len: 64 << 10,
        unmap: false,
    };
    assert_eq!(queue.run(&zeroes).ret, 0);
    let read = queue.run(&Op::Read {
        offset: 512 << 10,
        len: 64 << 10,
    });
    assert!(
        read.data.iter().all(|&byte| byte == 0),
        "zeroes were written, something else is read"
    );
}

#[test]
fn read_only_disks_are_announced_and_never_change() {
    let image = Random::new(3).bytes(64 << 10);
    let mut daemon = Daemon::start(&image, &["--read-only"]);
    let mut frontend = Frontend::connect(&daemon.socket(), 1, 4, all_features()).expect("connect");
    assert!(frontend.features() & Blk::RO.bits() != 0, "RO is not offered");
    let queue = frontend.queue(0);
    let data = vec![0; 4096];
    for op in [
        Op::Write { offset: 0, data },
        Op::WriteZeroes {
            offset: 0,
            len: 4096,
            unmap: false,
        },
        Op::WriteZeroes {
            offset: 0,
            len: 4096,
            unmap: true,
        },
        Op::Discard { offset: 0, len: 4096 },
    ] {
        assert_eq!(queue.run(&op).ret, -libc::EIO, "{op:?}");
    }
    assert_eq!(queue.run(&Op::Flush).ret, 0);
    let read = queue.run(&Op::Read {
        offset: 4096,
        len: 8192,
    });
    assert!(
        read.ret == 0 && read.data == image[4096..12288],
        "a read-only disk reads wrong data"
    );
    drop(frontend);
    daemon.terminate();
    assert!(daemon.image() == image, "a read-only image changed");
}

#[test]
fn direct_io_serves_buffers_of_any_alignment() {
    // On a file system without O_DIRECT the daemon must say so. The tests' directory normally supports it.
    let image = Random::new(5).bytes(DEPTH * AREA);
    let daemon = Daemon::start(&image, &["--direct"]);
    let mut frontend = Frontend::connect(&daemon.socket(), 1, DEPTH, all_features()).expect("connect");
    let mut model = Model::new(&image);
    check_against_model(frontend.queue(0), 0, &mut model, 1000);
}

/// Writes 32 blocks in sequence with one kick and reads them back. Returns the number of requests merged into another
/// one.
fn merged_in_a_sequence(options: &[&str]) -> u64 {
    // Without polling, the daemon takes nothing before the kick.
    let options = [&["--poll-max-ns", "0"], options].concat();
    let mut daemon = Daemon::start(&vec![0x11; 64 * 4096], &options);
    let mut frontend = Frontend::connect(&daemon.socket(), 1, DEPTH, all_features()).expect("connect");
    let queue = frontend.queue(0);
    let (offset, data) = (
        |tag: usize| (8 + tag as u64) * 4096,
        Random::new(8).bytes(32 * 4096),
    );
    let write = |tag: usize| Op::Write {
        offset: offset(tag),
        data: data[tag * 4096..][..4096].to_vec(),
    };
    let read = |tag| Op::Read {
        offset: offset(tag),
        len: 4096,
    };
    for ops in [
        (0..32).map(write).collect::<Vec<_>>(),
        (0..32).map(read).collect(),
    ] {
        for (tag, op) in ops.iter().enumerate() {
            queue.submit(op, tag);
        }
        queue.kick();
        let mut done = queue.drain();
        done.sort_by_key(|done| done.tag);
        assert!(done.iter().map(|done| done.tag).eq(0..32));
        for (done, expected) in done.iter().zip(data.chunks(4096)) {
            assert_eq!(done.ret, 0);
            assert!(done.data.is_empty() || done.data == expected, "{}", done.tag);
        }
    }
    drop(frontend);
    let image = daemon.image();
    assert!(image[8 * 4096..40 * 4096] == data, "the image has other content");
    assert!(
        image[..8 * 4096]
            .iter()
            .chain(&image[40 * 4096..])
            .all(|&byte| byte == 0x11)
    );
    daemon.count("total", "merged")
}

#[test]
fn adjacent_requests_are_merged_unless_disabled() {
    for engine in [&[][..], &["--direct"], &["--aio", "threads"]] {
        assert!(merged_in_a_sequence(engine) >= 48, "{engine:?}");
    }
    assert_eq!(merged_in_a_sequence(&["--request-merging", "off"]), 0);
}

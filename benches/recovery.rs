//! Measures the cost of in-flight tracking and dirty logging: a queue with them and one without, in one process.
//!
//! Run it with `cargo bench --bench recovery`. The driver writes all chains to memory beforehand, so making a batch
//! available costs it only a new index and a kick. Rounds of the candidates alternate, so that a disturbance affects
//! all of them. The figures are medians of nanoseconds per 4 KiB read, including all of the device's work.

#[path = "scenarios/queue.rs"]
mod queue;

use std::fs::File;
use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use testkit::blk::header;
use testkit::memory::{SharedMemory, memfd};
use testkit::ring::{DriverRing, linked, readable, writable};
use vhost_user_blk::blk::queue::RingSetup;
use vhost_user_blk::engine::BlockNode;
use vhost_user_blk::memory::{DirtyLog, GuestMemory, RegionInfo, RingLog};
use vhost_user_blk::storage::OpenOptions;
use vhost_user_blk::virtqueue::{InflightRegion, RingAddresses, RingFeatures};

use queue::{Loop, Queue};

const SIZE: u16 = 256;
const CHAINS: u16 = 64;
const AVAIL: u64 = 0x2000;
const USED: u64 = 0x3000;
const HEADERS: u64 = 0x1_0000;
const DATA: u64 = 0x2_0000;
const MEMORY: u64 = 1 << 20;
const DISK: u64 = 1 << 20;
const ROUNDS: usize = 41;
const ROUND: Duration = Duration::from_millis(20);

#[derive(Clone, Copy)]
struct Mode {
    name: &'static str,
    tracked: bool,
    logged: bool,
}

const MODES: [Mode; 4] = [
    mode("neither", false, false),
    mode("in-flight tracking", true, false),
    mode("dirty logging", false, true),
    mode("both", true, true),
];

const fn mode(name: &'static str, tracked: bool, logged: bool) -> Mode {
    Mode {
        name,
        tracked,
        logged,
    }
}

/// A queue and its driver.
struct Disk {
    memory: SharedMemory,
    driver: DriverRing,
    queue: Queue,
    on: Loop,
}

fn main() {
    let image = tempfile::NamedTempFile::new().expect("make an image");
    image.as_file().write_all(&vec![1; 1 << 20]).expect("fill it");
    let options = OpenOptions {
        path: image.path().to_owned(),
        ..OpenOptions::default()
    };
    let file = || BlockNode::open(&options).expect("open the image");
    println!("{:<14}{:<8}{:<22}{:>8}{:>9}", "storage", "batch", "", "ns", "");
    for batch in [1, CHAINS] {
        measure("null", batch, &|| BlockNode::null(DISK));
        measure("cached file", batch, &file);
    }
}

fn measure(name: &str, batch: u16, node: &dyn Fn() -> BlockNode) {
    let mut disks = MODES.map(|mode| Disk::new(node(), mode));
    let mut samples = MODES.map(|_| Vec::with_capacity(ROUNDS));
    for _ in 0..ROUNDS {
        for (disk, samples) in disks.iter_mut().zip(&mut samples) {
            samples.push(disk.round(batch));
        }
    }
    let medians = samples.map(|mut samples| {
        samples.sort_by(f64::total_cmp);
        samples[ROUNDS / 2]
    });
    for (mode, median) in MODES.iter().zip(medians) {
        let change = 100.0 * (median / medians[0] - 1.0);
        println!(
            "{name:<14}{batch:<8}{:<22}{median:>8.1}{change:>+8.1}%",
            mode.name
        );
    }
}

impl Disk {
    fn new(node: BlockNode, mode: Mode) -> Self {
        let file = memfd(MEMORY);
        let on = Loop::new();
        let queue = Queue::start(&on, node, setup(&file, mode));
        let disk = Self {
            memory: SharedMemory::map(file, at(MEMORY)),
            driver: DriverRing::new(SIZE, 0, at(AVAIL), at(USED)),
            queue,
            on,
        };
        disk.fill();
        disk
    }

    /// Writes all chains to memory and fills every slot of the available ring with their heads.
    fn fill(&self) {
        for chain in 0..CHAINS {
            let (i, head) = (u64::from(chain), 3 * chain);
            // A read (type 0) of sector 8 * i: header, data, status.
            self.memory.write(at(HEADERS + 32 * i), &header(0, 8 * i));
            let parts = [
                readable(HEADERS + 32 * i, 16),
                writable(DATA + 4096 * i, 4096),
                writable(HEADERS + 32 * i + 16, 1),
            ];
            self.driver.put_descs(&self.memory, head, &linked(head, &parts));
        }
        for slot in 0..SIZE {
            let entry = self.driver.avail_entry(slot);
            self.memory.store_u16(entry, slot % CHAINS * 3);
        }
    }

    /// Runs batches for one round and returns the nanoseconds per request.
    fn round(&mut self, batch: u16) -> f64 {
        let (start, mut requests) = (Instant::now(), 0.0);
        while start.elapsed() < ROUND {
            for _ in 0..16 {
                self.driver.advance(&self.memory, batch);
                // The device always wants kicks, since it does not poll.
                let is_answered = || self.driver.published(&self.memory) == self.driver.avail_idx;
                self.queue.visit(&self.on, is_answered);
                requests += f64::from(batch);
            }
        }
        start.elapsed().as_secs_f64() * 1e9 / requests
    }
}

fn setup(file: &File, mode: Mode) -> RingSetup {
    let info = RegionInfo {
        guest: 0,
        len: MEMORY,
        user: 0,
        file_offset: 0,
    };
    let memory = GuestMemory::map([(info, file.try_clone().expect("duplicate"))]);
    let inflight = mode.tracked.then(|| {
        let (layout, file) = InflightRegion::create(1, SIZE).expect("make a region");
        let region = InflightRegion::map(&file, layout).expect("map it");
        region.queue(0, SIZE.into()).expect("a fresh one")
    });
    let log = mode.logged.then(|| RingLog {
        log: Arc::new(DirtyLog::map(&memfd(4096), 0, 4096).expect("map a log")),
        used: Some(USED),
    });
    RingSetup {
        memory: Arc::new(memory.expect("map the memory")),
        addresses: RingAddresses {
            desc: 0,
            avail: AVAIL,
            used: USED,
        },
        size: SIZE.into(),
        base: 0,
        features: RingFeatures {
            event_idx: true,
            indirect: false,
        },
        inflight,
        log,
    }
}

fn at(addr: u64) -> usize {
    usize::try_from(addr).expect("it fits")
}

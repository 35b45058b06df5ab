//! Requests from the kick to the call, on a disk without storage, in the page cache, and in memory.

use std::io::Write;

use vhost_user_blk::blk::queue::RingSetup;
use vhost_user_blk::engine::BlockNode;
use vhost_user_blk::storage::OpenOptions;

use super::Ring;
use super::queue::{Loop, Queue};

const DISK: usize = 1 << 20;

/// Makes a disk without storage answer a batch.
pub(crate) fn null(batch: u16) -> Box<dyn FnMut()> {
    Box::new(visits(BlockNode::null(DISK as u64), batch))
}

/// Makes a disk in the page cache answer a batch. A short batch gets no help from a worker, so every run counts the
/// same instructions.
pub(crate) fn page_cache(batch: u16) -> Box<dyn FnMut()> {
    file(env!("CARGO_TARGET_TMPDIR"), batch)
}

/// Makes a disk on tmpfs answer a batch, which is copied from its mapping.
pub(crate) fn memory(batch: u16) -> Box<dyn FnMut()> {
    file("/dev/shm", batch)
}

/// Makes a disk with an image in this directory answer a batch.
fn file(dir: &str, batch: u16) -> Box<dyn FnMut()> {
    let mut image = tempfile::NamedTempFile::new_in(dir).expect("make an image");
    image.write_all(&vec![1; DISK]).expect("fill it");
    let options = OpenOptions {
        path: image.path().to_owned(),
        ..OpenOptions::default()
    };
    let mut visit = visits(BlockNode::open(&options).expect("open the image"), batch);
    Box::new(move || {
        let _image = &image;
        visit();
    })
}

/// Makes each of many disks without storage answer one request. The kicks come together.
pub(crate) fn many(disks: u16) -> Box<dyn FnMut()> {
    let on = Loop::new();
    let mut disks: Vec<Disk> = (0..disks)
        .map(|_| Disk::on(&on, BlockNode::null(DISK as u64), 1))
        .collect();
    Box::new(move || {
        disks.iter_mut().for_each(Disk::offer);
        while !disks.iter().all(|disk| disk.ring.is_answered()) {
            on.ctx.poll(true);
        }
    })
}

/// Makes one of many disks without storage answer a request, while the others have nothing to do.
pub(crate) fn one_of(disks: u16) -> Box<dyn FnMut()> {
    let on = Loop::new();
    let mut disks: Vec<Disk> = (0..disks)
        .map(|_| Disk::on(&on, BlockNode::null(DISK as u64), 1))
        .collect();
    Box::new(move || {
        disks[0].offer();
        while !disks[0].ring.is_answered() {
            on.ctx.poll(true);
        }
    })
}

/// A queue and its driver.
struct Disk {
    ring: Ring,
    queue: Queue,
    batch: u16,
}

impl Disk {
    fn on(on: &Loop, node: BlockNode, batch: u16) -> Self {
        let ring = Ring::new();
        let queue = Queue::start(on, node, ring.setup());
        Self { ring, queue, batch }
    }

    /// Makes a batch available, and kicks.
    fn offer(&mut self) {
        self.ring.offer_reads(self.batch);
        self.queue.kick();
    }
}

/// Returns a step that makes a disk answer a batch, and runs the event loop until it has.
fn visits(node: BlockNode, batch: u16) -> impl FnMut() {
    let on = Loop::new();
    let mut disk = Disk::on(&on, node, batch);
    move || {
        disk.ring.offer_reads(batch);
        disk.queue.visit(&on, || disk.ring.is_answered());
    }
}

impl Ring {
    fn setup(&self) -> RingSetup {
        RingSetup {
            memory: self.table(),
            addresses: Self::addresses(),
            size: Self::size(),
            base: 0,
            features: Self::features(),
            inflight: None,
            log: None,
        }
    }
}

//! Requests from the kick to the call, on a disk without storage and on a disk in the page cache.

use std::io::Write;

use vhost_user_blk::blk::queue::RingSetup;
use vhost_user_blk::engine::BlockNode;
use vhost_user_blk::storage::OpenOptions;

use super::Ring;
use super::queue::Queue;

const DISK: usize = 1 << 20;

/// Makes a disk without storage answer a batch.
pub(crate) fn null(batch: u16) -> Box<dyn FnMut()> {
    let mut disk = Disk::new(BlockNode::null(DISK as u64), batch);
    Box::new(move || disk.visit())
}

/// Makes a disk in the page cache answer a batch. A short batch gets no help from a worker, so every run counts the
/// same instructions.
pub(crate) fn page_cache(batch: u16) -> Box<dyn FnMut()> {
    let mut image = tempfile::NamedTempFile::new_in(env!("CARGO_TARGET_TMPDIR")).expect("make an image");
    image.write_all(&vec![1; DISK]).expect("fill it");
    let options = OpenOptions {
        path: image.path().to_owned(),
        ..OpenOptions::default()
    };
    let mut disk = Disk::new(BlockNode::open(&options).expect("open the image"), batch);
    Box::new(move || {
        let _image = &image;
        disk.visit();
    })
}

/// A queue and its driver.
struct Disk {
    ring: Ring,
    queue: Queue,
    batch: u16,
}

impl Disk {
    fn new(node: BlockNode, batch: u16) -> Self {
        let ring = Ring::new();
        let queue = Queue::start(node, ring.setup());
        Self { ring, queue, batch }
    }

    /// Makes a batch available, kicks, and waits until the device has answered all of it.
    fn visit(&mut self) {
        self.ring.offer_reads(self.batch);
        self.queue.visit(|| self.ring.is_answered());
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

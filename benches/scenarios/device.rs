//! A whole visit of a queue: from the kick to the call, on a disk without storage and on one in the page cache.

use std::io::Write;

use vhost_user_blk::blk::queue::RingSetup;
use vhost_user_blk::engine::BlockNode;
use vhost_user_blk::storage::OpenOptions;

use super::Ring;
use super::queue::Queue;

const DISK: usize = 1 << 20;

/// A disk without storage, which answers a full batch.
pub(crate) fn null(batch: u16) -> Box<dyn FnMut()> {
    let mut disk = Disk::new(BlockNode::null(DISK as u64), batch);
    Box::new(move || disk.visit())
}

/// A file in the page cache. The batch is too short for a worker to help, which would count differently each time.
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

/// A queue, and the driver's side of it.
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

    /// The driver makes a batch available and kicks; the device answers all of it.
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

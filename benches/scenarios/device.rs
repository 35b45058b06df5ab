//! A whole visit of a queue: from the kick to the call, on a disk without storage and on one in the page cache.

use std::fs::File;
use std::io::Write;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use vhost_user_blk::aio::{AioContext, Remote};
use vhost_user_blk::blk::device::DeviceState;
use vhost_user_blk::blk::queue::{BlkQueue, RingSetup};
use vhost_user_blk::engine::{BlockNode, Choice, Resources};
use vhost_user_blk::storage::OpenOptions;
use vhost_user_blk::thread_pool::{ThreadPool, ThreadPoolParams};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::Ring;

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
    kick: EventFd,
    batch: u16,
    _queue: Remote<BlkQueue>,
    ctx: AioContext,
}

/// Makes a queue of a disk on the context.
fn queue(ctx: &AioContext, node: BlockNode) -> Remote<BlkQueue> {
    let node = Arc::new(node);
    let device = Arc::new(DeviceState::new("bench", Arc::clone(&node)));
    let pool = ThreadPool::new(ctx, ThreadPoolParams::default());
    let plan = node.plan(Choice::Auto).expect("an engine");
    let channel = node
        .open_channel(&Resources::new(ctx, pool), plan)
        .expect("a channel");
    BlkQueue::create(ctx, 0, device, Arc::default(), channel)
}

impl Disk {
    fn new(node: BlockNode, batch: u16) -> Self {
        let ctx = AioContext::new().expect("make a context");
        ctx.set_poll_max(Duration::ZERO);
        let (ring, queue) = (Ring::new(), queue(&ctx, node));
        let [kick, call] = [(); 2].map(|()| EventFd::new(EFD_NONBLOCK).expect("make an eventfd"));
        let (setup, device_kick) = (ring.setup(), kick.try_clone().expect("duplicate"));
        let start = move |queue: &Rc<BlkQueue>| {
            queue.set_call(Some(Arc::new(into_file(call))));
            queue.start(setup).expect("the ring is good");
            queue.set_enabled(true);
            queue.set_kick(Some(into_file(device_kick))).expect("an eventfd");
        };
        queue.post(start).expect("the context lives");
        ctx.poll(false);
        Self {
            ring,
            kick,
            batch,
            _queue: queue,
            ctx,
        }
    }

    /// The driver makes a batch available and kicks; the device answers all of it.
    fn visit(&mut self) {
        self.ring.offer_reads(self.batch);
        self.kick.write(1).expect("kick");
        while !self.ring.is_answered() {
            self.ctx.poll(false);
        }
    }
}

fn into_file(event: EventFd) -> File {
    use std::os::fd::{FromRawFd, IntoRawFd};
    // SAFETY: the descriptor is open, and given up by its owner.
    unsafe { File::from_raw_fd(event.into_raw_fd()) }
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

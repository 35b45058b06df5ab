//! A queue of a disk, on the event loop of the calling thread.

use std::fs::File;
use std::os::fd::{FromRawFd, IntoRawFd};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use vhost_user_blk::aio::{AioContext, Remote};
use vhost_user_blk::blk::device::DeviceState;
use vhost_user_blk::blk::queue::{BlkQueue, RingSetup};
use vhost_user_blk::engine::{BlockNode, Choice, Resources};
use vhost_user_blk::thread_pool::{ThreadPool, ThreadPoolParams};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// A running queue and its events.
pub(crate) struct Queue {
    kick: EventFd,
    _remote: Remote<BlkQueue>,
    ctx: AioContext,
}

impl Queue {
    /// Starts a queue on a disk.
    pub(crate) fn start(node: BlockNode, setup: RingSetup) -> Self {
        let ctx = AioContext::new().expect("make a context");
        ctx.set_poll_max(Duration::ZERO);
        let remote = create(&ctx, node);
        let [kick, call] = [(); 2].map(|()| EventFd::new(EFD_NONBLOCK).expect("make an eventfd"));
        let device_kick = kick.try_clone().expect("duplicate");
        let start = move |queue: &Rc<BlkQueue>| {
            queue.set_call(Some(into_file(call)));
            queue.start(setup).expect("the ring is good");
            queue.set_enabled(true);
            queue.set_kick(Some(into_file(device_kick))).expect("an eventfd");
        };
        remote.post(start).expect("the context lives");
        ctx.poll(false);
        Self {
            kick,
            _remote: remote,
            ctx,
        }
    }

    /// Kicks the queue, and runs the event loop until `is_done` returns true.
    pub(crate) fn visit(&self, mut is_done: impl FnMut() -> bool) {
        self.kick.write(1).expect("kick");
        while !is_done() {
            self.ctx.poll(false);
        }
    }
}

fn create(ctx: &AioContext, node: BlockNode) -> Remote<BlkQueue> {
    let node = Arc::new(node);
    let device = Arc::new(DeviceState::new("bench", Arc::clone(&node)));
    let pool = ThreadPool::new(ctx, ThreadPoolParams::default());
    let plan = node.plan(Choice::Auto).expect("an engine");
    let channel = node
        .open_channel(&Resources::new(ctx, pool), plan)
        .expect("a channel");
    BlkQueue::create(ctx, 0, device, Arc::default(), channel)
}

fn into_file(event: EventFd) -> File {
    // SAFETY: the descriptor is open, and its previous owner gave it up.
    unsafe { File::from_raw_fd(event.into_raw_fd()) }
}

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
}

/// An event loop with what its disks share. It never polls before it waits.
pub(crate) struct Loop {
    pub(crate) ctx: AioContext,
    resources: Rc<Resources>,
}

impl Loop {
    pub(crate) fn new() -> Self {
        let ctx = AioContext::new().expect("make a context");
        ctx.set_poll_max(Duration::ZERO);
        let pool = ThreadPool::new(&ctx, ThreadPoolParams::default());
        let resources = Resources::new(&ctx, pool);
        Self { ctx, resources }
    }
}

impl Queue {
    /// Starts a queue on a disk.
    pub(crate) fn start(on: &Loop, node: BlockNode, setup: RingSetup) -> Self {
        let remote = create(on, node);
        let [kick, call] = [(); 2].map(|()| EventFd::new(EFD_NONBLOCK).expect("make an eventfd"));
        let device_kick = kick.try_clone().expect("duplicate");
        let start = move |queue: &Rc<BlkQueue>| {
            queue.set_call(Some(into_file(call).into()));
            queue.start(setup).expect("the ring is good");
            queue.set_enabled(true);
            queue
                .set_kick(Some(into_file(device_kick).into()))
                .expect("an eventfd");
        };
        remote.post(start).expect("the context lives");
        on.ctx.poll(false);
        Self {
            kick,
            _remote: remote,
        }
    }

    pub(crate) fn kick(&self) {
        self.kick.write(1).expect("kick");
    }

    /// Kicks the queue, and runs its event loop until `is_done` returns true.
    pub(crate) fn visit(&self, on: &Loop, mut is_done: impl FnMut() -> bool) {
        self.kick();
        while !is_done() {
            on.ctx.poll(false);
        }
    }
}

fn create(on: &Loop, node: BlockNode) -> Remote<BlkQueue> {
    let node = Arc::new(node);
    let device = Arc::new(DeviceState::new("bench", Arc::clone(&node)));
    let plan = node.plan(Choice::Auto).expect("an engine");
    let channel = node.open_channel(&on.resources, plan).expect("a channel");
    BlkQueue::create(&on.ctx, 0, device, Arc::default(), channel)
}

fn into_file(event: EventFd) -> File {
    // SAFETY: the descriptor is open, and its previous owner gave it up.
    unsafe { File::from_raw_fd(event.into_raw_fd()) }
}

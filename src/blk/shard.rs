//! A disk's queues on one IOThread. IOThread only; other threads reach it through a [`Remote`].

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::Sender;

use super::position::Positions;
use super::queue::BlkQueue;
use super::state::DeviceState;
use super::stats::QueueStats;
use crate::aio::Remote;
use crate::engine::{self, Channel, ControlChannel, DiskView, Faults, NodeControl, Plan, Resources};
use crate::throttle::Member;

/// How a disk reaches the node below.
#[derive(Clone, Debug)]
pub(super) struct Route {
    pub(super) view: Arc<DiskView>,
    pub(super) plan: Plan,
    pub(super) faults: Option<Arc<Faults>>,
    pub(super) member: Option<Arc<Member>>,
}

/// The queues of a disk on one IOThread.
#[derive(Debug)]
pub(super) struct Shard {
    resources: Rc<Resources>,
    queues: Vec<Rc<BlkQueue>>,
    control: Rc<ControlChannel>,
    /// The channels to switch to.
    next: RefCell<Option<Next>>,
}

#[derive(Debug)]
struct Next {
    channels: Channels,
    view: Arc<DiskView>,
}

/// The parts of a disk on one IOThread, for other threads.
pub(super) struct Created {
    pub(super) queues: Vec<(u16, Remote<BlkQueue>)>,
    pub(super) control: NodeControl,
    pub(super) shard: Remote<Shard>,
}

/// A channel without faults and limits, and one with those of the disk.
#[derive(Debug)]
struct Channels {
    plain: Channel,
    full: Channel,
}

impl Channels {
    fn open(resources: &Resources, route: &Route) -> Result<Self, engine::Error> {
        let Route { view, plan, .. } = route;
        let (ctx, node) = (resources.ctx(), &view.node);
        let plain = node
            .open_channel(resources, *plan)?
            .with_zero_detection(view.zeroes);
        let mut full = plain.sibling();
        if let Some(faults) = &route.faults {
            let block = node.limits().logical_block_size;
            full = full.with_faults(ctx, Arc::clone(faults), block, view.start);
        }
        if let Some(member) = &route.member {
            full = full.with_limits(ctx, member);
        }
        Ok(Self { plain, full })
    }
}

impl Shard {
    /// Makes queues on the calling IOThread.
    ///
    /// # Errors
    /// The engine is not available on this thread.
    pub(super) fn create(
        resources: &Rc<Resources>,
        mine: Vec<(u16, Arc<QueueStats>)>,
        state: &Arc<DeviceState>,
        route: &Route,
    ) -> Result<Created, engine::Error> {
        let ctx = resources.ctx();
        let Channels { plain, full } = Channels::open(resources, route)?;
        let (control, channel) = NodeControl::new(ctx, plain);
        let create = |(index, stats): (u16, Arc<QueueStats>)| {
            let channel = full.counting_sibling(&stats.throttle);
            let queue = BlkQueue::new(ctx, index, Arc::clone(state), stats, channel);
            (index, queue)
        };
        let queues: Vec<(u16, Rc<BlkQueue>)> = mine.into_iter().map(create).collect();
        let shard = Rc::new(Self {
            resources: Rc::clone(resources),
            queues: queues.iter().map(|(_, queue)| Rc::clone(queue)).collect(),
            control: channel,
            next: RefCell::default(),
        });
        let remote = |(index, queue)| (index, Remote::new(ctx, queue));
        Ok(Created {
            queues: queues.into_iter().map(remote).collect(),
            control,
            shard: Remote::new(ctx, shard),
        })
    }

    /// Quiesces all queues. Each of them sends a message when its channel has no request.
    pub(super) fn quiesce(&self, done: &Sender<()>) {
        self.queues.iter().for_each(|queue| queue.quiesce(done.clone()));
    }

    pub(super) fn resume(&self) {
        self.queues.iter().for_each(|queue| queue.resume());
    }

    /// Returns where the rings stand.
    pub(super) fn positions(&self) -> Positions {
        let position = |queue: &Rc<BlkQueue>| Some((queue.index(), queue.position()?));
        self.queues.iter().filter_map(position).collect()
    }

    pub(super) fn set_inactive(&self, inactive: bool) {
        self.queues.iter().for_each(|queue| queue.set_inactive(inactive));
    }

    /// Opens the channels to switch to.
    ///
    /// # Errors
    /// The engine is not available on this thread.
    pub(super) fn prepare(&self, route: &Route) -> Result<(), engine::Error> {
        let channels = Channels::open(&self.resources, route)?;
        let view = Arc::clone(&route.view);
        self.next.replace(Some(Next { channels, view }));
        Ok(())
    }

    /// Switches to the prepared channels. All queues are quiesced.
    pub(super) fn commit(&self) {
        let Some(Next { channels, view }) = self.next.take() else {
            return;
        };
        for queue in &self.queues {
            queue.replace_channel(&channels.full, Arc::clone(&view));
        }
        self.control.replace(channels.plain);
    }

    /// Drops the prepared channels.
    pub(super) fn cancel(&self) {
        self.next.take();
    }
}

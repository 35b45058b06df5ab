//! A storage and an engine on the test's own event loop.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use vhost_user_blk::aio::AioContext;
use vhost_user_blk::defer::DeferScope;
use vhost_user_blk::engine::{BlockNode, Channel, Choice, DetectZeroes, Error, Plan, Resources};
use vhost_user_blk::io::{Completer, IoOp, IoRange, IoRequest, Requests};
use vhost_user_blk::thread_pool::{ThreadPool, ThreadPoolParams};

use crate::support::{Buffers, Image, On};

/// Long enough for a busy machine; a request that takes longer is lost.
const LONG: Duration = Duration::from_secs(60);

/// The requests that have completed.
#[derive(Default)]
pub(crate) struct Done(RefCell<Requests>);

impl Done {
    pub(crate) fn count(&self) -> usize {
        self.0.borrow().len()
    }
}

impl Completer for Done {
    fn complete(&self, request: Box<IoRequest>) {
        self.0.borrow_mut().push(request);
    }
}

/// A disk on the test's event loop. Tokens tell its requests apart.
pub(crate) struct Disk {
    // Declared before `ctx`, where it is registered, so that it is dropped first.
    channel: Channel,
    /// A second channel, which merges requests.
    merging: Channel,
    /// One that also detects zeroes.
    detecting: Channel,
    pub(crate) plan: Plan,
    pub(crate) done: Rc<Done>,
    pub(crate) node: BlockNode,
    pub(crate) ctx: AioContext,
}

impl Disk {
    pub(crate) fn on(ctx: &AioContext, node: impl Into<BlockNode>, choice: Choice) -> Result<Self, Error> {
        Self::detecting(ctx, node, choice, DetectZeroes::Unmap)
    }

    /// Makes a disk whose third channel detects writes of zeroes like this.
    pub(crate) fn detecting(
        ctx: &AioContext,
        node: impl Into<BlockNode>,
        choice: Choice,
        zeroes: DetectZeroes,
    ) -> Result<Self, Error> {
        let node = node.into();
        let pool = ThreadPool::new(ctx, ThreadPoolParams::default());
        let resources = Resources::new(ctx, pool);
        let plan = node.plan(choice)?;
        Ok(Self {
            channel: node.open_channel(&resources, plan.with_merging(false))?,
            merging: node.open_channel(&resources, plan)?,
            detecting: node.open_channel(&resources, plan)?.with_zero_detection(zeroes),
            plan,
            done: Rc::default(),
            node,
            ctx: ctx.clone(),
        })
    }

    pub(crate) fn request(&self, token: u16, op: IoOp, offset: u64, buffers: &mut Buffers) -> Box<IoRequest> {
        let mut request = IoRequest::new();
        request.op = op;
        request.offset = offset;
        request.token = token;
        request.iov = buffers.iov();
        request
    }

    /// Makes a flush, discard or write-zeroes.
    pub(crate) fn command(&self, token: u16, op: IoOp, range: Option<IoRange>) -> Box<IoRequest> {
        let mut request = self.request(token, op, 0, &mut Buffers::new(0, &[]));
        request.ranges.extend(range);
        request
    }

    /// Submits requests that may be merged. Returns the number of requests merged into another one.
    pub(crate) fn submit_merged(&self, batch: Requests) -> usize {
        self.submit_to(&self.merging, batch)
    }

    /// As [`submit_merged`](Self::submit_merged), and detects writes of zeroes.
    pub(crate) fn submit_detected(&self, batch: Requests) -> usize {
        self.submit_to(&self.detecting, batch)
    }

    /// Submits requests without merging.
    pub(crate) fn submit(&self, batch: Requests) {
        assert_eq!(self.submit_to(&self.channel, batch), 0);
    }

    fn submit_to(&self, channel: &Channel, mut batch: Requests) -> usize {
        let _scope = DeferScope::enter();
        let merged = channel.submit(&mut batch, &(Rc::clone(&self.done) as _));
        assert!(batch.is_empty());
        merged
    }

    /// Whether a worker that was asked to help has not come back yet.
    pub(crate) fn is_sharing(&self) -> bool {
        [&self.channel, &self.merging, &self.detecting]
            .iter()
            .any(|channel| channel.is_sharing())
    }

    /// Takes the requests that have completed so far, in the order of their tokens.
    pub(crate) fn take_done(&self) -> Requests {
        let mut done = self.done.0.take();
        done.sort_by_key(|request| request.token);
        done
    }

    /// Runs the loop until `count` requests have completed, and takes them.
    pub(crate) fn wait(&self, count: usize) -> Requests {
        let lost = self.ctx.timer(|| panic!("requests are lost"));
        lost.arm_in(LONG);
        while self.done.0.borrow().len() < count {
            self.ctx.poll(true);
        }
        self.take_done()
    }

    pub(crate) fn run(&self, request: Box<IoRequest>) -> std::io::Result<()> {
        self.submit(vec![request]);
        self.wait(1).remove(0).result
    }
}

/// An engine and the kind of disk that it is tested on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Case {
    pub(crate) choice: Choice,
    on: On,
    pub(crate) direct: bool,
    /// A null disk: a timer completes its requests after this time, and nothing is stored.
    latency: Option<Duration>,
}

const fn case(choice: Choice, on: On, direct: bool) -> Case {
    let latency = None;
    Case {
        choice,
        on,
        direct,
        latency,
    }
}

const fn later(latency: Duration) -> Case {
    Case {
        latency: Some(latency),
        ..case(Choice::Auto, On::Tmpfs, false)
    }
}

pub(crate) const CASES: [Case; 10] = [
    later(Duration::ZERO),
    later(Duration::from_micros(200)),
    case(Choice::Auto, On::Tmpfs, false),
    case(Choice::Auto, On::Disk, false),
    case(Choice::Auto, On::Disk, true),
    case(Choice::Threads, On::Disk, false),
    case(Choice::Threads, On::Disk, true),
    case(Choice::IoUring, On::Disk, false),
    case(Choice::IoUring, On::Disk, true),
    case(Choice::Native, On::Disk, true),
];

impl Case {
    pub(crate) fn image(self, size: u64) -> Image {
        Image::filled(self.on, size, 7)
    }

    /// Whether the disk stores written data.
    pub(crate) fn stores(self) -> bool {
        self.latency.is_none()
    }

    /// Opens the image.
    pub(crate) fn node(self, image: &Image) -> BlockNode {
        match self.latency {
            Some(latency) => BlockNode::null_aio(image.file().metadata().unwrap().len(), latency),
            None if self.direct => image.open_direct().into(),
            None => image.open().into(),
        }
    }

    /// Opens the disk. Reports a skipped test and returns `None` if this machine has no such engine.
    pub(crate) fn disk(self, ctx: &AioContext, image: &Image) -> Option<Disk> {
        Disk::on(ctx, self.node(image), self.choice)
            .inspect_err(|error| testkit::skip::skipped(format_args!("{self:?}: {error}")))
            .ok()
    }
}

/// Runs `test` for every engine that this machine has.
pub(crate) fn for_each(size: u64, test: impl Fn(Case, &Image, &Disk)) {
    let ctx = AioContext::new().unwrap();
    for case in CASES {
        let image = case.image(size);
        if let Some(disk) = case.disk(&ctx, &image) {
            test(case, &image, &disk);
        }
    }
}

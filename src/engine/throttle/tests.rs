//! Limits of days and not of seconds, so that no test depends on how fast it runs.

use std::cell::RefCell;
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;

use super::*;
use crate::aio::Remote;
use crate::engine::{BlockNode, Channel, Choice, Resources};
use crate::io::IoRange;
use crate::iothread::{IoThread, IoThreadParams};
use crate::thread_pool::{ThreadPool, ThreadPoolParams};
use crate::throttle::{Group, ThrottleLimits};

#[derive(Default)]
struct Done(RefCell<Vec<u16>>);

impl Completer for Done {
    fn complete(&self, request: Box<IoRequest>) {
        assert!(request.result.is_ok());
        self.0.borrow_mut().push(request.token);
    }
}

/// A disk that stores nothing, with limits.
struct Disk {
    channel: Channel,
    done: Rc<Done>,
}

impl Disk {
    fn new(ctx: &AioContext, group: &Arc<Group>) -> Self {
        let pool = ThreadPool::new(ctx, ThreadPoolParams::default());
        Self::with(&Resources::new(ctx, pool), group)
    }

    fn with(resources: &Resources, group: &Arc<Group>) -> Self {
        let node = BlockNode::null(1 << 30);
        let plan = node.plan(Choice::Auto).unwrap();
        let channel = node.open_channel(resources, plan).unwrap();
        Self {
            channel: channel.with_limits(resources.ctx(), &group.join()),
            done: Rc::default(),
        }
    }

    /// Submits requests, each of which the group pays off in a day.
    fn submit(&self, op: IoOp, tokens: Range<u16>) {
        let _scope = DeferScope::enter();
        let request = |token| {
            let mut request = IoRequest::new();
            (request.op, request.token) = (op, token);
            let range = IoRange {
                offset: 0,
                len: 86_400,
                unmap: false,
            };
            request.ranges.push(range);
            request
        };
        let completer = Rc::clone(&self.done) as Rc<dyn Completer>;
        self.channel
            .submit(&mut tokens.map(request).collect(), &completer);
    }

    fn done(&self) -> Vec<u16> {
        self.done.0.borrow().clone()
    }

    fn wait_for(&self, ctx: &AioContext, count: u16) {
        while self.done().len() < usize::from(count) {
            ctx.poll(true);
        }
        assert_eq!(self.done(), (0..count).collect::<Vec<_>>());
    }
}

/// One byte a second.
fn slow_group() -> Arc<Group> {
    let limits = ThrottleLimits {
        bps_total: 1,
        ..ThrottleLimits::default()
    };
    Group::new("group", limits).unwrap()
}

fn lift_limits(group: &Group) {
    group.set_limits(ThrottleLimits::default()).unwrap();
}

#[test]
fn waiting_requests_follow_changed_limits() {
    let ctx = AioContext::new().unwrap();
    let group = slow_group();
    let disk = Disk::new(&ctx, &group);
    disk.submit(IoOp::Discard, 0..64);
    assert_eq!(disk.done(), [0], "the rest waits");
    lift_limits(&group);
    disk.wait_for(&ctx, 64);
    drop(disk);
    assert_eq!(group.members(), 0);
}

#[test]
fn flushes_do_not_wait() {
    let ctx = AioContext::new().unwrap();
    let disk = Disk::new(&ctx, &slow_group());
    disk.submit(IoOp::Discard, 0..1);
    disk.submit(IoOp::Flush, 1..2);
    assert_eq!(disk.done(), [0, 1]);
    disk.submit(IoOp::Discard, 2..3);
    disk.submit(IoOp::Flush, 3..4);
    assert_eq!(disk.done(), [0, 1, 3]);
    disk.channel.release_waiting();
}

#[test]
fn released_requests_go_at_once() {
    let ctx = AioContext::new().unwrap();
    let group = slow_group();
    let [disk, other] = [(); 2].map(|()| Disk::new(&ctx, &group));
    disk.submit(IoOp::Discard, 0..10);
    other.submit(IoOp::Discard, 0..2);
    disk.channel.release_waiting();
    assert_eq!(disk.done(), (0..10).collect::<Vec<_>>());
    assert_eq!(other.done().len(), 0, "another disk's requests wait on");
    disk.submit(IoOp::Discard, 10..11);
    assert_eq!(disk.done().len(), 10, "those that came later wait");
    lift_limits(&group);
    other.wait_for(&ctx, 2);
    disk.wait_for(&ctx, 11);
}

#[test]
fn slow_writes_of_a_disk_delay_no_reads_of_another() {
    let ctx = AioContext::new().unwrap();
    let limits = ThrottleLimits {
        bps_write: 1,
        iops_read: 100,
        ..ThrottleLimits::default()
    };
    let group = Group::new("group", limits).unwrap();
    let [writer, reader] = [(); 2].map(|()| Disk::new(&ctx, &group));
    // Its timer fires in a day.
    writer.submit(IoOp::Discard, 0..2);
    reader.submit(IoOp::Read, 0..15);
    assert!(reader.done().len() < 15, "some wait");
    reader.wait_for(&ctx, 15);
    assert_eq!(writer.done(), [0]);
    writer.channel.release_waiting();
}

#[test]
fn disks_of_several_iothreads_share_a_group() {
    let ctx = AioContext::new().unwrap();
    let iothread = IoThread::spawn("iothread0", &IoThreadParams::default()).unwrap();
    let group = slow_group();
    for keeper_leaves in [false, true] {
        group.set_limits(slow_group().limits()).unwrap();
        let remote_group = Arc::clone(&group);
        // The first one with a waiting request keeps the time.
        let remote = iothread
            .call(move |resources| {
                let disk = Disk::with(resources, &remote_group);
                disk.submit(IoOp::Discard, 0..2);
                Remote::new(resources.ctx(), Rc::new(disk))
            })
            .unwrap();
        let disk = Disk::new(&ctx, &group);
        disk.submit(IoOp::Discard, 0..5);
        assert_eq!(disk.done().len(), 0);
        if keeper_leaves {
            let done = remote.call(|disk| {
                disk.channel.release_waiting();
                disk.done()
            });
            assert_eq!(done.unwrap(), [0, 1]);
        }
        lift_limits(&group);
        disk.wait_for(&ctx, 5);
    }
}

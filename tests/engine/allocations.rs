//! Requests allocate nothing on their way, once everything has been used. A global allocator counts the allocations.

use std::rc::Rc;

use testkit::allocations::{Counting, of_all_threads, of_this_thread, settle};
use testkit::process::run_alone;
use vhost_user_blk::aio::AioContext;
use vhost_user_blk::defer::DeferScope;
use vhost_user_blk::engine::{BlockNode, Channel, Choice, Error, Resources};
use vhost_user_blk::io::{Completer, IoOp, Requests, Splitter};
use vhost_user_blk::thread_pool::{ThreadPool, ThreadPoolParams};

use crate::disk::CASES;
use crate::split::{Back, request};
use crate::support::Buffers;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn splitting_allocates_nothing_once_warm() {
    let (splitter, back) = (Splitter::new(), Rc::<Back>::default());
    let mut memory: Vec<Vec<Vec<u8>>> = (0..8).map(|_| vec![vec![0; 512]; 20]).collect();
    let mut parents: Requests = memory
        .iter_mut()
        .map(|memory| request(IoOp::Read, 0, memory, &back))
        .collect();
    let mut children = Requests::new();
    let mut round = || {
        for mut parent in parents.drain(..) {
            parent.set_completer(Rc::clone(&back) as _);
            let split = splitter.split(parent);
            // Groups of twenty ranges, which do not fit into a list without allocating.
            for at in (0..20).map(|n| n * 512) {
                children.push(split.child(at, 512));
            }
            let mut group = split.child(0, 10240);
            group.absorb(split.child(0, 10240));
            children.push(group);
        }
        children.drain(..).for_each(|child| child.finish());
        while back.count() > 0 {
            parents.push(back.take_one());
        }
        assert_eq!(parents.len(), 8);
    };
    // Boxes are not reused in the order in which they were taken. After some rounds each one has held the longest list.
    assert!(settle(of_this_thread, &mut round));
}

const MIB: usize = 1 << 20;
/// Ranges of each request. So many do not fit into a list without allocating.
const RANGES: usize = 20;
const RANGE: usize = 4096;

/// A channel to a disk, and requests that are used again and again.
struct Path {
    channel: Channel,
    splitter: Rc<Splitter>,
    back: Rc<Back>,
    idle: Requests,
    batch: Requests,
    ctx: AioContext,
    _memory: Vec<Buffers>,
}

impl Path {
    fn open(node: &BlockNode, choice: Choice, requests: usize) -> Result<Self, Error> {
        let ctx = AioContext::new().unwrap();
        // Workers stay, because creating one allocates.
        let workers = ThreadPoolParams {
            min_threads: 2,
            max_threads: 2,
        };
        let resources = Resources::new(&ctx, ThreadPool::new(&ctx, workers));
        let plan = node.plan(choice)?.with_merging(false);
        let back = Rc::<Back>::default();
        // Aligned, because O_DIRECT copies other memory through a buffer that it allocates.
        let mut memory: Vec<_> = (0..requests).map(|_| Buffers::new(0, &[RANGE; RANGES])).collect();
        let idle = memory.iter_mut().zip(0..).map(|(memory, n)| {
            let op = match n % 2 {
                0 => IoOp::Read,
                _ => IoOp::Write { durable: false },
            };
            let mut request = request(op, n * (RANGES * RANGE) as u64, &mut [], &back);
            request.iov = memory.iov();
            request
        });
        Ok(Self {
            channel: node.open_channel(&resources, plan)?,
            splitter: Splitter::new(),
            idle: idle.collect(),
            batch: Requests::new(),
            back,
            ctx,
            _memory: memory,
        })
    }

    fn submit(&mut self, completer: &Rc<dyn Completer>) {
        let _scope = DeferScope::enter();
        self.channel.submit(&mut self.batch, completer);
    }

    /// Waits until all requests are back.
    fn wait(&mut self, requests: usize) {
        while self.idle.len() < requests {
            match self.back.count() {
                0 => drop(self.ctx.poll(true)),
                _ => self.idle.push(self.back.take_one()),
            }
        }
    }

    /// Executes all requests.
    fn round(&mut self) {
        let requests = self.idle.len();
        self.batch.append(&mut self.idle);
        self.submit(&(Rc::clone(&self.back) as _));
        self.wait(requests);
    }

    /// Executes all requests in four parts each.
    fn split_round(&mut self) {
        let requests = self.idle.len();
        for mut parent in self.idle.drain(..) {
            parent.set_completer(Rc::clone(&self.back) as _);
            let split = self.splitter.split(parent);
            let part = RANGES * RANGE / 4;
            self.batch.extend((0..4).map(|n| split.child(n * part, part)));
        }
        self.submit(&(Rc::clone(&self.splitter) as _));
        self.wait(requests);
    }
}

fn check(name: &str, node: &BlockNode, choice: Choice) {
    // If one request in a batch allocated, batches of one would always show it.
    for requests in [1, 8] {
        let mut path = match Path::open(node, choice, requests) {
            Ok(path) => path,
            Err(error) => return testkit::skip::skipped(format_args!("{name}: {error}")),
        };
        assert!(
            settle(of_all_threads, || path.round()),
            "{name}: batches of {requests}"
        );
        assert!(
            settle(of_all_threads, || path.split_round()),
            "{name}: parts of {requests} requests"
        );
    }
}

#[test]
fn engines_allocate_nothing_once_warm() {
    run_alone("allocations::body_of_allocating_nothing");
}

#[test]
#[ignore = "counts the allocations of its process"]
fn body_of_allocating_nothing() {
    for case in CASES {
        let image = case.image(MIB as u64);
        check(&format!("{case:?}"), &case.node(&image), case.choice);
    }
    for choice in [Choice::Auto, Choice::Threads] {
        check(&format!("null, {choice:?}"), &BlockNode::null(MIB as u64), choice);
    }
}

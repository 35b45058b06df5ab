//! Workers that panic while they help, or that are late.

use std::cell::RefCell;
use std::sync::mpsc::{self, Sender};

use super::super::merge::Merger;
use super::super::testing;
use super::super::writers::Writers;
use super::*;
use crate::aio::Timer;
use crate::storage::RawFile;
use crate::thread_pool::{ThreadPool, ThreadPoolParams};

const BATCH: u16 = 16;

/// A deadline in case of a hang. Nothing waits for it otherwise.
const DEADLINE: Duration = Duration::from_secs(60);

/// Helps like a worker, but fails to execute every third request without waiting, and panics at one of them.
struct Clumsy {
    help: Box<Help<RawFile>>,
    panics_at: u16,
    through: Sender<()>,
}

impl Work for Clumsy {
    fn run(&mut self) {
        let _through = Through(&self.through);
        self.help.help(|session, request| {
            assert_ne!(request.token, self.panics_at, "as asked for");
            request.token % 3 != 0 && RawFile::try_execute(session, request)
        });
    }

    fn complete(self: Box<Self>, ctx: &AioContext, outcome: Outcome) {
        self.help.complete(ctx, outcome);
    }
}

fn execute_here(file: &RawFile, request: &mut IoRequest) -> bool {
    let session = file.session(false).expect("a file need not wait for this");
    RawFile::try_execute(&session, request)
}

/// Reports the end of the work on drop, also after a panic.
struct Through<'a>(&'a Sender<()>);

impl Drop for Through<'_> {
    fn drop(&mut self) {
        let _ = self.0.send(());
    }
}

/// Collects completed requests.
#[derive(Default)]
struct Back {
    requests: RefCell<Requests>,
}

impl Completer for Back {
    fn complete(&self, request: Box<IoRequest>) {
        self.requests.borrow_mut().push(request);
    }
}

/// A queue and a pool of one worker.
struct Queue {
    sharing: Rc<Sharing<RawFile>>,
    file: Arc<RawFile>,
    back: Rc<Back>,
    lost: Timer,
    pool: ThreadPool,
    memory: Box<[u8; 512]>,
    // Dropped after everything that is registered with it.
    ctx: AioContext,
}

impl Queue {
    fn new() -> Self {
        let ctx = AioContext::new().expect("a context");
        let one = ThreadPoolParams {
            min_threads: 1,
            max_threads: 1,
        };
        let (pool, file) = (ThreadPool::new(&ctx, one), testing::file());
        let lost = ctx.timer(|| panic!("requests are lost"));
        // From now on, work starts without the event loop.
        while pool.counters().idle_threads == 0 {
            ctx.poll(false);
        }
        let sharing = Sharing::new(
            Rc::new(ThreadsEngine::new(Arc::clone(&file), pool.with_share(), || {
                Writers::default().take(&ctx, &pool)
            })),
            ctx.crowd(),
        );
        let back: Rc<Back> = Rc::default();
        Self {
            sharing,
            file,
            back,
            lost,
            pool,
            memory: Box::new([0; 512]),
            ctx,
        }
    }

    fn batch(&mut self) -> Requests {
        testing::sequence(BATCH, &mut self.memory)
    }

    fn completer(&self) -> Rc<dyn Completer> {
        Rc::clone(&self.back) as _
    }

    /// Executes the requests that the worker did not take, and waits for the others.
    fn finish(&self, mut batch: Requests) {
        let mut done = Requests::new();
        while self.sharing.take_back(&mut batch, &mut done) {}
        for request in &mut batch {
            assert!(execute_here(&self.file, request));
        }
        self.back
            .requests
            .borrow_mut()
            .extend(batch.into_iter().chain(done));
        self.lost.arm_in(DEADLINE);
        while self.sharing.is_sharing() || self.back.requests.borrow().len() < BATCH.into() {
            self.ctx.poll(true);
        }
        self.lost.cancel();
    }

    fn assert_all_are_back_once(&self, case: &str) {
        let mut requests = self.back.requests.take();
        requests.sort_by_key(|request| request.token);
        let tokens: Vec<u16> = requests.iter().map(|request| request.token).collect();
        assert!(tokens.iter().copied().eq(0..BATCH), "{case}: {tokens:?}");
        assert!(requests.iter().all(|request| request.result.is_ok()), "{case}");
        assert!(!self.sharing.is_sharing(), "{case}");
        assert!(!self.sharing.pile.is_held(), "{case}");
    }
}

/// Shares a batch with a clumsy worker, and waits until that has done what it can.
fn have_it_helped(queue: &Queue, batch: &mut Requests, panics_at: u16) {
    let (through, ended) = mpsc::channel();
    let help = queue.sharing.leave_tail(batch, &queue.completer());
    queue.sharing.threads.submit_work(Box::new(Clumsy {
        help,
        panics_at,
        through,
    }));
    ended.recv_timeout(DEADLINE).expect("the worker ends");
}

#[test]
fn a_helpers_panic_loses_no_request() {
    let mut queue = Queue::new();
    for panics_at in BATCH / 5..BATCH {
        let mut batch = queue.batch();
        have_it_helped(&queue, &mut batch, panics_at);
        assert!(queue.sharing.is_sharing());
        queue.finish(batch);
        queue.assert_all_are_back_once(&format!("a panic at {panics_at}"));

        let mut batch = queue.batch();
        queue.sharing.share(&mut batch, &queue.completer());
        queue.finish(batch);
        queue.assert_all_are_back_once(&format!("after a panic at {panics_at}"));
    }
}

#[test]
fn a_late_worker_returns_merged_requests_individually() {
    let mut queue = Queue::new();
    let mut batch = queue.batch();
    Merger::up_to(1024).merge(&mut batch);
    assert_eq!(batch.len(), usize::from(BATCH) / 2);
    have_it_helped(&queue, &mut batch, BATCH);
    // The worker has all requests except those that the IOThread has kept.
    for mut request in batch {
        assert!(execute_here(&queue.file, &mut request));
        request.disband(|request| queue.back.complete(request));
    }
    while queue.sharing.is_sharing() {
        queue.ctx.poll(true);
    }
    queue.finish(Requests::new());
    queue.assert_all_are_back_once("late");
}

#[test]
fn sharing_pays_until_several_batches_were_not_shared() {
    let mut queue = Queue::new();
    assert!(!queue.sharing.pays());
    let mut batch = queue.batch();
    have_it_helped(&queue, &mut batch, BATCH);
    queue.finish(batch);
    for short in 0..LASTS {
        assert!(queue.sharing.pays(), "{short}");
        assert!(!queue.sharing.is_worthwhile(2, LONG));
    }
    assert!(!queue.sharing.pays());
}

/// Shares a batch whose worker comes too late for any request. Returns the help.
fn take_everything_back(queue: &mut Queue) -> Box<Help<RawFile>> {
    let mut batch = queue.batch();
    let help = queue.sharing.leave_tail(&mut batch, &queue.completer());
    while queue.sharing.take_back(&mut batch, &mut Requests::new()) {}
    assert_eq!(batch.len(), usize::from(BATCH));
    help
}

#[test]
fn a_help_keeps_neither_the_queue_nor_its_pool() {
    let mut queue = Queue::new();
    let help = take_everything_back(&mut queue);
    let work = queue.sharing.threads.submit_work(help);
    queue.sharing.help.set(Some(work));
    let Queue {
        sharing,
        file,
        back,
        pool,
        lost: _lost,
        memory: _,
        ctx: _ctx,
    } = queue;
    let left = (Rc::downgrade(&sharing), Arc::downgrade(&file));
    // The pool ends with them, while the help is in flight.
    drop((sharing, file, back, pool));
    assert!(left.0.upgrade().is_none() && left.1.upgrade().is_none());
}

#[test]
fn a_queued_help_is_cancelled_with_its_queue() {
    let mut queue = Queue::new();
    let (release, gate) = mpsc::channel::<()>();
    // The only worker waits here.
    drop(queue.pool.run(move || gate.recv()));
    let help = take_everything_back(&mut queue);
    let work = queue.sharing.threads.submit_work(help);
    queue.sharing.help.set(Some(work));
    let Queue {
        sharing,
        pool,
        lost: _lost,
        ctx,
        ..
    } = queue;
    let left = Rc::downgrade(&sharing);
    drop(sharing);
    assert!(left.upgrade().is_none());
    release.send(()).expect("the worker waits");
    while pool.in_flight() > 0 {
        ctx.poll(true);
    }
}

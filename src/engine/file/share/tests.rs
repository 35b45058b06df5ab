//! A worker that panics while it helps, and one that is late.

use std::cell::RefCell;
use std::sync::mpsc::{self, Sender};

use super::super::merge::Merger;
use super::super::testing;
use super::super::writers::Writers;
use super::*;
use crate::aio::Timer;
use crate::thread_pool::{ThreadPool, ThreadPoolParams};

const BATCH: u16 = 16;

/// A net against hanging, never waited for.
const DEADLINE: Duration = Duration::from_secs(60);

/// A helper that cannot execute every third request without waiting, and panics at one.
struct Clumsy {
    help: Help,
    panics_at: u16,
    through: Sender<()>,
}

impl Work for Clumsy {
    fn run(&mut self) {
        let _through = Through(&self.through);
        self.help.help(|file, request| {
            assert_ne!(request.token, self.panics_at, "as asked for");
            request.token % 3 != 0 && try_execute(file, request)
        });
    }

    fn complete(self: Box<Self>, ctx: &AioContext, outcome: Outcome) {
        Box::new(self.help).complete(ctx, outcome);
    }
}

/// Tells of the end, however it comes.
struct Through<'a>(&'a Sender<()>);

impl Drop for Through<'_> {
    fn drop(&mut self) {
        let _ = self.0.send(());
    }
}

/// What came back.
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
    sharing: Rc<Sharing>,
    file: Arc<RawFile>,
    back: Rc<Back>,
    lost: Timer,
    memory: Box<[u8; 512]>,
    // After all that is registered with it.
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
        let lost = ctx.timer(|_| panic!("requests are lost"));
        // From here on it needs no loop to begin.
        while pool.counters().idle_threads == 0 {
            ctx.poll(false);
        }
        let sharing = Sharing::new(Rc::new(ThreadsEngine::new(
            Arc::clone(&file),
            pool.clone(),
            || Writers::default().take(&ctx, &pool),
        )));
        let back: Rc<Back> = Rc::default();
        Self {
            sharing,
            file,
            back,
            lost,
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

    /// Takes back what the worker does not have, executes it, and waits for the rest.
    fn finish(&self, mut batch: Requests) {
        let mut done = Requests::new();
        while self.sharing.take_back(&mut batch, &mut done) {}
        for request in &mut batch {
            assert!(try_execute(&self.file, request));
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

#[test]
fn every_request_comes_back_once_wherever_a_helper_panics_and_the_next_batch_is_shared() {
    let mut queue = Queue::new();
    for panics_at in BATCH / 5..BATCH {
        let (mut batch, (through, ended)) = (queue.batch(), mpsc::channel());
        let help = queue.sharing.leave_tail(&mut batch, queue.completer());
        queue.sharing.threads.submit_work(Box::new(Clumsy {
            help,
            panics_at,
            through,
        }));
        ended.recv_timeout(DEADLINE).unwrap();
        assert!(queue.sharing.is_sharing());
        queue.finish(batch);
        queue.assert_all_are_back_once(&format!("a panic at {panics_at}"));

        let mut batch = queue.batch();
        queue.sharing.share(&mut batch, queue.completer());
        queue.finish(batch);
        queue.assert_all_are_back_once(&format!("after a panic at {panics_at}"));
    }
}

#[test]
fn merged_requests_come_back_one_by_one_from_a_worker_that_is_late() {
    let (mut queue, (through, ended)) = (Queue::new(), mpsc::channel());
    let mut batch = queue.batch();
    Merger::up_to(1024).merge(&mut batch);
    assert_eq!(batch.len(), usize::from(BATCH) / 2);
    let help = queue.sharing.leave_tail(&mut batch, queue.completer());
    queue.sharing.threads.submit_work(Box::new(Clumsy {
        help,
        panics_at: BATCH,
        through,
    }));
    ended.recv_timeout(DEADLINE).unwrap();
    // The worker has all but what the IOThread has kept.
    for mut request in batch {
        assert!(try_execute(&queue.file, &mut request));
        request.disband(|request| queue.back.complete(request));
    }
    while queue.sharing.is_sharing() {
        queue.ctx.poll(true);
    }
    queue.finish(Requests::new());
    queue.assert_all_are_back_once("late");
}

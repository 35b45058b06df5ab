//! A pool, jobs with gates, and a log of completions.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use vhost_user_blk::aio::AioContext;
use vhost_user_blk::thread_pool::{Spawner, Work};

pub(crate) use vhost_user_blk::thread_pool::{Counters, Outcome, ThreadPool, ThreadPoolParams, WorkId};

/// A gate at which jobs wait until the test opens it.
#[derive(Default)]
pub(crate) struct Gate {
    state: Mutex<GateState>,
    changed: Condvar,
}

#[derive(Default)]
struct GateState {
    open: bool,
    waiting: usize,
}

impl Gate {
    pub(crate) fn open(&self) {
        self.state.lock().unwrap().open = true;
        self.changed.notify_all();
    }

    pub(crate) fn close(&self) {
        self.state.lock().unwrap().open = false;
    }

    pub(crate) fn arrivals(&self) -> usize {
        self.state.lock().unwrap().waiting
    }

    fn pass(&self) {
        let mut state = self.state.lock().unwrap();
        state.waiting += 1;
        self.changed.notify_all();
        let mut state = self.changed.wait_while(state, |state| !state.open).unwrap();
        state.waiting -= 1;
    }
}

/// Time limit for a test that hangs. Tests that pass never wait this long.
pub(crate) const LONG: Duration = Duration::from_secs(20);

pub(crate) type Log = Arc<Mutex<Vec<(u32, Outcome)>>>;
type Hook = Box<dyn Fn(&AioContext) + Send>;

/// A job that waits at a gate, and logs its start and its completion.
pub(crate) struct GatedWork {
    gate: Arc<Gate>,
    name: u32,
    started: Arc<Mutex<Vec<u32>>>,
    log: Log,
    hook: Option<Hook>,
}

impl Work for GatedWork {
    fn run(&mut self) {
        self.started.lock().unwrap().push(self.name);
        self.gate.pass();
    }

    fn complete(self: Box<Self>, ctx: &AioContext, outcome: Outcome) {
        self.log.lock().unwrap().push((self.name, outcome));
        if let Some(hook) = &self.hook {
            hook(ctx);
        }
    }
}

pub(crate) struct Rig {
    pub(crate) pool: ThreadPool,
    pub(crate) ctx: AioContext,
    gate: Arc<Gate>,
    started: Arc<Mutex<Vec<u32>>>,
    log: Log,
}

impl Drop for Rig {
    fn drop(&mut self) {
        if thread::panicking() {
            // Do not wait for a pool that has failed: the test must fail, not hang.
            std::mem::forget(self.pool.clone());
        }
    }
}

impl Rig {
    pub(crate) fn new(min_threads: usize, max_threads: usize) -> Self {
        Self::with(min_threads, max_threads, Spawner::default(), 10 * LONG)
    }

    pub(crate) fn with(min_threads: usize, max_threads: usize, spawner: Spawner, idle: Duration) -> Self {
        let ctx = AioContext::new().unwrap();
        let params = ThreadPoolParams {
            min_threads,
            max_threads,
        };
        let pool = ThreadPool::with_spawner(&ctx, params, spawner, idle);
        Self {
            pool,
            ctx,
            gate: Arc::default(),
            started: Arc::default(),
            log: Log::default(),
        }
    }

    /// A rig on the serial sibling of a pool.
    pub(crate) fn serial() -> Self {
        let mut rig = Self::new(0, 1);
        rig.pool = rig.pool.serial_sibling(&rig.ctx);
        rig
    }

    pub(crate) fn gate(&self) -> Arc<Gate> {
        Arc::clone(&self.gate)
    }

    pub(crate) fn work(&self, gate: Arc<Gate>, name: u32, hook: Option<Hook>) -> Box<GatedWork> {
        let (started, log) = (Arc::clone(&self.started), Arc::clone(&self.log));
        Box::new(GatedWork {
            gate,
            name,
            started,
            log,
            hook,
        })
    }

    pub(crate) fn submit(&self, gate: Arc<Gate>, name: u32) -> WorkId {
        self.pool.submit(self.work(gate, name, None))
    }

    pub(crate) fn log(&self) -> Vec<(u32, Outcome)> {
        self.log.lock().unwrap().clone()
    }

    pub(crate) fn shared_log(&self) -> Log {
        Arc::clone(&self.log)
    }

    pub(crate) fn started(&self) -> Vec<u32> {
        self.started.lock().unwrap().clone()
    }

    /// Runs the loop until `count` jobs have completed.
    pub(crate) fn wait_for(&self, count: usize) {
        self.wait_until(|rig| rig.log.lock().unwrap().len() >= count);
    }

    /// Runs the loop until `condition` holds. Checks it at least every millisecond.
    pub(crate) fn wait_until(&self, condition: impl Fn(&Self) -> bool) {
        let late = Rc::new(Cell::new(false));
        let deadline = self.ctx.timer({
            let late = Rc::clone(&late);
            move || late.set(true)
        });
        deadline.arm_in(LONG);
        let tick = Rc::new(RefCell::new(None::<vhost_user_blk::aio::Timer>));
        let timer = self.ctx.timer({
            let tick = Rc::clone(&tick);
            move || tick.borrow().as_ref().unwrap().arm_in(Duration::from_millis(1))
        });
        timer.arm_in(Duration::from_millis(1));
        tick.replace(Some(timer));
        while !condition(self) {
            assert!(!late.get(), "hangs: {:?}", self.pool);
            self.ctx.poll(true);
        }
        tick.take();
    }

    /// Waits until the workers make `condition` true, without running the loop.
    pub(crate) fn wait_without_loop(&self, condition: impl Fn(&Counters) -> bool) {
        let start = Instant::now();
        while !condition(&self.counters()) {
            assert!(start.elapsed() < LONG, "hangs: {:?}", self.pool);
            thread::yield_now();
        }
    }

    pub(crate) fn counters(&self) -> Counters {
        self.pool.counters()
    }
}

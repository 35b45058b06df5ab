//! The thread pool, with jobs that wait at gates.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use std::{io, thread};

use crate::support::*;
use vhost_user_blk::aio::{AioContext, IoThread, IoThreadConfig};
use vhost_user_blk::defer::DeferredCall;
use vhost_user_blk::thread_pool::{Spawner, Work};

/// Returns a gate that is open, for jobs that do not wait.
fn opened(rig: &Rig) -> Arc<Gate> {
    rig.gate().open();
    rig.gate()
}

fn names(log: &[(u32, Outcome)]) -> Vec<u32> {
    log.iter().map(|entry| entry.0).collect()
}

#[test]
fn every_job_runs_and_completes_once() {
    let rig = Rig::new(0, 4);
    let gate = opened(&rig);
    (0..200).for_each(|name| _ = rig.submit(Arc::clone(&gate), name));
    rig.wait_for(200);
    let mut started = rig.started();
    started.sort_unstable();
    let mut completed = names(&rig.log());
    completed.sort_unstable();
    let all: Vec<_> = (0..200).collect();
    assert_eq!((started, completed), (all.clone(), all));
    assert_eq!(rig.pool.in_flight(), 0);
}

#[test]
fn jobs_start_in_submission_order() {
    let rig = Rig::new(0, 1);
    let gate = opened(&rig);
    let mut works = (0..50)
        .map(|name| rig.work(Arc::clone(&gate), name, None) as Box<dyn Work>)
        .collect();
    rig.pool.submit_batch(&mut works);
    assert!(works.is_empty());
    rig.submit(gate, 50);
    rig.wait_for(51);
    assert_eq!(rig.started(), (0..=50).collect::<Vec<_>>());
}

#[test]
fn completions_run_on_the_contexts_thread() {
    struct Where(thread::ThreadId, Rc<Cell<bool>>);
    // Not `Send`, but the value only ever moves back to its own thread.
    struct Checked(send_wrapper::SendWrapper<Where>);
    impl Work for Checked {
        fn run(&mut self) {}
        fn complete(self: Box<Self>, _ctx: &AioContext, _outcome: Outcome) {
            assert_eq!(thread::current().id(), self.0.0);
            self.0.1.set(true);
        }
    }
    let rig = Rig::new(0, 4);
    let done = Rc::new(Cell::new(false));
    let work = Where(thread::current().id(), Rc::clone(&done));
    rig.pool
        .submit(Box::new(Checked(send_wrapper::SendWrapper::new(work))));
    rig.wait_until(|_| done.get());
}

#[test]
fn blocking_jobs_run_concurrently_up_to_the_limit() {
    let rig = Rig::new(0, 16);
    (0..20).for_each(|name| _ = rig.submit(rig.gate(), name));
    rig.wait_until(|rig| rig.gate().arrivals() == 16);
    assert_eq!(rig.counters().cur_threads, 16);
    assert_eq!(rig.counters().queued, 4);
    rig.gate().open();
    rig.wait_for(20);
}

#[test]
fn a_batch_of_blocking_jobs_runs_concurrently() {
    let rig = Rig::new(0, 64);
    let mut works = (0..64)
        .map(|name| rig.work(rig.gate(), name, None) as Box<dyn Work>)
        .collect();
    rig.pool.submit_batch(&mut works);
    rig.wait_until(|rig| rig.gate().arrivals() == 64);
    rig.gate().open();
    rig.wait_for(64);
}

#[test]
fn jobs_that_start_to_block_run_concurrently() {
    let rig = Rig::new(0, 8);
    rig.gate().open();
    for name in 0..500 {
        rig.submit(rig.gate(), name);
        rig.wait_for(name as usize + 1);
    }
    rig.gate().close();
    (500..508).for_each(|name| _ = rig.submit(rig.gate(), name));
    rig.wait_until(|rig| rig.gate().arrivals() == 8);
    rig.gate().open();
    rig.wait_for(508);
}

#[test]
fn a_serial_pool_runs_jobs_in_order() {
    let rig = Rig::serial();
    let gate = opened(&rig);
    for name in 0..200 {
        rig.submit(Arc::clone(&gate), name);
        if name % 50 == 0 {
            rig.wait_for(name as usize + 1);
        }
    }
    rig.wait_for(200);
    assert_eq!(rig.started(), (0..200).collect::<Vec<_>>());
    assert_eq!(names(&rig.log()), (0..200).collect::<Vec<_>>());
    assert_eq!(rig.counters().cur_threads, 1);
}

#[test]
fn a_blocked_job_delays_no_finished_completion() {
    let rig = Rig::serial();
    let mut works = vec![
        rig.work(opened(&Rig::new(0, 1)), 0, None) as Box<dyn Work>,
        rig.work(rig.gate(), 1, None),
        rig.work(rig.gate(), 2, None),
    ];
    rig.pool.submit_batch(&mut works);
    rig.wait_for(1);
    assert_eq!(names(&rig.log()), [0]);
    assert_eq!(rig.gate().arrivals(), 1);
    rig.gate().open();
    rig.wait_for(3);
}

/// A job that keeps a CPU busy.
struct Busy(Arc<AtomicUsize>);

impl Work for Busy {
    fn run(&mut self) {
        let start = Instant::now();
        while start.elapsed() < Duration::from_micros(200) {
            std::hint::spin_loop();
        }
    }

    fn complete(self: Box<Self>, _ctx: &AioContext, _outcome: Outcome) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn busy_jobs_run_on_as_many_workers_as_cpus() {
    let rig = Rig::new(0, 64);
    // First the pool learns to use all of its workers.
    (0..64).for_each(|name| _ = rig.submit(rig.gate(), name));
    rig.wait_until(|rig| rig.gate().arrivals() == 64);
    rig.gate().open();
    rig.wait_for(64);
    let done = Arc::new(AtomicUsize::new(0));
    let work = || Box::new(Busy(Arc::clone(&done)));
    (0..64).for_each(|_| _ = rig.pool.submit(work()));
    let mut active = Vec::new();
    for count in 1..=1000 {
        rig.wait_until(|_| done.load(Ordering::Relaxed) >= count);
        rig.pool.submit(work());
        active.push(rig.counters().active);
    }
    active.sort_unstable();
    let cpus = std::thread::available_parallelism().unwrap().get();
    // A busy machine may stop all workers for so long that they look blocked.
    assert!(active[active.len() / 2] <= 2 * cpus, "{active:?}");
    rig.wait_until(|_| done.load(Ordering::Relaxed) == 1064);
}

#[test]
fn quick_jobs_need_few_threads() {
    struct Quick(Arc<AtomicUsize>);
    impl Work for Quick {
        fn run(&mut self) {}
        fn complete(self: Box<Self>, _ctx: &AioContext, _outcome: Outcome) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }
    let rig = Rig::new(0, 64);
    let done = Arc::new(AtomicUsize::new(0));
    for round in 1..=300 {
        let mut works = (0..64)
            .map(|_| Box::new(Quick(Arc::clone(&done))) as Box<dyn Work>)
            .collect();
        rig.pool.submit_batch(&mut works);
        rig.wait_until(|_| done.load(Ordering::Relaxed) == round * 64);
    }
    let threads = rig.counters().cur_threads;
    assert!(threads <= 16, "{threads} threads for works that do not block");
}

mod cancel {
    use super::*;

    #[test]
    fn a_cancelled_queued_job_never_runs() {
        let rig = Rig::new(0, 1);
        rig.submit(rig.gate(), 0);
        rig.wait_until(|rig| rig.gate().arrivals() == 1);
        let id = rig.submit(rig.gate(), 1);
        assert!(rig.pool.cancel(id));
        assert!(
            rig.log().is_empty(),
            "it is completed by the bottom half, not from within cancel"
        );
        rig.wait_for(1);
        assert_eq!(rig.log(), [(1, Outcome::Cancelled)]);
        assert!(!rig.pool.cancel(id), "it is cancelled once");
        rig.gate().open();
        rig.wait_for(2);
        assert_eq!(rig.started(), [0]);
    }

    #[test]
    fn an_active_job_cannot_be_cancelled() {
        let rig = Rig::new(0, 1);
        let id = rig.submit(rig.gate(), 0);
        rig.wait_until(|rig| rig.gate().arrivals() == 1);
        assert!(!rig.pool.cancel(id));
        rig.gate().open();
        rig.wait_for(1);
        assert_eq!(rig.log(), [(0, Outcome::Done)]);
        assert!(!rig.pool.cancel(id), "a completed one cannot be cancelled either");
    }

    #[test]
    fn a_batch_member_can_be_cancelled_alone() {
        let rig = Rig::new(0, 1);
        rig.submit(rig.gate(), 0);
        rig.wait_until(|rig| rig.gate().arrivals() == 1);
        let mut works = (1..4)
            .map(|name| rig.work(rig.gate(), name, None) as Box<dyn Work>)
            .collect();
        let first = rig.pool.submit_batch(&mut works);
        assert!(rig.pool.cancel(first.nth(1)));
        rig.gate().open();
        rig.wait_for(4);
        assert_eq!(rig.started(), [0, 1, 3]);
    }
}

mod completion {
    use super::*;

    #[test]
    fn nested_polling_delivers_other_completions_once() {
        let rig = Rig::new(0, 4);
        let total = 8;
        for name in 0..total {
            let log = rig.shared_log();
            let hook = move |ctx: &AioContext| {
                // Each callback waits for all others.
                while log.lock().unwrap().len() < total as usize {
                    ctx.poll(true);
                }
            };
            rig.pool.submit(rig.work(rig.gate(), name, Some(Box::new(hook))));
        }
        rig.gate().open();
        rig.wait_for(total as usize);
        let mut completed = names(&rig.log());
        completed.sort_unstable();
        assert_eq!(completed, (0..total).collect::<Vec<_>>());
    }

    #[test]
    fn a_callback_may_submit() {
        let rig = Rig::new(0, 2);
        let gate = opened(&rig);
        let next = rig.work(Arc::clone(&gate), 1, None);
        let next = Mutex::new(Some(next));
        let pool = send_wrapper::SendWrapper::new(rig.pool.clone());
        let hook = move |_: &AioContext| {
            pool.submit(next.lock().unwrap().take().unwrap());
        };
        rig.pool.submit(rig.work(gate, 0, Some(Box::new(hook))));
        rig.wait_for(2);
        assert_eq!(names(&rig.log()), [0, 1]);
    }

    #[test]
    fn a_callback_may_cancel() {
        let rig = Rig::new(0, 1);
        let id = Arc::new(Mutex::new(None::<WorkId>));
        let pool = send_wrapper::SendWrapper::new(rig.pool.clone());
        let (blocker, target) = (Arc::new(Gate::default()), Arc::clone(&id));
        let cancelled = Arc::new(AtomicBool::new(false));
        let result = Arc::clone(&cancelled);
        let hook = move |_: &AioContext| {
            result.store(pool.cancel(target.lock().unwrap().unwrap()), Ordering::Relaxed);
        };
        rig.pool.submit(rig.work(rig.gate(), 0, Some(Box::new(hook))));
        rig.submit(Arc::clone(&blocker), 1);
        *id.lock().unwrap() = Some(rig.submit(Arc::clone(&blocker), 2));
        rig.wait_until(|rig| rig.gate().arrivals() == 1);
        // The job blocks, so its worker takes no more than one job after it.
        let blocked = Instant::now();
        rig.wait_without_loop(|_| blocked.elapsed() > Duration::from_millis(1));
        rig.gate().open();
        rig.wait_for(1);
        assert!(cancelled.load(Ordering::Relaxed));
        blocker.open();
        rig.wait_for(3);
        assert_eq!(rig.started(), [0, 1]);
    }

    #[test]
    fn completions_reaped_together_share_a_defer_scope() {
        let rig = Rig::new(0, 4);
        let calls = Rc::new(Cell::new(0));
        let call = {
            let calls = Rc::clone(&calls);
            Rc::new(DeferredCall::new(move || calls.set(calls.get() + 1)))
        };
        let before = Arc::new(AtomicUsize::new(0));
        for name in 0..4 {
            let (call, calls) = (Rc::clone(&call), Rc::clone(&calls));
            let target = send_wrapper::SendWrapper::new((call, calls));
            let before = Arc::clone(&before);
            let hook = move |_: &AioContext| {
                target.0.defer();
                before.fetch_add(target.1.get(), Ordering::Relaxed);
            };
            rig.pool.submit(rig.work(rig.gate(), name, Some(Box::new(hook))));
        }
        rig.wait_until(|rig| rig.gate().arrivals() == 4);
        rig.gate().open();
        // The jobs have finished but are not collected: this thread has not run the loop.
        rig.wait_without_loop(|counters| counters.active == 0);
        while rig.log().len() < 4 {
            rig.ctx.poll(true);
        }
        assert_eq!((calls.get(), before.load(Ordering::Relaxed)), (1, 0));
    }

    #[test]
    fn a_panicking_job_spares_its_worker() {
        struct Bad(Arc<Mutex<Option<Outcome>>>);
        impl Work for Bad {
            fn run(&mut self) {
                panic!("on purpose");
            }
            fn complete(self: Box<Self>, _ctx: &AioContext, outcome: Outcome) {
                *self.0.lock().unwrap() = Some(outcome);
            }
        }
        let rig = Rig::new(0, 1);
        let outcome = Arc::default();
        rig.pool.submit(Box::new(Bad(Arc::clone(&outcome))));
        rig.submit(opened(&rig), 0);
        rig.wait_for(1);
        assert_eq!(*outcome.lock().unwrap(), Some(Outcome::Panicked));
        assert_eq!(rig.counters().cur_threads, 1);
    }
}

mod limits {
    use super::*;

    #[test]
    fn the_minimum_is_created_at_once_and_kept() {
        let rig = Rig::with(3, 4, Spawner::default(), Duration::from_millis(1));
        rig.wait_until(|rig| rig.counters().idle_threads == 3);
        rig.pool.update_params(ThreadPoolParams {
            min_threads: 1,
            max_threads: 4,
        });
        rig.wait_until(|rig| rig.counters().cur_threads == 1);
        rig.pool.update_params(ThreadPoolParams {
            min_threads: 2,
            max_threads: 4,
        });
        rig.wait_until(|rig| rig.counters().idle_threads == 2);
    }

    #[test]
    fn idle_workers_end_after_the_idle_time() {
        let rig = Rig::with(0, 4, Spawner::default(), Duration::from_millis(1));
        rig.submit(opened(&rig), 0);
        rig.wait_for(1);
        rig.wait_until(|rig| rig.counters().cur_threads == 0);
        rig.submit(rig.gate(), 1);
        rig.wait_for(2);
    }

    #[test]
    fn surplus_workers_end_when_the_maximum_is_lowered() {
        let rig = Rig::new(4, 4);
        rig.wait_until(|rig| rig.counters().idle_threads == 4);
        rig.pool.update_params(ThreadPoolParams {
            min_threads: 0,
            max_threads: 1,
        });
        rig.wait_until(|rig| rig.counters().cur_threads == 1);
        rig.submit(opened(&rig), 0);
        rig.wait_for(1);
    }

    #[test]
    fn a_surplus_worker_finishes_its_job_first() {
        let rig = Rig::new(0, 2);
        (0..4).for_each(|name| _ = rig.submit(rig.gate(), name));
        rig.wait_until(|rig| rig.gate().arrivals() == 2);
        rig.pool.update_params(ThreadPoolParams {
            min_threads: 0,
            max_threads: 1,
        });
        rig.gate().open();
        rig.wait_for(4);
        rig.wait_until(|rig| rig.counters().cur_threads == 1);
    }

    #[test]
    #[should_panic(expected = "impossible limits")]
    fn a_minimum_above_the_maximum_is_refused() {
        Rig::new(2, 1);
    }

    #[test]
    #[should_panic(expected = "impossible limits")]
    fn a_maximum_of_zero_is_refused() {
        Rig::new(0, 0);
    }
}

mod creation {
    use super::*;

    /// Returns a spawner that creates threads while its switch is on, and counts attempts.
    fn switched() -> (Spawner, Arc<AtomicBool>, Arc<AtomicUsize>) {
        let (on, attempts) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (switch, count) = (Arc::clone(&on), Arc::clone(&attempts));
        let spawner = Spawner::new(move |name, body| {
            count.fetch_add(1, Ordering::Relaxed);
            if switch.load(Ordering::Relaxed) {
                thread::Builder::new().name(name).spawn(body)
            } else {
                Err(io::Error::from_raw_os_error(libc::EAGAIN))
            }
        });
        (spawner, on, attempts)
    }

    #[test]
    fn without_workers_the_contexts_thread_runs_jobs() {
        let (spawner, _, _) = switched();
        let rig = Rig::with(0, 4, spawner, 10 * LONG);
        let gate = opened(&rig);
        (0..30).for_each(|name| _ = rig.submit(Arc::clone(&gate), name));
        rig.wait_for(30);
        assert_eq!(
            rig.log(),
            (0..30).map(|name| (name, Outcome::Done)).collect::<Vec<_>>()
        );
        let counters = rig.counters();
        assert_eq!(
            (
                counters.cur_threads,
                counters.new_threads,
                counters.pending_threads
            ),
            (0, 0, 0)
        );
        assert_eq!(counters.idle_threads, 0);
    }

    #[test]
    fn a_pool_without_threads_recovers_by_itself() {
        let (spawner, on, _) = switched();
        let rig = Rig::with(2, 4, spawner, 10 * LONG);
        rig.wait_until(|rig| rig.counters().spawn_failures > 0);
        on.store(true, Ordering::Relaxed);
        rig.wait_until(|rig| rig.counters().idle_threads == 2);
    }

    #[test]
    fn blocking_jobs_get_workers_once_creation_recovers() {
        let (spawner, on, _) = switched();
        on.store(true, Ordering::Relaxed);
        let rig = Rig::with(1, 4, spawner, 10 * LONG);
        rig.wait_until(|rig| rig.counters().idle_threads == 1);
        on.store(false, Ordering::Relaxed);
        (0..4).for_each(|name| _ = rig.submit(rig.gate(), name));
        rig.wait_until(|rig| rig.counters().spawn_failures > 0);
        assert_eq!(rig.counters().cur_threads, 1, "one worker goes on");
        // From here on nothing is submitted.
        on.store(true, Ordering::Relaxed);
        rig.wait_until(|rig| rig.gate().arrivals() == 4);
        rig.gate().open();
        rig.wait_for(4);
    }

    #[test]
    fn a_failed_creation_leaves_existing_workers_alone() {
        let (spawner, on, _) = switched();
        on.store(true, Ordering::Relaxed);
        let left = Arc::new(AtomicUsize::new(2));
        let limited = Spawner::new({
            let left = Arc::clone(&left);
            move |name, body| {
                if left
                    .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1))
                    .is_err()
                {
                    on.store(false, Ordering::Relaxed);
                }
                spawner.spawn(name, body)
            }
        });
        let rig = Rig::with(4, 4, limited, 10 * LONG);
        rig.wait_until(|rig| rig.counters().spawn_failures > 0);
        rig.wait_until(|rig| rig.counters().idle_threads == 2);
        let counters = rig.counters();
        assert_eq!(
            (
                counters.cur_threads,
                counters.new_threads,
                counters.pending_threads
            ),
            (2, 0, 0)
        );
    }

    #[test]
    fn failing_creation_is_not_retried_every_time() {
        let (spawner, _, attempts) = switched();
        let rig = Rig::with(0, 4, spawner, 10 * LONG);
        let gate = opened(&rig);
        for name in 0..1000 {
            rig.submit(Arc::clone(&gate), name);
            rig.wait_for(name as usize + 1);
        }
        let attempts = attempts.load(Ordering::Relaxed);
        assert!(attempts < 500, "{attempts} attempts for 1000 works");
    }

    #[test]
    fn the_contexts_thread_creates_the_first_worker() {
        let creators = Arc::new(Mutex::new(Vec::new()));
        let spawner = Spawner::new({
            let creators = Arc::clone(&creators);
            move |name, body| {
                creators.lock().unwrap().push(thread::current().id());
                thread::Builder::new().name(name).spawn(body)
            }
        });
        let rig = Rig::with(3, 3, spawner, 10 * LONG);
        assert!(creators.lock().unwrap().is_empty(), "a bottom half creates it");
        rig.wait_until(|rig| rig.counters().idle_threads == 3);
        let creators = creators.lock().unwrap();
        assert_eq!(creators[0], thread::current().id());
        assert!(
            creators[1..].iter().all(|&id| id != creators[0]),
            "each starts the next one"
        );
    }
}

mod free {
    use super::*;

    #[test]
    fn free_waits_for_pending_workers_too() {
        let running = Arc::new(AtomicUsize::new(0));
        let spawner = Spawner::new({
            let running = Arc::clone(&running);
            move |name, body| {
                let running = Arc::clone(&running);
                running.fetch_add(1, Ordering::SeqCst);
                thread::Builder::new().name(name).spawn(move || {
                    body();
                    running.fetch_sub(1, Ordering::SeqCst);
                })
            }
        });
        for passes in 0..4 {
            let rig = Rig::with(8, 8, spawner.clone(), 10 * LONG);
            // Some workers are requested, one is being created, and some run.
            (0..passes).for_each(|_| _ = rig.ctx.poll(false));
            drop(rig);
            assert_eq!(running.load(Ordering::SeqCst), 0);
        }
    }

    #[test]
    fn a_context_that_owns_its_pool_ends() {
        let thread = IoThread::spawn("pool-owner", IoThreadConfig::default()).unwrap();
        let dropped = Arc::new(());
        let witness = Arc::clone(&dropped);
        thread
            .handle()
            .run_on_context(move |ctx| {
                let params = ThreadPoolParams {
                    min_threads: 2,
                    max_threads: 2,
                };
                let pool = ThreadPool::new(ctx, params);
                let own = Rc::new(Cell::new(None));
                let keep = Rc::clone(&own);
                let bh = ctx.bottom_half(move || {
                    let _ = (&pool, &witness, &keep);
                });
                own.set(Some(bh));
            })
            .unwrap();
        thread.stop().unwrap();
        assert_eq!(Arc::strong_count(&dropped), 1);
    }
}

mod futures {
    use super::*;

    #[test]
    fn a_job_is_awaited_on_the_context() {
        let rig = Rig::new(0, 2);
        let pool = rig.pool.clone();
        let sum = rig.ctx.block_on(async move {
            let (a, b) = (pool.run(|| 20), pool.run(|| 22));
            b.await + a.await
        });
        assert_eq!(sum, 42);
    }

    #[test]
    fn a_job_whose_future_is_dropped_runs_nevertheless() {
        let rig = Rig::new(0, 2);
        let ran = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&ran);
        drop(rig.pool.run(move || flag.store(true, Ordering::Relaxed)));
        rig.wait_until(|rig| rig.pool.in_flight() == 0);
        assert!(ran.load(Ordering::Relaxed));
    }
}

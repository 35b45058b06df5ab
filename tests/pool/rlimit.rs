//! A real limit on the number of threads (RLIMIT_NPROC), in a process of its own.

use std::sync::{Arc, Mutex};
use std::thread::{self, ThreadId};

use crate::support::*;
use testkit::process::run_alone;
use vhost_user_blk::aio::AioContext;
use vhost_user_blk::thread_pool::Work;

/// A user that owns no other process, because the limit counts per user.
const LONELY_UID: libc::uid_t = 0x5eed_b10c;

#[test]
fn a_pool_at_its_thread_limit_recovers() {
    run_alone("rlimit::body_under_limit");
}

#[test]
#[ignore = "is run by the other test, in a process that it may limit"]
fn body_under_limit() {
    drop_privileges();
    let rig = Rig::new(0, 4);

    set_thread_limit(1);
    let ran_on = Arc::<Mutex<Vec<ThreadId>>>::default();
    (0..20).for_each(|_| _ = rig.pool.submit(Box::new(Where(Arc::clone(&ran_on)))));
    rig.wait_until(|rig| rig.pool.in_flight() == 0);
    assert_eq!(
        *ran_on.lock().unwrap(),
        [thread::current().id(); 20],
        "there is no other thread"
    );
    let counters = rig.counters();
    assert!(counters.spawn_failures > 0);
    let threads = (
        counters.cur_threads,
        counters.new_threads,
        counters.pending_threads,
        counters.idle_threads,
    );
    assert_eq!(threads, (0, 0, 0, 0));

    set_thread_limit(libc::RLIM_INFINITY);
    rig.wait_until(|rig| {
        // This thread may run any of these jobs until the next attempt, so they must not block.
        rig.pool.submit(Box::new(Where(Arc::clone(&ran_on))));
        rig.counters().idle_threads > 0
    });
    rig.wait_until(|rig| rig.pool.in_flight() == 0);
    (0..4).for_each(|name| _ = rig.submit(rig.gate(), name));
    rig.wait_until(|rig| rig.gate().arrivals() == 4);
    rig.gate().open();
    rig.wait_for(4);
}

/// A job that logs the thread that ran it.
struct Where(Arc<Mutex<Vec<ThreadId>>>);

impl Work for Where {
    fn run(&mut self) {
        self.0.lock().unwrap().push(thread::current().id());
    }

    fn complete(self: Box<Self>, _ctx: &AioContext, outcome: Outcome) {
        assert_eq!(outcome, Outcome::Done);
    }
}

/// The limit does not bind root.
fn drop_privileges() {
    // SAFETY: geteuid takes nothing and always succeeds.
    if unsafe { libc::geteuid() } != 0 {
        return;
    }
    // SAFETY: setuid takes a plain number.
    let result = unsafe { libc::setuid(LONELY_UID) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}

/// Sets the soft limit, capped at the hard one.
fn set_thread_limit(threads: libc::rlim_t) {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: `limit` is a live rlimit to be filled in.
    let result = unsafe { libc::getrlimit(libc::RLIMIT_NPROC, &raw mut limit) };
    assert_eq!(result, 0);
    limit.rlim_cur = threads.min(limit.rlim_max);
    // SAFETY: `limit` is a live rlimit.
    let result = unsafe { libc::setrlimit(libc::RLIMIT_NPROC, &raw const limit) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}

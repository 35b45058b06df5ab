//! Loom models of the state that a context shares with other threads.

use loom::model::Builder;
use loom::sync::atomic::{AtomicUsize, Ordering};
use loom::thread;

use super::bh_word::{BhHandle, BhWord};
use super::commands::CommandQueue;
use super::notify::Notify;
use crate::sync::Arc;

fn model(body: impl Fn() + Sync + Send + 'static) {
    let mut builder = Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(body);
}

/// The part of a context that the models need.
pub(crate) struct Loop {
    word: Arc<BhWord>,
    notify: Arc<Notify>,
}

impl Loop {
    pub(crate) fn new() -> Self {
        Self {
            word: Arc::new(BhWord::new()),
            notify: Arc::new(Notify::new().expect("a model cannot fail")),
        }
    }

    pub(crate) fn bottom_half(&self) -> BhHandle {
        BhWord::allocate(&self.word, &self.notify).expect("few are used")
    }

    /// Waits as `AioContext` does: announces, looks again, blocks, withdraws.
    pub(crate) fn wait(&self) {
        self.notify.announce();
        if self.word.pending() == 0 {
            self.notify.event().wait();
        }
        self.notify.withdraw();
    }

    /// Runs bottom halves as `BottomHalves::run` does; returns the bits that ran.
    pub(crate) fn run(&self) -> u64 {
        let mut ran = 0;
        let mut due = self.word.pending();
        while due != 0 {
            let mask = 1 << due.trailing_zeros();
            due &= !mask;
            if self.word.take(mask) {
                ran |= mask;
            }
        }
        ran
    }
}

#[test]
fn no_wakeup_is_lost() {
    model(|| {
        let context = Loop::new();
        let bh = context.bottom_half();
        let handle = bh.clone();
        let other = thread::spawn(move || handle.schedule());
        while context.run() == 0 {
            context.wait();
        }
        other.join().unwrap();
    });
}

#[test]
fn two_schedulers_lose_no_wakeup() {
    model(|| {
        let context = Loop::new();
        let bhs = [context.bottom_half(), context.bottom_half()];
        let all = bhs[0].mask() | bhs[1].mask();
        let others = bhs.clone().map(|bh| thread::spawn(move || bh.schedule()));
        let mut ran = 0;
        while ran != all {
            ran |= context.run();
            if ran != all {
                context.wait();
            }
        }
        others.into_iter().for_each(|other| other.join().unwrap());
    });
}

#[test]
fn callback_sees_writes_of_every_scheduler() {
    model(|| {
        let context = Loop::new();
        let bh = context.bottom_half();
        let written = Arc::new([AtomicUsize::new(0), AtomicUsize::new(0)]);
        let others = [0, 1].map(|n| {
            let (bh, written) = (bh.clone(), Arc::clone(&written));
            thread::spawn(move || {
                written[n].store(1, Ordering::Relaxed);
                bh.schedule();
            })
        });
        let mut runs = 0;
        let mut seen = 0;
        // Loops until a run has seen both writes. That run must come, coalesced or not.
        while seen < 2 {
            if context.run() == 0 {
                context.wait();
            } else {
                runs += 1;
                seen = written.iter().map(|flag| flag.load(Ordering::Relaxed)).sum();
            }
        }
        assert!(runs <= 2);
        others.into_iter().for_each(|other| other.join().unwrap());
    });
}

#[test]
fn a_reused_bit_starts_unscheduled() {
    model(|| {
        let context = Loop::new();
        let old = context.bottom_half();
        let mask = old.mask();
        let other = thread::spawn(move || old.schedule());
        let new = context.bottom_half();
        let ran = context.run();
        assert!(new.mask() == mask || ran & new.mask() == 0);
        if new.mask() == mask {
            assert_eq!(ran, 0, "the last handle was dropped, which unscheduled the bit");
        }
        other.join().unwrap();
    });
}

#[test]
fn a_command_is_taken_refused_or_returned() {
    model(|| {
        let queue = Arc::new(CommandQueue::new());
        let sender = Arc::clone(&queue);
        let other = thread::spawn(move || (0..2).filter(|&n| sender.push(n).is_ok()).count());
        let mut got = Vec::new();
        got.extend(queue.pop().map(|(n, _)| n));
        got.extend(queue.close());
        let sent = other.join().unwrap();
        assert_eq!(got, (0..sent).collect::<Vec<_>>());
        assert!(queue.pop().is_none());
    });
}

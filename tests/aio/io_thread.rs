//! IOThreads and local tasks.

use std::cell::Cell;
use std::future::{pending, poll_fn};
use std::rc::Rc;
use std::sync::{Arc, Mutex, mpsc};
use std::task::{Poll, Waker};
use std::{fs, thread};

use vhost_user_blk::aio::{AioContext, IoThread, IoThreadConfig};

fn io_thread() -> IoThread {
    IoThread::spawn("iothread0", IoThreadConfig::default()).unwrap()
}

/// Runs `ask` on the thread's context and returns the answer.
fn ask<T: Send + 'static>(thread: &IoThread, ask: impl FnOnce(&AioContext) -> T + Send + 'static) -> T {
    let (sender, receiver) = mpsc::channel();
    thread
        .handle()
        .run_on_context(move |ctx| sender.send(ask(ctx)).unwrap())
        .unwrap();
    receiver.recv().unwrap()
}

#[test]
fn commands_run_on_the_thread_under_its_name() {
    let thread = io_thread();
    let (name, id) = ask(&thread, |_| {
        (
            thread::current().name().map(str::to_owned),
            thread::current().id(),
        )
    });
    assert_eq!(name.as_deref(), Some("iothread0"));
    assert_ne!(id, thread::current().id());
}

#[test]
fn the_thread_id_is_the_kernels() {
    let thread = io_thread();
    let comm = fs::read_to_string(format!("/proc/self/task/{}/comm", thread.thread_id())).unwrap();
    assert_eq!(comm.trim_end(), "iothread0");
}

#[test]
fn stop_runs_everything_sent_before_it() {
    let thread = io_thread();
    let log = Arc::new(Mutex::new(Vec::new()));
    let bh = ask(&thread, {
        let log = Arc::clone(&log);
        move |ctx| {
            let bh = Rc::new(Cell::new(None));
            let keep = Rc::clone(&bh);
            let own = ctx.bottom_half(move || {
                let _ = &keep;
                log.lock().unwrap().push("bh");
            });
            let handle = own.handle();
            bh.set(Some(own));
            handle
        }
    });
    let hold = Arc::new(Mutex::new(()));
    let held = hold.lock().unwrap();
    let gate = Arc::clone(&hold);
    thread
        .handle()
        .run_on_context(move |_| drop(gate.lock()))
        .unwrap();
    let commands = Arc::clone(&log);
    thread
        .handle()
        .run_on_context(move |_| commands.lock().unwrap().push("command"))
        .unwrap();
    bh.schedule();
    drop(held);
    thread.stop().unwrap();
    let mut log = log.lock().unwrap().clone();
    log.sort_unstable();
    assert_eq!(log, ["bh", "command"]);
}

#[test]
fn a_stopped_thread_refuses_commands() {
    let thread = io_thread();
    let handle = thread.handle();
    drop(thread);
    assert!(handle.run_on_context(|_| ()).is_err());
}

#[test]
fn stop_returns_the_panic_of_its_thread() {
    let thread = io_thread();
    thread.handle().run_on_context(|_| panic!("first")).unwrap();
    let payload = thread.stop().unwrap_err();
    assert_eq!(payload.downcast_ref::<&str>(), Some(&"first"));
}

#[test]
fn dropping_it_ends_the_thread() {
    let thread = io_thread();
    let task = format!("/proc/self/task/{}", thread.thread_id());
    drop(thread);
    // The kernel removes the entry a moment after it reports the end.
    while fs::exists(&task).unwrap() {
        thread::yield_now();
    }
}

#[test]
fn a_future_woken_by_another_thread_goes_on() {
    let ctx = AioContext::new().unwrap();
    let (sender, receiver) = mpsc::channel::<Waker>();
    let other = thread::spawn(move || receiver.iter().for_each(Waker::wake));
    let mut polls = 0;
    let result = ctx.block_on(poll_fn(move |cx| {
        polls += 1;
        if polls == 100 {
            return Poll::Ready(polls);
        }
        sender.send(cx.waker().clone()).unwrap();
        Poll::Pending
    }));
    assert_eq!(result, 100);
    other.join().unwrap();
}

#[test]
fn a_future_that_polls_keeps_its_wakeup() {
    let ctx = AioContext::new().unwrap();
    let weak = ctx.downgrade();
    let mut first = true;
    ctx.block_on(poll_fn(move |cx| {
        if !std::mem::take(&mut first) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        // The loop serves the wakeup while the future is still being polled.
        weak.upgrade().unwrap().poll(false);
        Poll::Pending
    }));
}

#[test]
fn an_unfinished_future_is_dropped_with_its_context() {
    let ctx = AioContext::new().unwrap();
    let owned = Rc::new(());
    let witness = Rc::clone(&owned);
    ctx.spawn_local(async move {
        let _witness = witness;
        pending::<()>().await;
    });
    ctx.poll(true);
    assert_eq!(Rc::strong_count(&owned), 2);
    drop(ctx);
    assert_eq!(Rc::strong_count(&owned), 1);
}

#[test]
fn a_finished_future_is_dropped() {
    let ctx = AioContext::new().unwrap();
    let owned = Rc::new(());
    let witness = Rc::clone(&owned);
    ctx.spawn_local(async move { drop(witness) });
    ctx.poll(true);
    assert_eq!(Rc::strong_count(&owned), 1);
}

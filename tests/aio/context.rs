//! The event loop, driven by hand.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use vhost_user_blk::aio::{AioContext, BottomHalf, EventSet, FdHandler, Timer};
use vhost_user_blk::defer::DeferredCall;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

fn context() -> AioContext {
    AioContext::new().unwrap()
}

fn eventfd() -> Rc<EventFd> {
    Rc::new(EventFd::new(EFD_NONBLOCK).unwrap())
}

/// Returns two handles of one counter: for the callback and for the test.
fn counter() -> (Rc<Cell<u32>>, Rc<Cell<u32>>) {
    let count = Rc::new(Cell::new(0));
    (Rc::clone(&count), count)
}

fn bump(count: &Cell<u32>) {
    count.set(count.get() + 1);
}

/// Runs passes until one finds nothing to do.
fn drain(ctx: &AioContext) {
    while ctx.poll(false) {}
}

mod bottom_halves {
    use super::*;

    #[test]
    fn scheduling_twice_runs_once() {
        let ctx = context();
        let (count, seen) = counter();
        let bh = ctx.bottom_half(move || bump(&count));
        bh.schedule();
        bh.schedule();
        drain(&ctx);
        assert_eq!(seen.get(), 1);
        bh.schedule();
        drain(&ctx);
        assert_eq!(seen.get(), 2, "it can be scheduled again after its run");
    }

    #[test]
    fn a_cancelled_bottom_half_does_not_run() {
        let ctx = context();
        let (count, seen) = counter();
        let bh = ctx.bottom_half(move || bump(&count));
        bh.schedule();
        bh.schedule_idle();
        bh.cancel();
        drain(&ctx);
        assert_eq!(seen.get(), 0);
    }

    #[test]
    fn a_callback_can_cancel_a_later_one() {
        let ctx = context();
        let (count, seen) = counter();
        let other = Rc::new(RefCell::new(None::<BottomHalf>));
        let first = ctx.bottom_half({
            let other = Rc::clone(&other);
            move || other.borrow().as_ref().unwrap().cancel()
        });
        other.replace(Some(ctx.bottom_half(move || bump(&count))));
        first.schedule();
        other.borrow().as_ref().unwrap().schedule();
        drain(&ctx);
        assert_eq!(seen.get(), 0);
    }

    #[test]
    fn self_scheduling_bottom_halves_run_once_per_pass() {
        let ctx = context();
        let (count, seen) = counter();
        let own = Rc::new(RefCell::new(None::<BottomHalf>));
        let bh = ctx.bottom_half({
            let own = Rc::clone(&own);
            move || {
                bump(&count);
                own.borrow().as_ref().unwrap().schedule();
            }
        });
        bh.schedule();
        own.replace(Some(bh));
        for passes in 1..=3 {
            assert!(ctx.poll(true));
            assert_eq!(seen.get(), passes);
        }
    }

    #[test]
    fn a_bottom_half_can_delete_itself() {
        let ctx = context();
        let (count, seen) = counter();
        let own = Rc::new(RefCell::new(None::<BottomHalf>));
        let bh = ctx.bottom_half({
            let own = Rc::clone(&own);
            move || {
                let bh = own.take().unwrap();
                bh.schedule();
                drop(bh);
                bump(&count);
            }
        });
        bh.schedule();
        own.replace(Some(bh));
        drain(&ctx);
        assert_eq!(seen.get(), 1);
    }

    #[test]
    fn deleting_a_bottom_half_drops_its_callback() {
        let ctx = context();
        let owned = Rc::new(());
        let bh = ctx.bottom_half({
            let owned = Rc::clone(&owned);
            move || drop(Rc::clone(&owned))
        });
        drop(bh);
        assert_eq!(Rc::strong_count(&owned), 1);
    }

    #[test]
    fn a_stale_handle_schedules_no_other_bottom_half() {
        let ctx = context();
        let stale = ctx.bottom_half(|| ()).handle();
        let counts: Vec<_> = (0..200)
            .map(|_| {
                let (count, seen) = counter();
                (ctx.bottom_half(move || bump(&count)), seen)
            })
            .collect();
        stale.schedule();
        drain(&ctx);
        assert!(counts.iter().all(|(_, seen)| seen.get() == 0));
    }

    #[test]
    fn a_reused_slot_starts_unscheduled() {
        let ctx = context();
        for _ in 0..200 {
            ctx.bottom_half(|| ()).schedule();
        }
        let (count, seen) = counter();
        let _others: Vec<_> = (0..200)
            .map(|_| {
                let count = Rc::clone(&count);
                ctx.bottom_half(move || bump(&count))
            })
            .collect();
        drain(&ctx);
        assert_eq!(seen.get(), 0);
    }

    #[test]
    fn two_hundred_bottom_halves_run_in_one_pass() {
        let ctx = context();
        let (count, seen) = counter();
        let all: Vec<_> = (0..200)
            .map(|_| {
                let count = Rc::clone(&count);
                ctx.bottom_half(move || bump(&count))
            })
            .collect();
        all.iter().for_each(BottomHalf::schedule);
        assert!(ctx.poll(true));
        assert_eq!(seen.get(), 200);
    }

    #[test]
    fn idle_bottom_halves_wait_without_counting_as_progress() {
        let ctx = context();
        let (count, seen) = counter();
        let bh = ctx.bottom_half(move || bump(&count));
        bh.schedule_idle();
        let start = Instant::now();
        assert!(!ctx.poll(true));
        assert_eq!(seen.get(), 1, "it runs although nothing else happens");
        assert!(
            start.elapsed() >= Duration::from_millis(5),
            "it does not end the wait"
        );
    }

    #[test]
    fn an_idle_bottom_half_joins_another_wakeup() {
        let ctx = context();
        let (count, seen) = counter();
        let idle = ctx.bottom_half(move || bump(&count));
        let other = ctx.bottom_half(|| ());
        idle.schedule_idle();
        other.schedule();
        assert!(ctx.poll(true));
        assert_eq!(seen.get(), 1);
    }

    #[test]
    fn one_shots_run_once_and_in_order() {
        let ctx = context();
        let log = Rc::new(RefCell::new(Vec::new()));
        for n in 0..3 {
            let log = Rc::clone(&log);
            ctx.oneshot(move || log.borrow_mut().push(n));
        }
        drain(&ctx);
        assert_eq!(*log.borrow(), [0, 1, 2]);
    }

    #[test]
    fn a_nested_one_shot_waits_for_another_pass() {
        let ctx = context();
        let (count, seen) = counter();
        let inner = ctx.clone();
        ctx.oneshot(move || inner.oneshot(move || bump(&count)));
        ctx.poll(true);
        assert_eq!(seen.get(), 0);
        ctx.poll(true);
        assert_eq!(seen.get(), 1);
    }

    #[test]
    fn nested_polling_runs_remaining_bottom_halves_once() {
        let ctx = context();
        let (count, seen) = counter();
        let inner_count = Rc::clone(&seen);
        let inner = ctx.downgrade();
        let first = ctx.bottom_half(move || {
            while inner_count.get() == 0 {
                inner.upgrade().unwrap().poll(true);
            }
        });
        let second = ctx.bottom_half(move || bump(&count));
        first.schedule();
        second.schedule();
        drain(&ctx);
        assert_eq!(seen.get(), 1);
    }
}

mod fds {
    use super::*;

    #[test]
    fn a_handler_runs_while_its_fd_is_ready() {
        let ctx = context();
        let fd = eventfd();
        let (count, seen) = counter();
        let _handler = ctx
            .add_fd(Rc::clone(&fd), EventSet::IN, move |events| {
                assert_eq!(events, EventSet::IN);
                bump(&count);
            })
            .unwrap();
        assert!(!ctx.poll(false));
        fd.write(1).unwrap();
        ctx.poll(true);
        ctx.poll(true);
        assert_eq!(seen.get(), 2);
        fd.read().unwrap();
        assert!(!ctx.poll(false));
    }

    #[test]
    fn calls_of_all_ready_handlers_run_together() {
        let ctx = context();
        let (count, seen) = counter();
        let call = Rc::new(DeferredCall::new(move || bump(&count)));
        let fds = [eventfd(), eventfd(), eventfd()];
        let _handlers = fds.each_ref().map(|fd| {
            fd.write(1).unwrap();
            let call = Rc::clone(&call);
            ctx.add_fd(Rc::clone(fd), EventSet::IN, move |_| call.defer())
                .unwrap()
        });
        ctx.poll(true);
        assert_eq!(seen.get(), 1);
    }

    #[test]
    fn a_removed_handler_misses_its_collected_event() {
        let ctx = context();
        let (a, b) = (eventfd(), eventfd());
        let (count, seen) = counter();
        let handlers = Rc::new(RefCell::new(Vec::<FdHandler>::new()));
        for fd in [&a, &b] {
            fd.write(1).unwrap();
            let (all, count) = (Rc::clone(&handlers), Rc::clone(&count));
            // The first callback to run removes both handlers.
            let handler = ctx.add_fd(Rc::clone(fd), EventSet::IN, move |_| {
                bump(&count);
                let all = all.take();
                drop(all);
            });
            handlers.borrow_mut().push(handler.unwrap());
        }
        drain(&ctx);
        assert_eq!(seen.get(), 1);
    }

    #[test]
    fn a_stale_event_never_reaches_a_new_handler() {
        let ctx = context();
        let (a, b) = (eventfd(), eventfd());
        let (count, seen) = counter();
        let handlers = Rc::new(RefCell::new(Vec::<FdHandler>::new()));
        for (fd, other) in [(&a, &b), (&b, &a)] {
            fd.write(1).unwrap();
            let (all, count, other) = (Rc::clone(&handlers), Rc::clone(&count), Rc::clone(other));
            // The first callback to run replaces the other handler, whose event has been collected already.
            let inner = ctx.downgrade();
            let handler = ctx.add_fd(Rc::clone(fd), EventSet::IN, move |_| {
                let old = all.take();
                drop(old);
                other.read().unwrap();
                let count = Rc::clone(&count);
                let ctx = inner.upgrade().unwrap();
                let new = ctx
                    .add_fd(Rc::clone(&other), EventSet::IN, move |_| bump(&count))
                    .unwrap();
                all.borrow_mut().push(new);
            });
            handlers.borrow_mut().push(handler.unwrap());
        }
        drain(&ctx);
        assert_eq!(seen.get(), 0);
        a.write(1).unwrap();
        b.write(1).unwrap();
        ctx.poll(true);
        assert_eq!(seen.get(), 1, "the new handler works");
    }

    #[test]
    fn removing_a_handler_closes_its_fd() {
        let ctx = context();
        let fd = eventfd();
        let handler = ctx.add_fd(Rc::clone(&fd), EventSet::IN, |_| ()).unwrap();
        assert_eq!(Rc::strong_count(&fd), 2);
        drop(handler);
        assert_eq!(Rc::strong_count(&fd), 1);
        drop(ctx.add_fd(fd, EventSet::IN, |_| ()).unwrap());
    }

    #[test]
    fn the_events_can_be_changed() {
        let ctx = context();
        let fd = eventfd();
        let log = Rc::new(RefCell::new(Vec::new()));
        let handler = ctx
            .add_fd(fd, EventSet::IN, {
                let log = Rc::clone(&log);
                move |events| log.borrow_mut().push(events)
            })
            .unwrap();
        assert!(!ctx.poll(false));
        handler.set_events(EventSet::OUT).unwrap();
        ctx.poll(true);
        assert_eq!(*log.borrow(), [EventSet::OUT]);
    }

    #[test]
    fn the_error_names_an_unwatchable_fd() {
        let ctx = context();
        let file = std::fs::File::open("/proc/self/exe").unwrap();
        let err = ctx.add_fd(file, EventSet::IN, |_| ()).unwrap_err();
        assert!(
            err.to_string().starts_with("cannot watch file descriptor "),
            "{err}"
        );
    }

    #[test]
    fn nested_polling_delivers_the_remaining_events() {
        let ctx = context();
        let (count, seen) = counter();
        let fds = [eventfd(), eventfd()];
        let _handlers: Vec<_> = fds
            .iter()
            .map(|fd| {
                fd.write(1).unwrap();
                let (fd2, count, inner) = (Rc::clone(fd), Rc::clone(&count), ctx.downgrade());
                ctx.add_fd(Rc::clone(fd), EventSet::IN, move |_| {
                    fd2.read().expect("no event comes twice");
                    bump(&count);
                    while count.get() < 2 {
                        inner.upgrade().unwrap().poll(true);
                    }
                })
                .unwrap()
            })
            .collect();
        drain(&ctx);
        assert_eq!(seen.get(), 2);
    }
}

mod timers {
    use super::*;

    #[test]
    fn a_timer_runs_once_at_its_deadline() {
        let ctx = context();
        let (count, seen) = counter();
        let timer = ctx.timer(move || bump(&count));
        let deadline = Instant::now() + Duration::from_micros(1500);
        timer.arm(deadline);
        assert!(timer.is_armed());
        while seen.get() == 0 {
            ctx.poll(true);
        }
        assert!(Instant::now() >= deadline);
        assert!(!timer.is_armed());
        drain(&ctx);
        assert_eq!(seen.get(), 1);
    }

    #[test]
    fn arming_again_replaces_the_deadline() {
        let ctx = context();
        let (count, seen) = counter();
        let timer = ctx.timer(move || bump(&count));
        timer.arm(Instant::now());
        timer.arm_in(Duration::from_secs(3600));
        drain(&ctx);
        assert_eq!(seen.get(), 0);
        timer.arm(Instant::now());
        drain(&ctx);
        assert_eq!(seen.get(), 1);
    }

    #[test]
    fn an_earlier_deadline_replaces_a_later_one() {
        let ctx = context();
        let late = ctx.timer(|| panic!("an hour too early"));
        late.arm_in(Duration::from_secs(3600));
        let other = ctx.handle();
        thread::scope(|scope| {
            // This wait programs the timerfd for the late timer.
            scope.spawn(move || other.run_on_context(|_| ()).unwrap());
            ctx.poll(true);
        });
        let (count, seen) = counter();
        let early = ctx.timer(move || bump(&count));
        early.arm_in(Duration::from_millis(1));
        while seen.get() == 0 {
            ctx.poll(true);
        }
    }

    #[test]
    fn timers_run_in_the_order_of_their_deadlines() {
        let ctx = context();
        let log = Rc::new(RefCell::new(Vec::new()));
        let now = Instant::now();
        let _timers: Vec<_> = [2, 0, 1]
            .map(|n| {
                let log = Rc::clone(&log);
                let timer = ctx.timer(move || log.borrow_mut().push(n));
                timer.arm(now - Duration::from_nanos(10 - n));
                timer
            })
            .into();
        drain(&ctx);
        assert_eq!(*log.borrow(), [0, 1, 2]);
    }

    #[test]
    fn a_timer_callback_can_cancel_another_timer() {
        let ctx = context();
        let (count, seen) = counter();
        let second = Rc::new(ctx.timer(move || bump(&count)));
        let first = ctx.timer({
            let second = Rc::clone(&second);
            move || second.cancel()
        });
        let now = Instant::now();
        first.arm(now - Duration::from_nanos(2));
        second.arm(now - Duration::from_nanos(1));
        drain(&ctx);
        assert_eq!(seen.get(), 0);
    }

    #[test]
    fn a_self_arming_timer_runs_once_per_pass() {
        let ctx = context();
        let (count, seen) = counter();
        let past = Instant::now();
        let own = Rc::new(RefCell::new(None::<Timer>));
        let timer = ctx.timer({
            let own = Rc::clone(&own);
            move || {
                bump(&count);
                own.borrow().as_ref().unwrap().arm(past);
            }
        });
        timer.arm(past);
        own.replace(Some(timer));
        for passes in 1..=3 {
            ctx.poll(true);
            assert_eq!(seen.get(), passes);
        }
        own.take();
    }

    #[test]
    fn a_timer_can_delete_itself() {
        let ctx = context();
        let (count, seen) = counter();
        let own = Rc::new(RefCell::new(None::<Timer>));
        let timer = ctx.timer({
            let own = Rc::clone(&own);
            move || {
                drop(own.take());
                bump(&count);
            }
        });
        timer.arm(Instant::now());
        own.replace(Some(timer));
        drain(&ctx);
        assert_eq!(seen.get(), 1);
    }
}

mod threads {
    use super::*;

    #[test]
    fn commands_run_in_the_order_they_were_sent() {
        let ctx = context();
        let handle = ctx.handle();
        let (sender, receiver) = mpsc::channel();
        thread::spawn(move || {
            for n in 0..10 {
                let sender = sender.clone();
                handle.run_on_context(move |_| sender.send(n).unwrap()).unwrap();
            }
        })
        .join()
        .unwrap();
        drain(&ctx);
        assert_eq!(
            receiver.try_iter().collect::<Vec<_>>(),
            (0..10).collect::<Vec<_>>()
        );
    }

    #[test]
    fn a_command_that_polls_runs_the_next() {
        let ctx = context();
        let handle = ctx.handle();
        let (sender, receiver) = mpsc::channel();
        handle
            .run_on_context(move |ctx| {
                while receiver.try_recv().is_err() {
                    ctx.poll(true);
                }
            })
            .unwrap();
        handle.run_on_context(move |_| sender.send(()).unwrap()).unwrap();
        assert!(ctx.poll(true));
    }

    #[test]
    fn a_sleeping_context_is_woken_by_each_schedule() {
        let ctx = context();
        let (count, seen) = counter();
        let bh = ctx.bottom_half(move || bump(&count));
        let handle = bh.handle();
        let (go, gone) = mpsc::channel::<()>();
        let other = thread::spawn(move || gone.iter().for_each(|()| handle.schedule()));
        for n in 1..=1000 {
            go.send(()).unwrap();
            while seen.get() < n {
                ctx.poll(true);
            }
        }
        drop(go);
        other.join().unwrap();
    }

    #[test]
    fn an_ended_context_refuses_commands() {
        let handle = context().handle();
        assert!(handle.run_on_context(|_| ()).is_err());
        handle.notify();
    }

    #[test]
    fn an_ending_context_drops_pending_commands() {
        let ctx = context();
        let (sender, receiver) = mpsc::channel::<()>();
        ctx.handle().run_on_context(move |_| drop(sender)).unwrap();
        drop(ctx);
        assert!(receiver.recv().is_err());
    }
}

//! When the driver is notified, and when it is asked for kicks.

use std::time::{Duration, Instant};

use vhost_user_blk::virtqueue::RingFeatures;

use super::vm::Vm;

const PLAIN: RingFeatures = RingFeatures {
    event_idx: false,
    indirect: true,
};
const EVENT_IDX: RingFeatures = RingFeatures {
    event_idx: true,
    indirect: true,
};

fn vm(features: RingFeatures) -> Vm {
    Vm::new(&[7; 65536], 64, 0, features)
}

/// Executes eight reads that come back to the IOThread together.
fn eight_at_once(vm: &mut Vm) {
    let gate = vm.hold();
    (0..8).for_each(|i| vm.offer_read(4 * i, 0));
    vm.kick();
    let taken = vm.stats.kicks.get() + 1;
    vm.poll_until(|vm| vm.stats.kicks.get() == taken);
    drop(gate);
    vm.wait_for_worker();
    vm.wait_used(8);
}

#[test]
fn completions_reaped_together_raise_one_interrupt() {
    for features in [PLAIN, EVENT_IDX] {
        let mut vm = vm(features);
        // Results that the IOThread collects together are one batch. The gate keeps the number of batches small.
        eight_at_once(&mut vm);
        let notifications = vm.notifications();
        assert_eq!(vm.calls(), notifications);
        assert!(
            notifications <= 3,
            "{notifications} notifications for eight requests of one batch"
        );
        assert_eq!(vm.stats.completions.get(), 8);
    }
}

#[test]
fn without_coalescing_each_completion_raises_an_interrupt() {
    for features in [PLAIN, EVENT_IDX] {
        let mut vm = vm(features);
        vm.run(|queue| queue.set_batch_notifications(false));
        eight_at_once(&mut vm);
        assert_eq!((vm.calls(), vm.notifications()), (8, 8));
    }
}

#[test]
fn coalescing_can_be_switched_while_the_queue_runs() {
    let mut vm = vm(PLAIN);
    eight_at_once(&mut vm);
    assert_eq!(vm.calls(), 1);
    vm.run(|queue| queue.set_batch_notifications(false));
    eight_at_once(&mut vm);
    assert_eq!(vm.calls(), 8);
    vm.run(|queue| queue.set_batch_notifications(true));
    eight_at_once(&mut vm);
    assert_eq!(vm.calls(), 1);
}

#[test]
fn no_interrupt_silences_both_modes() {
    let mut vm = vm(PLAIN);
    // The first completion after a start always notifies.
    vm.read(0, 0);
    assert_eq!(vm.calls(), 1);
    vm.set_no_interrupt(true);
    for batch in [true, false] {
        vm.run(move |queue| queue.set_batch_notifications(batch));
        eight_at_once(&mut vm);
        assert_eq!(vm.calls(), 0, "batch={batch}");
    }
    vm.set_no_interrupt(false);
    eight_at_once(&mut vm);
    assert_ne!(vm.calls(), 0);
}

#[test]
fn used_event_says_which_completion_raises_an_interrupt() {
    let mut vm = vm(EVENT_IDX);
    vm.read(0, 0);
    assert_eq!(vm.calls(), 1);
    // Asks for an interrupt at the fourth completion from here.
    vm.set_used_event(4);
    for i in 1..=3 {
        vm.read(4 * i, 0);
        assert_eq!(vm.calls(), 0, "request {i}");
    }
    vm.read(0, 0);
    assert_eq!(vm.calls(), 1);
}

/// Under QEMU's TCG with one vCPU, the driver's memory barrier orders nothing.
#[test]
fn a_late_used_event_still_gets_a_notification() {
    let mut vm = vm(EVENT_IDX);
    vm.read(0, 0);
    assert_eq!(vm.calls(), 1);
    vm.set_used_event(0x4000);
    vm.read(4, 0);
    assert_eq!(vm.calls(), 0);
    // The driver has seen one completion and expects a notification for the next.
    vm.set_used_event(1);
    vm.poll_until(|vm| vm.calls() == 1);
    // The late notification comes only once.
    vm.read(8, 0);
    assert_eq!(vm.notifications(), 2);
}

/// The check for an earlier publication may run right after a later one, before the driver's `used_event` is visible.
#[test]
fn a_check_that_comes_too_early_is_repeated() {
    let mut vm = vm(EVENT_IDX);
    vm.read(0, 0);
    assert_eq!(vm.calls(), 1);
    vm.set_used_event(0x4000);
    vm.read(4, 0);
    // A check is due in 5 ms. Then another request is ready to be published.
    let due = Instant::now() + Duration::from_millis(6);
    let gate = vm.hold();
    vm.offer_read(8, 0);
    vm.kick();
    let taken = vm.stats.kicks.get() + 1;
    vm.poll_until(|vm| vm.stats.kicks.get() == taken);
    drop(gate);
    vm.wait_for_worker();
    while Instant::now() < due {
        std::thread::yield_now();
    }
    // The same pass publishes and checks.
    vm.ctx.poll(false);
    vm.poll_some();
    vm.set_used_event(2);
    vm.poll_until(|vm| vm.calls() == 1);
}

/// Under QEMU's TCG with one vCPU, the driver may not see that it has to kick.
#[test]
fn a_request_without_a_kick_is_found() {
    for features in [PLAIN, EVENT_IDX] {
        let mut vm = vm(features);
        vm.read(0, 0);
        for missed in 1..3 {
            vm.offer_read(4, 0);
            vm.wait_used(1);
            assert_eq!((vm.stats.missed_kicks.get(), vm.stats.kicks.get()), (missed, 1));
        }
        // An idle ring is left alone, until the next kick.
        vm.poll_for(Duration::from_millis(150));
        vm.offer_read(8, 0);
        vm.poll_for(Duration::from_millis(150));
        assert_eq!(vm.stats.missed_kicks.get(), 2);
        vm.kick();
        vm.wait_used(1);
    }
}

#[test]
fn an_empty_ring_asks_for_the_next_kick() {
    let mut vm = vm(EVENT_IDX);
    for i in 0..3 {
        vm.read(0, 0);
        vm.ctx.poll(false);
        assert_eq!(vm.avail_event(), i + 1);
    }
    let mut vm = self::vm(PLAIN);
    vm.read(0, 0);
    vm.ctx.poll(false);
    assert!(!vm.kicks_unwanted());
}

#[test]
fn a_replaced_call_eventfd_is_signalled_once() {
    let mut vm = vm(PLAIN);
    vm.read(0, 0);
    vm.calls();
    vm.replace_call();
    assert_eq!(vm.calls(), 1);
    vm.read(0, 0);
    assert_eq!(vm.calls(), 1);
}

#[test]
fn replacing_the_kick_eventfd_loses_no_kick() {
    let mut vm = vm(PLAIN);
    vm.read(0, 0);
    // The request is available, but its kick went to an eventfd that is no longer watched.
    vm.offer_read(4, 0);
    vm.replace_kick();
    vm.wait_used(1);
    vm.read(8, 0);
    assert_eq!(vm.stats.missed_kicks.get(), 0);
}

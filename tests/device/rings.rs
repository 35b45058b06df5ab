//! Starting, stopping, wrapping, changing memory.

use proptest::prelude::*;
use vhost_user_blk::virtqueue::RingFeatures;

use super::vm::Vm;

const FEATURES: RingFeatures = RingFeatures {
    event_idx: true,
    indirect: true,
};

fn image() -> Vec<u8> {
    (0..128u8).flat_map(|sector| [sector; 512]).collect()
}

fn vm(size: u16, base: u16) -> Vm {
    Vm::new(&image(), size, base, FEATURES)
}

#[test]
fn indices_wrap_around() {
    for size in [4, 64] {
        let mut vm = vm(size, u16::MAX - 20);
        for i in 0..50u8 {
            vm.offer_read(0, i.into());
            vm.kick();
            assert_eq!(vm.wait_used(1), [(0, 513)]);
            assert_eq!(vm.read_result(0), Some(vec![i; 512]), "request {i}");
        }
        let stopped = vm.stop();
        vm.poll_until(|_| true);
        assert_eq!(stopped.recv(), Ok(29));
        vm.start(29);
    }
}

#[test]
fn the_largest_ring_can_be_full() {
    let mut vm = vm(1024, 0);
    let gate = vm.hold();
    (0..256).for_each(|i| vm.offer_read(4 * i, u64::from(i % 128)));
    vm.kick();
    vm.poll_until(|vm| vm.avail_event() == 256);
    drop(gate);
    assert_eq!(vm.wait_used(256).len(), 256);
    assert!((0..=255u8).all(|i| vm.read_result(4 * u16::from(i)) == Some(vec![i % 128; 512])));
}

#[test]
fn a_head_already_in_flight_breaks_the_ring() {
    let mut vm = vm(64, 0);
    let gate = vm.hold();
    vm.offer_read(0, 1);
    vm.offer_read(0, 1);
    vm.kick();
    vm.poll_until(|vm| vm.stats.broken.get() == 1);
    drop(gate);
    vm.wait_used(1);
}

#[test]
fn stop_drains_and_takes_no_new_requests() {
    let mut vm = vm(64, 0);
    let gate = vm.hold();
    (0..3).for_each(|i| vm.offer_read(4 * i, 1));
    vm.kick();
    vm.poll_until(|vm| vm.stats.kicks.get() == 1);
    let stopped = vm.stop();
    vm.offer_read(12, 1);
    vm.kick();
    vm.poll_some();
    assert!(stopped.try_recv().is_err(), "three requests are in flight");
    drop(gate);
    assert_eq!((vm.wait_stopped(&stopped), vm.used_idx()), (3, 3));
    assert_eq!(vm.read_result(12), None, "the fourth was not taken");
    // The request is served once the ring runs again.
    vm.wait_used(3);
    vm.start(3);
    vm.kick();
    vm.wait_used(1);
    assert_eq!(vm.read_result(12), Some(vec![1; 512]));
}

#[test]
fn a_kick_before_enable_is_not_lost() {
    let mut vm = vm(64, 0);
    vm.run(|queue| queue.set_enabled(false));
    vm.offer_read(0, 2);
    vm.kick();
    vm.poll_until(|vm| vm.stats.kicks.get() == 1);
    assert_eq!(vm.used_idx(), 0);
    vm.run(|queue| queue.set_enabled(true));
    vm.wait_used(1);
}

#[test]
fn a_first_kick_to_a_replaced_eventfd_is_not_lost() {
    for event_idx in [false, true] {
        let mut vm = Vm::new(&image(), 64, 0, features(event_idx));
        vm.offer_read(0, 2);
        vm.kick();
        // The queue has not seen the kick yet.
        vm.replace_kick();
        vm.wait_used(1);
    }
}

#[test]
fn a_started_ring_asks_for_kicks_again() {
    for (event_idx, base) in [(false, 0), (true, 7)] {
        let vm = Vm::new(
            &image(),
            64,
            base,
            RingFeatures {
                event_idx,
                indirect: false,
            },
        );
        let stopped = vm.stop();
        vm.poll_until(|_| stopped.try_recv().is_ok());
        vm.forbid_kicks();
        vm.start(base);
        assert!(!vm.kicks_unwanted() && (!event_idx || vm.avail_event() == base));
    }
}

fn features(event_idx: bool) -> RingFeatures {
    RingFeatures {
        event_idx,
        indirect: false,
    }
}

/// Stops the ring, and returns the index to continue at.
fn stopped(vm: &Vm) -> u16 {
    vm.wait_stopped(&vm.stop())
}

#[test]
fn stopped_rings_serve_waiting_requests_after_restart() {
    for event_idx in [false, true] {
        let mut vm = Vm::new(&image(), 512, 0, features(event_idx));
        // The kick is consumed while the ring is disabled.
        vm.run(|queue| queue.set_enabled(false));
        vm.offer_read(0, 2);
        vm.kick();
        vm.poll_until(|vm| vm.stats.kicks.get() == 1);
        let base = stopped(&vm);
        assert_eq!(base, 0);
        vm.start(base);
        vm.wait_used(1);
        // These are more requests than one visit takes, with one kick.
        (0..100).for_each(|i| vm.offer_read(4 * i, 2));
        vm.kick();
        vm.poll_until(|vm| vm.stats.kicks.get() == 2);
        let base = stopped(&vm);
        vm.start(base);
        vm.wait_used(100);
    }
}

#[test]
fn a_stopped_ring_asks_for_every_kick() {
    for (event_idx, base) in [(false, 0), (true, 0xfffe)] {
        let mut vm = Vm::new(&image(), 512, base, features(event_idx));
        vm.run(|queue| queue.set_enabled(false));
        vm.offer_read(0, 2);
        vm.offer_read(4, 2);
        vm.offer_read(8, 2);
        vm.kick();
        vm.poll_until(|vm| vm.stats.kicks.get() == 1);
        vm.forbid_kicks();
        assert_eq!(stopped(&vm), base);
        assert!(!vm.kicks_unwanted() && (!event_idx || vm.avail_event() == base.wrapping_add(3)));
        vm.start(base);
        vm.wait_used(3);
    }
}

#[test]
fn polling_does_not_swallow_the_first_kick() {
    use vhost_user_blk::aio::Poller;

    let mut vm = Vm::new(&image(), 64, 0, RingFeatures::default());
    vm.run(|queue| queue.poll_begin());
    assert!(
        !vm.kicks_unwanted(),
        "nobody looks at the ring before its first kick"
    );
    vm.read(0, 2);
    vm.run(|queue| _ = queue.poll_end());
}

#[test]
fn nothing_is_processed_before_the_first_kick() {
    let mut vm = vm(64, 0);
    vm.offer_read(0, 2);
    vm.poll_some();
    assert_eq!(vm.used_idx(), 0);
    vm.kick();
    vm.wait_used(1);
}

#[test]
fn a_ring_without_kick_eventfd_is_still_served() {
    let mut vm = vm(64, 0);
    vm.run(|queue| queue.set_kick(None).unwrap());
    for i in 0..3u8 {
        vm.offer_read(0, i.into());
        vm.wait_used(1);
        assert_eq!(vm.read_result(0), Some(vec![i; 512]));
    }
}

#[test]
fn requests_in_flight_survive_a_new_table() {
    let mut vm = vm(64, 0);
    let gate = vm.hold();
    (0..3).for_each(|i| vm.offer_read(4 * i, 3));
    vm.kick();
    vm.poll_until(|vm| vm.stats.kicks.get() == 1);
    vm.remap();
    vm.offer_read(12, 4);
    vm.kick();
    drop(gate);
    vm.wait_used(4);
    assert_eq!(vm.read_result(8), Some(vec![3; 512]));
    assert_eq!(vm.read_result(12), Some(vec![4; 512]));
}

#[test]
fn answers_before_a_broken_chain_are_published() {
    let mut vm = vm(64, 0);
    // The sector lies past the disk, so the request is answered at once.
    vm.offer_read(0, 1 << 40);
    vm.offer(64);
    vm.kick();
    assert_eq!(vm.wait_used(1), [(0, 1)]);
    assert_eq!(vm.stats.broken.get(), 1);
}

#[test]
fn earlier_requests_outlive_a_broken_chain() {
    let mut vm = vm(64, 0);
    let gate = vm.hold();
    vm.offer_read(0, 5);
    vm.kick();
    vm.poll_until(|vm| vm.stats.kicks.get() == 1);
    vm.offer(64);
    vm.offer_read(4, 5);
    vm.kick();
    vm.poll_until(|vm| vm.stats.broken.get() == 1);
    drop(gate);
    assert_eq!(vm.wait_used(1), [(0, 513)]);
    vm.poll_some();
    assert_eq!((vm.used_idx(), vm.read_result(4)), (1, None));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
    #[test]
    fn every_chain_is_used_exactly_once(
        base: u16, event_idx: bool, bursts in prop::collection::vec(1u16..=16, 1..20)
    ) {
        let mut vm = Vm::new(&image(), 64, base, RingFeatures { event_idx, indirect: false });
        for burst in bursts {
            (0..burst).for_each(|i| vm.offer_read(4 * i, u64::from(i)));
            vm.kick();
            let mut heads: Vec<u16> = vm.wait_used(burst).iter().map(|u| u.0).collect();
            heads.sort_unstable();
            prop_assert_eq!(heads, (0..burst).map(|i| 4 * i).collect::<Vec<_>>());
            prop_assert!(vm.take_used().is_none());
        }
    }
}

#[test]
fn a_queue_is_busy_while_requests_run() {
    let mut vm = vm(16, 0);
    let in_progress = vm.ctx.in_progress();
    assert!(!in_progress.is_any());
    let gate = vm.hold();
    super::write_cache::take_write(&mut vm);
    assert!(in_progress.is_any());
    drop(gate);
    vm.wait_used(1);
    assert!(!in_progress.is_any());
}

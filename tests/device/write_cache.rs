//! Writes in flight while the write cache is switched off.

use vhost_user_blk::virtqueue::RingFeatures;

use super::vm::{Desc, HEAP, Vm, header};

const WRITE_ZEROES: u32 = 13;
const STATUS: u64 = HEAP + 1024;
const FEATURES: RingFeatures = RingFeatures {
    event_idx: false,
    indirect: false,
};

/// Makes the device take a write-zeroes request while its worker is busy.
pub(crate) fn take_write(vm: &mut Vm) {
    vm.put(HEAP, &header(WRITE_ZEROES, 0));
    vm.put(HEAP + 16, &[0u64.to_le_bytes(), 1u64.to_le_bytes()].concat());
    let desc = |addr, len, writable| Desc { addr, len, writable };
    let descs = [desc(HEAP, 32, false), desc(STATUS, 1, true)];
    vm.put(STATUS, &[0xff]);
    let head = vm.direct(&[0, 1], &descs);
    let works = vm.works();
    vm.offer(head);
    vm.kick();
    vm.poll_until(|vm| vm.works() > works);
}

#[test]
fn writes_from_before_cache_off_are_flushed_first() {
    let mut vm = Vm::new(&[0; 4096], 16, 0, FEATURES);
    let gate = vm.hold();
    take_write(&mut vm);
    vm.run(|queue| queue.set_write_through(true));
    drop(gate);
    vm.wait_for_worker();
    // The write is done, and its flush must wait for the worker.
    let gate = vm.hold();
    vm.poll_until(|vm| vm.works() == 2);
    vm.poll_some();
    assert_eq!(vm.used_idx(), 0, "it is answered before it is stable");
    drop(gate);
    assert_eq!(vm.wait_used(1), [(0, 1)]);
    assert_eq!(vm.byte(STATUS), 0);
    assert_eq!((vm.stats.unmaps.get(), vm.stats.flushes.get()), (1, 0));
}

#[test]
fn other_mode_changes_cost_no_extra_flush() {
    for (at_first, in_the_end) in [(true, true), (false, false), (true, false)] {
        let mut vm = Vm::new(&[0; 4096], 16, 0, FEATURES);
        vm.run(move |queue| queue.set_write_through(at_first));
        let gate = vm.hold();
        take_write(&mut vm);
        vm.run(move |queue| queue.set_write_through(in_the_end));
        drop(gate);
        vm.wait_for_worker();
        let gate = vm.hold();
        vm.poll_until(|vm| vm.used_idx() == 1);
        assert_eq!(vm.works(), 1, "{at_first} {in_the_end}");
        drop(gate);
    }
}

#[test]
fn a_stopping_ring_waits_for_the_late_flush() {
    let mut vm = Vm::new(&[0; 4096], 16, 0, FEATURES);
    let gate = vm.hold();
    take_write(&mut vm);
    vm.run(|queue| queue.set_write_through(true));
    let stopped = vm.stop();
    drop(gate);
    vm.wait_for_worker();
    let gate = vm.hold();
    vm.poll_until(|vm| vm.works() == 2);
    vm.poll_some();
    assert!(stopped.try_recv().is_err(), "the flush is in flight");
    drop(gate);
    assert_eq!((vm.wait_stopped(&stopped), vm.used_idx()), (1, 1));
}

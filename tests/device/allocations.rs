//! Requests allocate nothing on their way from the available ring to the used ring, once everything has been used.

use testkit::allocations::{Counting, of_this_thread};
use vhost_user_blk::engine::Choice;
use vhost_user_blk::virtqueue::RingFeatures;

use super::vm::{Disk, Vm};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const FEATURES: RingFeatures = RingFeatures {
    event_idx: true,
    indirect: true,
};

/// Executes `requests` reads in one visit. Returns the number of allocations by the IOThread, which is this thread.
fn visit(vm: &mut Vm, requests: u16) -> usize {
    (0..requests).for_each(|i| vm.offer_read(4 * i, 0));
    vm.kick();
    let before = of_this_thread();
    let target = vm.used_idx().wrapping_add(requests);
    vm.poll_until(|vm| vm.used_idx() == target);
    let allocations = of_this_thread() - before;
    vm.wait_used(requests);
    allocations
}

#[test]
fn a_queue_allocates_nothing_once_warm() {
    let image = [7; 4096];
    for (name, disk) in [
        ("null", Disk::null(&Disk::resources())),
        ("read by the IOThread", Disk::new(&image, Choice::Auto)),
        ("read by a worker", Disk::new(&image, Choice::Threads)),
    ] {
        let mut vm = Vm::on(&disk, 256, 0, FEATURES);
        for requests in [1, 64] {
            // Lists grow whenever more requests than ever before are in them.
            let settled = (0..200).any(|_| (0..20).map(|_| visit(&mut vm, requests)).sum::<usize>() == 0);
            assert!(settled, "{name}: {requests} at once");
        }
    }
}

//! Visits that keep the IOThread busy because it reads cached data itself.

use std::rc::Rc;
use std::thread;

use testkit::skip::skipped;
use vhost_user_blk::engine::Choice;
use vhost_user_blk::virtqueue::RingFeatures;

use super::vm::{Disk, Vm};

const FEATURES: RingFeatures = RingFeatures {
    event_idx: false,
    indirect: true,
};

/// Bytes of each read. Half of the reads that one visit can take already make a long visit, even on a fast machine.
const LEN: u32 = 16 << 10;

/// Number of reads that one visit can take, both in requests and in bytes.
const MANY: u16 = 60;

fn disk() -> Rc<Disk> {
    Disk::new(&[7; LEN as usize], Choice::Auto)
}

fn queue(disk: &Rc<Disk>) -> Vm {
    Vm::on(disk, 256, 0, FEATURES)
}

/// Executes `requests` reads in one visit. Returns the number of notifications.
fn visit(vm: &mut Vm, requests: u16) -> u64 {
    for head in (0..requests).map(|request| 3 * request) {
        vm.offer_long_read(head, LEN);
    }
    vm.kick();
    vm.wait_used(requests);
    vm.calls()
}

/// Makes a queue that has executed the disk's last batch. That batch is too short to show the time that a request
/// takes, so the next one is not shared with a worker.
fn lone_queue(disk: &Rc<Disk>) -> Vm {
    let mut vm = queue(disk);
    assert_eq!(visit(&mut vm, 1), 1);
    vm
}

#[test]
fn a_long_visit_notifies_before_it_ends() {
    assert_eq!(visit(&mut lone_queue(&disk()), MANY), 2);
}

#[test]
fn a_short_visit_notifies_once_however_slow() {
    assert_eq!(visit(&mut lone_queue(&disk()), 31), 1);
}

#[test]
fn a_driver_of_several_queues_is_told_once() {
    let disk = disk();
    let mut vm = lone_queue(&disk);
    let mut other = lone_queue(&disk);
    assert_eq!(visit(&mut vm, MANY), 1);
    // From here on the driver uses only one of its queues.
    assert_eq!(visit(&mut other, 1), 1);
    assert_eq!(visit(&mut other, MANY), 2);
}

#[test]
fn stop_does_not_wait_for_an_idle_worker() {
    if thread::available_parallelism().is_ok_and(|cpus| cpus.get() == 1) {
        return skipped("a single CPU is not shared with a worker");
    }
    let disk = disk();
    let mut vm = queue(&disk);
    let gate = vm.hold();
    // Now the queue knows how long a request takes.
    visit(&mut vm, MANY);
    assert_eq!(vm.works(), 1, "only the one that holds the worker");
    visit(&mut vm, MANY);
    assert_eq!(vm.works(), 2, "a worker is asked for");
    // The worker is busy with something else, perhaps for ever.
    let stopped = vm.stop();
    vm.poll_until(|_| stopped.try_recv() == Ok(2 * MANY));
    // The ring runs again, and the worker arrives late.
    vm.start(2 * MANY);
    visit(&mut vm, MANY);
    drop(gate);
    vm.poll_until(|vm| vm.works() == 0);
    visit(&mut vm, MANY);
}

//! A busy disk leaves the other disks of its IOThread their turn, however many bytes its requests move.

use std::rc::Rc;

use vhost_user_blk::virtqueue::RingFeatures;

use super::vm::{Disk, Vm};

const FEATURES: RingFeatures = RingFeatures {
    event_idx: true,
    indirect: true,
};

/// Bytes of each request of the busy disk.
const LARGE: u32 = 1 << 20;

/// Large requests that the IOThread may execute for a queue before another queue has its turn.
const TURN: u16 = 1;

/// A ring that its driver keeps full of large reads.
struct Busy {
    vm: Vm,
    /// Heads of the chains that are not in the ring.
    free: Vec<u16>,
    /// Requests that were answered.
    done: u16,
}

impl Busy {
    fn new(disk: &Rc<Disk>) -> Self {
        let vm = Vm::on(disk, 256, 0, FEATURES);
        let free = (0..85).map(|request| 3 * request).collect();
        let mut busy = Self { vm, free, done: 0 };
        busy.feed();
        busy.vm.kick();
        busy
    }

    /// Makes a new request available for each one that was answered.
    fn feed(&mut self) {
        while let Some((head, _)) = self.vm.take_used() {
            self.free.push(head);
            self.done += 1;
        }
        for head in self.free.drain(..) {
            self.vm.offer_long_read(head, LARGE);
        }
    }
}

/// Runs passes of the IOThread until the quiet disk has answered a request. Returns how many large requests it has
/// executed meanwhile, for all busy queues together.
fn until_answered(quiet: &mut Vm, busy: &mut [Busy], round: u64) -> u16 {
    let before: u16 = busy.iter().map(|busy| busy.done).sum();
    quiet.offer_read(0, round % 8);
    quiet.kick();
    while quiet.take_used().is_none() {
        assert!(quiet.ctx.poll(false), "the busy disk always has work");
        busy.iter_mut().for_each(Busy::feed);
    }
    assert!(quiet.read_result(0).is_some());
    busy.iter().map(|busy| busy.done).sum::<u16>() - before
}

#[test]
fn a_small_request_waits_for_one_turn_of_others() {
    let iothread = Disk::resources();
    let [disk, other] = [(); 2].map(|()| Disk::null(&iothread));
    let mut quiet = Vm::on(&other, 8, 0, FEATURES);
    let mut busy: Vec<Busy> = Vec::new();
    for queues in 1..4 {
        busy.push(Busy::new(&disk));
        // The new queue gets into its stride: it always wants another turn.
        (0..4).for_each(|_| {
            quiet.ctx.poll(false);
            busy.iter_mut().for_each(Busy::feed);
        });
        let before: Vec<u16> = busy.iter().map(|busy| busy.done).collect();
        for round in 0..50 {
            let large = until_answered(&mut quiet, &mut busy, round);
            assert!(
                large <= queues * TURN,
                "{large} MiB were moved before a request of 512 bytes had its turn"
            );
        }
        for (busy, before) in busy.iter().zip(before) {
            assert!(busy.done > before, "the busy queues have their turns, too");
        }
    }
}

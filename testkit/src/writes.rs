//! Numbered writes on hand-made rings, which a killed daemon leaves to its successor.

use std::collections::BTreeSet;

use crate::vm::{DATA, HEADER, Outcome, STATUS, Vm, header, linked, readable, writable};

const OUT: u32 = 1;
const FLUSH: u32 = 4;

/// Number of writes in flight when the daemon is killed.
pub const WRITES: u16 = 20;
/// Bytes of each write.
pub const BYTES: usize = 8192;

/// Puts write `i` of a queue, with its own data and place, and returns its head.
pub fn put_write(vm: &Vm, queue: usize, i: u16, data: &[u8]) -> u16 {
    let slot = u64::from(i) + 32 * queue as u64;
    let (head, status) = (HEADER + 16 * slot, STATUS + slot);
    let buffer = DATA + slot * BYTES as u64;
    vm.poke(head, &header(OUT, slot * (BYTES / 512) as u64));
    vm.poke(status, &[0xff]);
    vm.poke(buffer, data);
    let bytes = u32::try_from(BYTES).expect("small");
    let chain = [readable(head, 16), readable(buffer, bytes), writable(status, 1)];
    vm.put_descs(queue, 3 * i, &linked(3 * i, &chain));
    3 * i
}

/// Puts a flush after the writes.
pub fn put_flush(vm: &Vm, queue: usize) -> u16 {
    vm.poke(HEADER + 0x800, &header(FLUSH, 0));
    let chain = [readable(HEADER + 0x800, 16), writable(STATUS + 0x800, 1)];
    vm.put_descs(queue, 3 * WRITES, &linked(3 * WRITES, &chain));
    3 * WRITES
}

/// Waits until each write and the flush are answered, and checks that none is answered twice.
pub fn assert_all_answered_once(vm: &mut Vm, queue: usize, round: usize) {
    let mut left: BTreeSet<u32> = (0..=u32::from(WRITES)).map(|i| 3 * i).collect();
    while !left.is_empty() {
        match vm.outcome(queue) {
            Outcome::Used { id, .. } => {
                assert!(left.remove(&id), "round {round}: chain {id} is answered twice");
            }
            Outcome::Broken => panic!("round {round}: queue {queue} is broken"),
        }
    }
    assert_eq!(vm.take_used(queue), None);
}

//! Random requests, compared with a model of the disk.

use crate::frontend::{Frontend, Op};
use crate::random::Random;

/// Size of the disk in bytes.
pub const SIZE: usize = DEPTH * ZONE;

/// Number of requests in flight, and the size of the zone that each has for itself.
const DEPTH: usize = 16;
const ZONE: usize = 1 << 18;
const BLOCK: usize = 4096;
const ROUNDS: u8 = 20;

/// Makes a random request in a zone of the disk, and does the same with `model`. Returns the data that a read has to give.
fn random_request(random: &mut Random, model: &mut [u8], zone: usize, round: u8) -> (Op, Vec<u8>) {
    let len = BLOCK * (1 + random.below(15));
    let start = zone * ZONE + random.below((ZONE - len) / 512) * 512;
    let (offset, place) = (start as u64, &mut model[start..start + len]);
    match random.below(5) {
        0 | 1 => (Op::Read { offset, len }, place.to_vec()),
        2 => {
            place.fill(0);
            let (len, unmap) = (len as u64, round.is_multiple_of(2));
            (Op::WriteZeroes { offset, len, unmap }, Vec::new())
        }
        _ => {
            let byte = |i: usize| u8::try_from(i / 512).expect("short") ^ round;
            let data: Vec<u8> = (0..len).map(byte).collect();
            place.copy_from_slice(&data);
            (Op::Write { offset, data }, Vec::new())
        }
    }
}

/// Runs random requests on each queue in turn, and compares every read with a model. The disk is empty at first. Returns its
/// contents.
pub fn verify(frontend: &mut Frontend, queues: usize) -> Vec<u8> {
    let mut random = Random::new(7);
    let mut model = vec![0; SIZE];
    for round in 0..ROUNDS {
        let queue = usize::from(round) % queues;
        let mut expected = Vec::new();
        for zone in 0..DEPTH {
            let (op, data) = random_request(&mut random, &mut model, zone, round);
            frontend.queue(queue).submit(&op, zone);
            expected.push(data);
        }
        frontend.queue(queue).kick();
        for done in frontend.queue(queue).drain() {
            assert!(
                done.ret == 0 && done.data == expected[done.tag],
                "round {round}, {}: {}",
                done.tag,
                done.ret
            );
        }
    }
    assert_eq!(frontend.queue(0).run(&Op::Flush).ret, 0);
    model
}

//! A load that verifies itself while the daemon is killed again and again.

use std::thread;
use std::time::Duration;

use crate::daemon::Daemon;
use crate::inflight::Inflight;
use crate::random::Random;
use crate::raw::Answer;
use crate::vm::{EVENT_IDX, Ring, STATUS, Vm};
use crate::writes::{BYTES, WRITES, assert_all_answered_once, put_flush, put_write};

/// Size of the disk in bytes.
pub const DISK: usize = 64 * BYTES;

/// Kills the daemon under load again and again. Each time every write must be done and answered once, and what is written
/// afterwards must stay. `stored` returns the contents of the disk.
pub fn survives(rounds: usize, daemon: &mut Daemon, stored: impl Fn(&Daemon) -> Vec<u8>) {
    let mut random = Random::new(3);
    let mut vm = Vm::connect(daemon, EVENT_IDX);
    let region = Inflight::get(&mut vm.client, 1, 64);
    vm.rings = vec![Ring::new(0, 64)];
    let mut again = false;
    for round in 0..rounds {
        let mut expected = Vec::new();
        for killed in [true, false] {
            if std::mem::replace(&mut again, true) {
                vm.reconnect(daemon.connect(), EVENT_IDX);
            }
            assert_eq!(region.set(&mut vm.client), Answer::Ack, "{}", daemon.output());
            vm.share_memory();
            vm.restart_rings();
            if !killed {
                assert_all_answered_once(&mut vm, 0, round);
                assert_written(&vm, &stored(daemon), &expected);
            }
            // What is written now replaces what the dead daemon has written.
            expected.clear();
            for i in 0..WRITES {
                let data = random.bytes(BYTES);
                let head = put_write(&vm, 0, i, &data);
                vm.publish(0, head);
                expected.push(data);
            }
            let flush = put_flush(&vm, 0);
            vm.publish(0, flush);
            vm.kick(0);
            if killed {
                thread::sleep(Duration::from_micros(random.next() % 2000));
                daemon.restart(libc::SIGKILL);
            } else {
                assert_all_answered_once(&mut vm, 0, round);
            }
        }
        assert_written(&vm, &stored(daemon), &expected);
    }
}

fn assert_written(vm: &Vm, stored: &[u8], expected: &[Vec<u8>]) {
    for (i, data) in expected.iter().enumerate() {
        assert_eq!(vm.peek(STATUS + i as u64, 1), [0], "status of {i}");
        assert!(stored[i * BYTES..][..BYTES] == *data, "write {i} is lost");
    }
}

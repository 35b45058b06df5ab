//! A real guest does not notice that its backend is killed, ends, and comes back.
//!
//! With SOAK_SECONDS in the environment the load runs that long (`scripts/soak`).

mod common;

use std::thread;
use std::time::{Duration, Instant};

use common::guest::{Answer, Boot, Guest};
use common::machine::{MIB, Machine};
use common::process::wait_for;
use common::random::Random;

/// A load that fails on the first I/O error and the first wrong byte: 64 requests of 256 KiB in flight, and small
/// writes that are read back and checked.
fn load(seconds: u64) -> String {
    format!(
        "fio --filename=/dev/vda --ioengine=libaio --direct=1 --time_based --runtime={seconds} --minimal \
         --name=bulk --offset=0 --size=64m --rw=randrw --bs=256k --iodepth=64 --verify=0 \
         --name=verify --offset=64m --size=16m --rw=randwrite --bs=4k --iodepth=32 --verify=crc32c \
         --verify_backlog=128 --verify_fatal=1"
    )
}

/// How long the load runs.
fn seconds() -> u64 {
    std::env::var("SOAK_SECONDS").map_or(8, |text| text.parse().expect("SOAK_SECONDS is a number"))
}

/// Restarts the backend with a signal at random moments until the load is done.
fn survives(signal: libc::c_int, seed: u64) {
    let mut random = Random::new(seed);
    let mut machine = Machine::new("recovery", 80 * MIB, &[]);
    let mut guest = machine.boot(Boot::KernelWithFio);
    let seconds = seconds();
    guest.start(&load(seconds));
    let (mut restarts, end) = (0, Instant::now() + Duration::from_secs(seconds));
    while Instant::now() < end {
        thread::sleep(Duration::from_millis(100 + random.next() % 600));
        machine.daemon.restart(signal);
        restarts += 1;
    }
    finish(&mut guest);
    assert!(restarts > seconds / 2, "only {restarts} restarts");
    guest.power_off();
}

/// Waits for the load, and checks that the guest has seen nothing.
fn finish(guest: &mut Guest) {
    let Answer { status, output } = wait_for("the load", || guest.poll());
    assert_eq!(status, "0", "fio: {output}");
    let errors = guest.run("dmesg | grep -i -e 'i/o error' -e 'timeout' -e 'hung'");
    assert_eq!(errors.output, "", "the guest's kernel complains");
}

#[test]
fn a_guest_does_not_notice_that_its_backend_is_killed_again_and_again() {
    survives(libc::SIGKILL, 1);
}

#[test]
fn a_guest_does_not_notice_that_its_backend_is_upgraded_again_and_again() {
    survives(libc::SIGTERM, 2);
}

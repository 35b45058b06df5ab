//! A real guest does not notice that its backend is killed or ends and comes back, nor that the guest moves to another
//! backend.
//!
//! SOAK_SECONDS in the environment sets the duration of the load (`scripts/soak`), and TAKE_OVERS the number of processes
//! that take over one after the other.

use std::os::unix::fs::symlink;
use std::thread;
use std::time::{Duration, Instant};

use testkit::daemon::HAND_OVER;
use testkit::guest::{Answer, Boot, Guest};
use testkit::machine::{MIB, Machine};
use testkit::process::wait_for;
use testkit::random::Random;

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

/// Returns the duration of the load.
fn seconds() -> u64 {
    std::env::var("SOAK_SECONDS").map_or(8, |text| text.parse().expect("SOAK_SECONDS is a number"))
}

/// Restarts the backend with a signal at random moments until the load is done.
fn survives(signal: libc::c_int, seed: u64) {
    let mut random = Random::new(seed);
    let mut machine = Machine::new("recovery", 80 * MIB, &[]);
    let mut guest = machine.boot(Boot::KernelWithFio);
    let at_any_time = guest.reconnects_at_any_time();
    let seconds = seconds();
    guest.start(&load(seconds));
    let (mut restarts, end) = (0, Instant::now() + Duration::from_secs(seconds));
    while Instant::now() < end {
        if !at_any_time {
            wait_for("requests", || {
                (machine.daemon.count("total", "requests") > 0).then_some(())
            });
        }
        thread::sleep(Duration::from_millis(100 + random.next() % 600));
        machine.daemon.restart(signal);
        restarts += 1;
    }
    finish(&mut guest);
    println!("{restarts} restarts with signal {signal} in {seconds} s: nothing was lost");
    // QEMU before 9.2 also waits for a second before it connects again.
    let expected = if at_any_time { seconds / 2 } else { seconds / 4 };
    assert!(restarts > expected, "only {restarts} restarts");
    guest.power_off();
}

/// Waits for the load, and checks that the guest has seen no error.
fn finish(guest: &mut Guest) {
    let Answer { status, output } = wait_for("the load", || guest.poll());
    assert_eq!(status, "0", "fio: {output}");
    sees_no_error(guest);
}

fn sees_no_error(guest: &mut Guest) {
    let errors = guest.run("dmesg | grep -i -e 'i/o error' -e 'timeout' -e 'hung'");
    assert_eq!(errors.output, "", "the guest's kernel complains");
}

#[test]
fn a_guest_never_notices_a_killed_backend() {
    survives(libc::SIGKILL, 1);
}

#[test]
fn a_guest_never_notices_an_upgraded_backend() {
    survives(libc::SIGTERM, 2);
}

/// Returns the number of take-overs beside a guest. `TAKE_OVERS` in the environment sets another one.
fn take_overs() -> u64 {
    std::env::var("TAKE_OVERS").map_or(20, |text| text.parse().expect("TAKE_OVERS is a number"))
}

/// Starts a load in the background that is repeated until [`end_load`]. Each round verifies all that it has written.
fn start_endless_load(guest: &mut Guest) {
    let round = load(2);
    guest.ok(&format!(
        "((while [ ! -e /tmp/end ]; do {round} >/tmp/fio 2>&1 || exit 1; done); echo $? >/tmp/status) >/dev/null 2>&1 &"
    ));
}

/// Ends the load, and checks that it has found no error.
fn end_load(guest: &mut Guest) {
    guest.ok("touch /tmp/end");
    let status = wait_for("the load", || {
        Some(guest.ok("cat /tmp/status 2>/dev/null || true")).filter(|status| !status.is_empty())
    });
    assert_eq!(status, "0", "fio: {}", guest.ok("cat /tmp/fio"));
    sees_no_error(guest);
}

#[test]
fn a_guest_never_notices_many_take_overs() {
    let mut machine = Machine::new("recovery", 80 * MIB, &["--hand-over", HAND_OVER]);
    let mut guest = machine.boot(Boot::KernelWithFio);
    start_endless_load(&mut guest);
    let soak = std::env::var("SOAK_SECONDS").map_or(0, |_| seconds());
    let (mut count, start) = (0, Instant::now());
    let mut requests = 0;
    while count < take_overs() || start.elapsed().as_secs() < soak {
        // The next process counts on.
        requests = wait_for("requests", || {
            Some(machine.daemon.count("total", "requests")).filter(|now| *now > requests)
        });
        machine.daemon.take_over(&[]);
        count += 1;
    }
    end_load(&mut guest);
    println!(
        "{count} take-overs in {:?}, {requests} requests: nothing was lost",
        start.elapsed()
    );
    let log = machine.daemon.output();
    assert!(
        !log.contains("frontend connected"),
        "QEMU has connected again: {log}"
    );
    guest.power_off();
}

/// Fills the disk with data that contains its own checksums. The load reads and checks that data, so it fails if a
/// migration loses a page that the device wrote and the guest did not.
const FILL: &str = "fio --filename=/dev/vda --ioengine=libaio --direct=1 --minimal --name=fill --size=64m --rw=write \
                    --bs=64k --iodepth=8 --verify=crc32c --do_verify=0";

fn checking_load(seconds: u64) -> String {
    format!(
        "fio --filename=/dev/vda --ioengine=libaio --direct=1 --time_based --runtime={seconds} --minimal \
         --verify=crc32c --verify_fatal=1 \
         --name=read --size=64m --rw=randread --bs=64k --iodepth=32 \
         --name=write --offset=64m --size=16m --rw=randwrite --bs=4k --iodepth=8 --verify_backlog=128"
    )
}

#[test]
fn a_guest_migrates_to_another_backend_and_back() {
    let here = Machine::new("recovery", 80 * MIB, &[]);
    let image = here.daemon.image_path();
    let there = Machine::with_image("recovery", &["--incoming"], |path| symlink(image, path));
    let mut guest = here.boot(Boot::KernelWithFio);
    if !guest.can_migrate() {
        return;
    }
    guest.ok(FILL);
    let seconds = seconds().max(15);
    guest.start(&checking_load(seconds));
    // The guest moves there and back while the load runs, at least once.
    let (mut moves, end) = (0, Instant::now() + Duration::from_secs(seconds));
    while moves < 2 || Instant::now() < end {
        let destination = if moves % 2 == 0 { &there } else { &here };
        guest = guest.migrate_to(destination.incoming(Boot::KernelWithFio));
        moves += 1;
    }
    println!("{moves} migrations in {seconds} s: nothing was lost");
    finish(&mut guest);
    guest.power_off();
}

//! A real guest on a faulty disk: a full disk only pauses the guest, a truncated one fails where data is missing.

use std::fs::OpenOptions;
use std::os::unix::fs::symlink;
use std::path::Path;

use serde_json::json;
use testkit::full::SmallDisk;
use testkit::guest::{Boot, Guest};
use testkit::machine::{MIB, Machine};
use testkit::process::wait_for;

/// Writes the whole disk, reads it back and checks it. The load runs in the background and leaves its status in a file.
const LOAD: &str = "(fio --name=load --filename=/dev/vda --ioengine=libaio --direct=1 --iodepth=32 --rw=randwrite --bs=64k \
                    --size=48m --verify=crc32c --verify_fatal=1 --minimal >/tmp/fio 2>&1; echo $? >/tmp/status) \
                    >/dev/null 2>&1 &";

/// Starts a load on a disk that has room for a third of it. Returns when the load is blocked.
fn run_into_the_wall(disk: &SmallDisk, config: &str, options: &[&str]) -> (Machine, Guest) {
    disk.make_image(48 * MIB);
    disk.fill(16 * MIB);
    let mut machine = Machine::with_image(config, options, |path| symlink(disk.image(), path));
    let mut guest = machine.boot_with(Boot::KernelWithFio, &["-action", "reboot=reset"]);
    // Commands must be short from here on: a busy guest may lose bytes of a line that is longer than its serial port's
    // FIFO.
    guest.ok("echo 'cat /tmp/status 2>/dev/null || true' >/tmp/now");
    guest.ok("echo 'until [ -s /tmp/status ]; do sleep 0.1; done; cat /tmp/status' >/tmp/wait");
    guest.ok(LOAD);
    wait_until_held(&mut machine);
    (machine, guest)
}

/// Waits until the load is blocked.
fn wait_until_held(machine: &mut Machine) {
    wait_for("the load to be held", || {
        (machine.daemon.count("total", "held") >= 32).then_some(())
    });
}

fn status(guest: &mut Guest) -> String {
    guest.ok("sh /tmp/now")
}

/// Checks that the load has finished and the guest has noticed nothing.
fn finish(mut guest: Guest) {
    let status = guest.ok("sh /tmp/wait");
    assert_eq!(status, "0", "fio: {}", guest.ok("cat /tmp/fio"));
    let errors = guest.run("dmesg | grep -i -e 'i/o error' -e 'hung'");
    assert_eq!(errors.output, "", "the guest's kernel complains");
    guest.power_off();
}

#[test]
fn a_full_disk_pauses_the_guest_until_freed() {
    for options in [&[][..], &["--aio", "io_uring"]] {
        let Some(disk) = SmallDisk::mount(80 * MIB) else {
            return;
        };
        let (mut machine, mut guest) = run_into_the_wall(&disk, "one-queue", options);
        // The guest is alive, reads work, and so do requests that need no space.
        guest.ok("dd if=/dev/vda of=/dev/null bs=1M count=48 iflag=direct status=none");
        assert_eq!(status(&mut guest), "");
        assert!(machine.daemon.count("total", "held") >= 32);
        disk.make_room();
        finish(guest);
        let log = machine.daemon.output();
        assert_eq!(log.matches("no room on the disk").count(), 1, "{log}");
        assert_eq!(machine.daemon.count("total", "errors"), 0);
    }
}

#[test]
fn a_held_write_survives_guest_pause_and_restart() {
    let Some(disk) = SmallDisk::mount(80 * MIB) else {
        return;
    };
    let (mut machine, guest) = run_into_the_wall(&disk, "recovery", &[]);
    let mut qmp = guest.qmp();
    qmp.execute("stop", &json!({}));
    assert_eq!(machine.daemon.count("total", "held"), 0);
    qmp.execute("cont", &json!({}));
    wait_until_held(&mut machine);
    for signal in [libc::SIGKILL, libc::SIGTERM] {
        machine.daemon.restart(signal);
        wait_until_held(&mut machine);
    }
    // An administrator may make room while the guest is stopped.
    qmp.execute("stop", &json!({}));
    disk.make_room();
    qmp.execute("cont", &json!({}));
    drop(qmp);
    finish(guest);
}

#[test]
fn a_guest_waiting_for_space_can_be_saved() {
    let Some(disk) = SmallDisk::mount(80 * MIB) else {
        return;
    };
    let (mut machine, guest) = run_into_the_wall(&disk, "one-queue", &[]);
    guest.save();
    let guest = machine.restore(Boot::KernelWithFio);
    wait_until_held(&mut machine);
    disk.make_room();
    finish(guest);
    assert_eq!(machine.daemon.count("total", "errors"), 0);
}

#[test]
fn a_guest_waiting_for_space_can_migrate() {
    let Some(disk) = SmallDisk::mount(80 * MIB) else {
        return;
    };
    let (_here, guest) = run_into_the_wall(&disk, "recovery", &[]);
    if !guest.can_migrate() {
        return;
    }
    let image = |path: &Path| symlink(disk.image(), path);
    let mut there = Machine::with_image("recovery", &["--incoming"], image);
    let guest = guest.migrate_to(there.incoming(Boot::KernelWithFio));
    wait_until_held(&mut there);
    disk.make_room();
    finish(guest);
    assert_eq!(there.daemon.count("total", "errors"), 0);
}

#[test]
fn a_guest_reset_drops_its_held_writes() {
    for config in ["one-queue", "recovery"] {
        let Some(disk) = SmallDisk::mount(80 * MIB) else {
            return;
        };
        let (mut machine, mut guest) = run_into_the_wall(&disk, config, &[]);
        guest.reset();
        assert_eq!(machine.daemon.count("total", "held"), 0, "{config}");
        disk.make_room();
        guest.ok("dd if=/dev/urandom of=/tmp/data bs=1M count=48 status=none");
        guest.ok("dd if=/tmp/data of=/dev/vda bs=1M oflag=direct status=none");
        // Held writes would corrupt this data if they were written after all.
        let read = "dd if=/dev/vda bs=1M count=48 iflag=direct status=none | md5sum";
        assert_eq!(guest.ok(read), guest.ok("md5sum </tmp/data"), "{config}");
        guest.power_off();
    }
}

#[test]
fn a_truncated_image_fails_only_missing_data() {
    let machine = Machine::new("one-queue", 32 * MIB, &[]);
    let mut guest = machine.boot(Boot::KernelWithFio);
    let digest = "dd if=/dev/vda bs=1M count=20 iflag=direct status=none | md5sum";
    let before = guest.ok(digest);
    let image = OpenOptions::new().write(true).open(machine.daemon.image_path());
    image
        .expect("open the image")
        .set_len(20 * MIB)
        .expect("cut the image");

    assert_eq!(guest.ok(digest), before, "what is left has changed");
    let read = |skip: u64| {
        format!("dd if=/dev/vda of=/dev/null bs=64k skip={skip} count=1 iflag=direct status=none")
    };
    for (skip, there) in [(0, true), (319, true), (320, false), (400, false), (511, false)] {
        assert_eq!(guest.run(&read(skip)).status == "0", there, "at {skip} * 64 KiB");
    }
    let errors = guest.ok("dmesg | grep -i 'i/o error' | sed 's/.*sector \\([0-9]*\\).*/\\1/'");
    for sector in errors.lines() {
        let sector: u64 = sector.parse().expect("a sector");
        assert!(sector >= 20 * MIB / 512, "an error at sector {sector}");
    }
    // A load on the remaining part of the disk sees no error.
    guest.ok(
        "fio --name=left --filename=/dev/vda --ioengine=libaio --direct=1 --iodepth=16 --rw=randwrite --bs=16k \
         --size=16m --verify=crc32c --verify_fatal=1 --minimal",
    );
    // Sectors that are written again can be read again.
    guest.ok("dd if=/dev/zero of=/dev/vda bs=64k seek=320 count=192 oflag=direct status=none");
    guest.ok(&read(511));
    guest.power_off();
}

//! A real guest sees the disk change its size, changes its cache mode, and gets more memory while it uses the disk.

use std::fs::OpenOptions;
use std::os::unix::fs::symlink;
use std::time::{Duration, Instant};

use serde_json::json;
use testkit::guest::{Boot, Guest};
use testkit::loop_device::LoopDevice;
use testkit::machine::{MIB, Machine};
use testkit::process::wait_for;

/// Time limit for the guest to see a new size. It needs less than a second unless other tests keep the machine busy.
const SOON: Duration = Duration::from_secs(5);

fn sees_size(guest: &mut Guest, size: u64) {
    let start = Instant::now();
    wait_for("the guest to see the new size", || {
        (guest.ok("blockdev --getsize64 /dev/vda") == size.to_string()).then_some(())
    });
    let took = start.elapsed();
    eprintln!("seen after {took:?}");
    assert!(took < SOON, "it took {took:?}");
}

/// Checks that the disk ends at `size`: reads the last MiB, and tries to read past the end.
fn ends_at(guest: &mut Guest, size: u64) {
    let last = size / MIB - 1;
    guest.ok(&format!(
        "dd if=/dev/vda of=/dev/null bs=1M skip={last} count=1 iflag=direct status=none"
    ));
    let beyond = guest.run(&format!(
        "dd if=/dev/vda bs=512 skip={} count=1 iflag=direct status=none | wc -c",
        size / 512
    ));
    assert!(beyond.output.contains('0'), "{}", beyond.output);
}

#[test]
fn a_guest_sees_an_image_grow_and_shrink() {
    let machine = Machine::new("one-queue", 16 * MIB, &[]);
    let mut guest = machine.boot(Boot::Kernel);
    for size in [24 * MIB, 8 * MIB, 12 * MIB] {
        let image = OpenOptions::new().write(true).open(machine.daemon.image_path());
        image.expect("open").set_len(size).expect("resize the image");
        machine.daemon.signal(libc::SIGHUP);
        sees_size(&mut guest, size);
        ends_at(&mut guest, size);
    }
    guest.power_off();
}

#[test]
fn a_guest_sees_a_block_device_grow() {
    let file = tempfile::NamedTempFile::new().expect("make a file");
    file.as_file().set_len(16 * MIB).expect("size it");
    let Some(device) = LoopDevice::over(file.path()) else {
        return;
    };
    let machine = Machine::with_image("one-queue", &[], |path| symlink(device.path(), path));
    let mut guest = machine.boot(Boot::Kernel);
    file.as_file().set_len(32 * MIB).expect("resize it");
    device.losetup("--set-capacity");
    machine.daemon.signal(libc::SIGHUP);
    sees_size(&mut guest, 32 * MIB);
    ends_at(&mut guest, 32 * MIB);
    guest.power_off();
}

#[test]
fn a_restarted_daemon_keeps_the_guests_cache_mode() {
    let mut machine = Machine::new("recovery", 16 * MIB, &[]);
    let mut guest = machine.boot(Boot::Kernel);
    let cache = "/sys/block/vda/cache_type";
    guest.ok(&format!("echo 'write through' >{cache}"));
    assert_eq!(guest.ok(&format!("cat {cache}")), "write through");
    let off = "write cache switched by the driver disk=\"disk.img\" cached=false";
    let output = machine.daemon.output();
    assert!(output.contains(off), "{output}");

    machine.daemon.restart(libc::SIGKILL);
    guest.ok("dd if=/dev/zero of=/dev/vda bs=4k count=1 oflag=direct status=none");
    assert_eq!(guest.ok(&format!("cat {cache}")), "write through");
    let output = machine.daemon.output();
    assert!(output.contains(off), "{output}");

    guest.ok(&format!("echo 'write back' >{cache}"));
    let output = machine.daemon.output();
    assert!(output.contains("cached=true"), "{output}");
    guest.power_off();
}

#[test]
fn guest_memory_can_be_hotplugged_under_load() {
    let machine = Machine::new("one-queue", 64 * MIB, &[]);
    let options = ["-m", "slots=4,maxmem=1G"];
    let mut guest = machine.boot_with(Boot::KernelWithFio, &options);
    let total = "awk '/MemTotal/ {print $2}' /proc/meminfo";
    // User space's buffers go to movable memory first, and movable memory can be given back.
    guest.ok("echo online_movable >/sys/devices/system/memory/auto_online_blocks");
    let before: u64 = guest.ok(total).parse().expect("a number");
    // The load runs in the background, so that the guest can run the rest of the test meanwhile.
    guest.ok(
        "(fio --name=load --filename=/dev/vda --ioengine=libaio --direct=1 --iodepth=32 --rw=randwrite --bs=16k \
         --size=64m --verify=crc32c --verify_backlog=64 --verify_fatal=1 --time_based --runtime=10 --minimal \
         >/tmp/fio 2>&1; echo $? >/tmp/status) >/dev/null 2>&1 &",
    );
    let mut qmp = guest.qmp();
    for round in 0..2 {
        let backend =
            json!({ "qom-type": "memory-backend-memfd", "id": "dimm", "size": 128 * MIB, "share": true });
        qmp.execute("object-add", &backend);
        // Each round has a slot of its own: the guest may still be checking that the old slot is empty.
        let dimm = json!({ "driver": "pc-dimm", "id": "dimm0", "memdev": "dimm", "slot": round });
        qmp.execute("device_add", &dimm);
        wait_for("the guest to find the memory", || {
            let now: u64 = guest.ok(total).parse().expect("a number");
            (now > before + 100 * 1024).then_some(())
        });
        // Reads past the guest's cache into buffers in the new memory.
        guest.ok("dd if=/dev/vda of=/dev/null bs=8M count=8 iflag=direct status=none");
        if round == 0 {
            qmp.execute("device_del", &json!({ "id": "dimm0" }));
            wait_for("the guest to give the memory back", || {
                let devices = qmp.execute("query-memory-devices", &json!({}));
                devices.as_array().is_some_and(Vec::is_empty).then_some(())
            });
            qmp.execute("object-del", &json!({ "id": "dimm" }));
        }
    }
    let status = wait_for("the load", || {
        Some(guest.ok("cat /tmp/status 2>/dev/null || true")).filter(|status| !status.is_empty())
    });
    assert_eq!(status, "0", "fio: {}", guest.ok("cat /tmp/fio"));
    guest.power_off();
}

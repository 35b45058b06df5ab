//! A real guest, with a Linux kernel of its own, uses a disk that the daemon serves.
//!
//! The tests need QEMU, fio and e2fsprogs, which `scripts/test` installs. A guest boots in one to three seconds, even
//! without KVM.

use std::path::Path;

use testkit::daemon::{IMAGE, SOCKET};
use testkit::guest::{Boot, Guest};
use testkit::machine::{MIB, Machine, host};

/// Returns the digest of a part of the disk, given in MiB and read past the guest's cache.
fn digest(guest: &mut Guest, first: u64, count: u64) -> String {
    guest.ok(&format!(
        "dd if=/dev/vda bs=1M skip={first} count={count} iflag=direct status=none | md5sum | cut -c 1-32"
    ))
}

/// Fills a part of the disk, given in MiB, with random data. Returns the digest of that data.
fn fill(guest: &mut Guest, first: u64, count: u64) -> String {
    guest.ok(&format!(
        "dd if=/dev/urandom of=/tmp/data bs=1M count={count} status=none"
    ));
    guest.ok(&format!(
        "dd if=/tmp/data of=/dev/vda bs=64k seek={} oflag=direct conv=fsync status=none",
        first * 16
    ));
    guest.ok("md5sum </tmp/data | cut -c 1-32")
}

fn digest_of_zeros(guest: &mut Guest, count: u64) -> String {
    guest.ok(&format!(
        "dd if=/dev/zero bs=1M count={count} status=none | md5sum | cut -c 1-32"
    ))
}

fn attribute(guest: &mut Guest, name: &str) -> String {
    guest.ok(&format!("cat /sys/block/vda/{name}"))
}

#[test]
fn the_guests_disk_matches_the_command_line() {
    let options = ["--serial", "disk-0001", "--logical-block-size", "4096"];
    let machine = Machine::new("one-queue", 16 * MIB, &options);
    let mut guest = machine.boot(Boot::Kernel);

    assert_eq!(guest.ok("blockdev --getsize64 /dev/vda"), (16 * MIB).to_string());
    assert_eq!(attribute(&mut guest, "serial"), "disk-0001");
    assert_eq!(attribute(&mut guest, "queue/logical_block_size"), "4096");
    assert_eq!(attribute(&mut guest, "ro"), "0");
    guest.power_off();
}

#[test]
fn writes_are_cached_until_the_guest_flushes() {
    let machine = Machine::new("one-queue", MIB, &[]);
    let mut guest = machine.boot(Boot::Kernel);

    assert_eq!(attribute(&mut guest, "queue/write_cache"), "write back");
    guest.power_off();
}

#[test]
fn guests_cannot_write_to_read_only_disks() {
    let machine = Machine::new("one-queue", MIB, &["--read-only"]);
    let before = machine.daemon.image();
    let mut guest = machine.boot(Boot::Kernel);

    assert_eq!(attribute(&mut guest, "ro"), "1");
    let write = guest.run("dd if=/dev/zero of=/dev/vda bs=4k count=1 conv=fsync");
    assert_ne!(write.status, "0", "{}", write.output);
    guest.power_off();
    assert!(machine.daemon.image() == before, "the image has changed");
}

#[test]
fn a_guests_file_system_stays_intact_and_clean() {
    let machine = Machine::new("one-queue", 64 * MIB, &[]);
    let mut guest = machine.boot(Boot::Kernel);

    guest.ok("mkfs.ext4 -q /dev/vda && mount -t ext4 /dev/vda /mnt");
    guest.ok("for i in 1 2 3 4 5 6 7 8; do dd if=/dev/urandom of=/mnt/$i bs=64k count=$((i * i)) status=none; done");
    let written = guest.ok("md5sum /mnt/?");
    guest.ok("umount /mnt && echo 3 >/proc/sys/vm/drop_caches && mount -t ext4 /dev/vda /mnt");
    assert_eq!(guest.ok("md5sum /mnt/?"), written);
    guest.ok("umount /mnt");
    guest.power_off();
    host("e2fsck", &["-fn"], &machine.daemon.image_path());
}

#[test]
fn a_second_guest_reads_the_firsts_data() {
    let machine = Machine::new("one-queue", 8 * MIB, &[]);
    let mut first = machine.boot(Boot::Kernel);
    let written = fill(&mut first, 0, 8);
    first.power_off();

    let mut second = machine.boot(Boot::Kernel);
    assert_eq!(digest(&mut second, 0, 8), written);
    second.power_off();
}

#[test]
fn sixteen_concurrent_requests_read_back_their_writes() {
    let machine = Machine::new("one-queue", 64 * MIB, &[]);
    let mut guest = machine.boot(Boot::KernelWithFio);

    guest.ok(
        "fio --name=verify --filename=/dev/vda --ioengine=libaio --direct=1 --iodepth=16 \
        --rw=randwrite --bsrange=512-256k --size=48M --verify=crc32c --verify_fatal=1 --randrepeat=0",
    );
    guest.power_off();
}

/// Linux makes an indirect table as long as its request needs, even with a small queue.
///
/// Here each page needs an entry: the buffers are pages of a file in memory that got its pages in random order.
fn a_small_queue_serves_large_requests(size: u16) {
    let machine = Machine::new("one-queue", 64 * MIB, &[]);
    let queue_size = format!("device.vda.queue-size={size}");
    let mut guest = machine.boot_with(Boot::KernelWithFio, &["-set", &queue_size]);

    guest.ok("mkfs.ext4 -q /dev/vda && mount -t ext4 /dev/vda /mnt");
    guest.ok("fio --name=shuffle --filename=/tmp/pages --rw=randwrite --bs=4k --size=8M --fallocate=none");
    let before = reads_of(&mut guest);
    guest.ok(
        "fio --name=verify --filename=/mnt/file --ioengine=libaio --direct=1 --iodepth=8 --rw=randwrite --bs=1m \
        --size=16M --mem=mmapshared:/tmp/pages --verify=crc32c --verify_fatal=1 --randrepeat=0",
    );
    // Adjacent pages would take one request for 1 MiB. Others take three, because a request has at most 126 segments.
    let reads = reads_of(&mut guest) - before;
    assert!(reads >= 40, "{reads} requests read 16 MiB");
    guest.ok("umount /mnt");
    guest.power_off();
    host("e2fsck", &["-fn"], &machine.daemon.image_path());
    let said = machine.daemon.output();
    assert!(!said.contains("WARN") && !said.contains("ERROR"), "{said}");
}

fn reads_of(guest: &mut Guest) -> u64 {
    let reads = guest.ok("awk '{ print $1 }' /sys/block/vda/stat");
    reads.parse().expect("a number")
}

#[test]
fn a_queue_of_16_serves_large_requests() {
    a_small_queue_serves_large_requests(16);
}

#[test]
fn a_queue_of_64_serves_large_requests() {
    a_small_queue_serves_large_requests(64);
}

#[test]
fn discarded_blocks_read_as_zero_and_free_space() {
    let machine = Machine::new("one-queue", 32 * MIB, &[]);
    let mut guest = machine.boot(Boot::Kernel);
    let neighbours = (digest(&mut guest, 0, 8), digest(&mut guest, 24, 8));
    let zeros = digest_of_zeros(&mut guest, 16);

    guest.ok("/usr/local/bin/blkdiscard -o 8M -l 16M /dev/vda");
    assert_eq!(digest(&mut guest, 8, 16), zeros);
    assert_eq!((digest(&mut guest, 0, 8), digest(&mut guest, 24, 8)), neighbours);
    let usage = machine.image_usage();
    assert!(usage <= 17 * MIB, "the image still takes {usage} bytes");

    guest.ok("/usr/local/bin/blkdiscard /dev/vda");
    let usage = machine.image_usage();
    assert!(usage <= MIB, "the image still takes {usage} bytes");
    guest.power_off();
}

#[test]
fn blocks_zeroed_by_the_guest_read_as_zeros() {
    let machine = Machine::new("one-queue", 32 * MIB, &[]);
    let mut guest = machine.boot(Boot::Kernel);
    let neighbours = (digest(&mut guest, 0, 8), digest(&mut guest, 24, 8));
    let zeros = digest_of_zeros(&mut guest, 16);

    guest.ok("/usr/local/bin/blkdiscard -z -o 8M -l 16M /dev/vda");
    assert_eq!(digest(&mut guest, 8, 16), zeros);
    assert_eq!((digest(&mut guest, 0, 8), digest(&mut guest, 24, 8)), neighbours);
    guest.power_off();
}

/// Writes to the second half of a disk of 32 MiB for ever, and returns as soon as writes complete.
const LOAD: &str = "writes() { awk '{ print $5 }' /sys/block/vda/stat; }; before=$(writes); \
    (while :; do dd if=/dev/zero of=/dev/vda bs=64k seek=256 count=256 oflag=direct; done) \
    >/dev/null 2>&1 & \
    until [ $(writes) -gt $before ]; do :; done";

#[test]
fn a_guest_reset_under_load_keeps_data() {
    let machine = Machine::new("one-queue", 32 * MIB, &[]);
    // The last option on the command line wins: here, a reset does not end the guest.
    let mut guest = machine.boot_with(Boot::Kernel, &["-action", "reboot=reset"]);
    let mut written = fill(&mut guest, 0, 8);

    for _ in 0..3 {
        guest.ok(LOAD);
        guest.reset();
        assert_eq!(digest(&mut guest, 0, 8), written);
        written = fill(&mut guest, 0, 8);
    }
    guest.power_off();
}

/// Reads the disk once on each vCPU and looks for the requests in the statistics of each queue.
fn each_vcpu_uses_its_queue(config: &str, count: usize) {
    let mut machine = Machine::new(config, 4 * MIB, &[]);
    let mut guest = machine.boot(Boot::Kernel);

    let queues = guest.ok("cd /sys/block/vda/mq && echo *");
    assert_eq!(queues.split(' ').count(), count, "{queues}");
    let whole = machine.image_digest();
    for cpu in 0..count {
        let read = "dd if=/dev/vda bs=4k iflag=direct status=none | md5sum | cut -c 1-32";
        assert_eq!(guest.ok(&format!("taskset -c {cpu} sh -c '{read}'")), whole);
    }
    guest.power_off();
    for queue in 0..count {
        let reads = machine.daemon.count(&format!("queue {queue}"), "read");
        assert!(reads >= 1024, "queue {queue} has seen {reads} reads");
    }
}

#[test]
fn four_vcpus_have_a_queue_each() {
    each_vcpu_uses_its_queue("four-queues", 4);
}

#[test]
fn eight_queues_on_one_iothread_serve_eight_vcpus() {
    each_vcpu_uses_its_queue("batching", 8);
}

#[test]
fn the_firmware_boots_a_guest_from_the_disk() {
    let machine = Machine::with_image("boot", &[], |path| {
        host(
            &testkit::guest::script("make-boot-disk").to_string_lossy(),
            &[],
            path,
        );
        Ok(())
    });
    let mut guest = machine.boot(Boot::Disk);

    guest.ok("grep -q 'BOOT_IMAGE=vmlinuz' /proc/cmdline");
    guest.power_off();
}

/// Makes what clouds start machines from: a compressed qcow2 image, and an overlay above it.
fn make_cloud_disk(overlay: &Path) -> std::io::Result<()> {
    let [raw, base] = ["raw", "base"].map(|name| overlay.with_file_name(name));
    host(
        &testkit::guest::script("make-boot-disk").to_string_lossy(),
        &[],
        &raw,
    );
    let path = raw.to_string_lossy();
    host(
        "qemu-img",
        &["convert", "-q", "-c", "-f", "raw", "-O", "qcow2", &path],
        &base,
    );
    let create = ["create", "-q", "-f", "qcow2", "-b", "base", "-F", "qcow2"];
    host("qemu-img", &create, overlay);
    std::fs::remove_file(raw)
}

#[test]
fn a_compressed_image_boots_below_an_overlay() {
    let dir = tempfile::tempdir().expect("make a directory");
    make_cloud_disk(&dir.path().join(IMAGE)).expect("make the images");
    // Not the options of the guest's configuration, because these say that the image is raw.
    let options = ["--format", "qcow2", "--follow-names"];
    let args = [&["--socket-path", SOCKET, "--blk-file", IMAGE][..], &options].concat();
    let mut machine = Machine::with_args("boot", dir, &args);
    let base = machine.daemon.dir().join("base");
    let before = std::fs::read(&base).expect("read the compressed image");
    let mut guest = machine.boot(Boot::Disk);
    guest.ok("grep -q 'BOOT_IMAGE=vmlinuz' /proc/cmdline");
    let written = fill(&mut guest, 2, 4);
    assert_eq!(digest(&mut guest, 2, 4), written);
    guest.power_off();
    assert!(machine.daemon.terminate().status.success());
    host(
        "qemu-img",
        &["check", "-q", "-f", "qcow2"],
        &machine.daemon.image_path(),
    );
    assert!(std::fs::read(&base).expect("read the compressed image") == before);
}

#[test]
fn a_daemon_serving_a_guest_removes_its_socket() {
    let mut machine = Machine::new("one-queue", MIB, &[]);
    let mut guest = machine.boot(Boot::Kernel);
    guest.ok("dd if=/dev/vda of=/dev/null bs=64k iflag=direct");

    assert!(machine.daemon.terminate().status.success());
    assert!(!machine.daemon.socket().exists());
}

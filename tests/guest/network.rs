//! A real guest on a disk of an NBD server.

use std::thread;
use std::time::{Duration, Instant};

use testkit::guest::{Answer, Boot, Guest};
use testkit::machine::{MIB, Machine, host};
use testkit::nbd::{directory, has, qemu_nbd};
use testkit::process::{Process, wait_for};
use testkit::random::Random;

/// A load that fails on the first I/O error and the first wrong byte.
const LOAD: &str = "fio --filename=/dev/vda --ioengine=libaio --direct=1 --time_based --runtime=12 --minimal \
                    --name=bulk --offset=0 --size=32m --rw=randrw --bs=64k --iodepth=16 --verify=0 \
                    --name=verify --offset=32m --size=16m --rw=randwrite --bs=4k --iodepth=32 --verify=crc32c \
                    --verify_backlog=128 --verify_fatal=1";

/// Serves an export to a guest with two vCPUs.
fn machine() -> (Machine, Process) {
    let dir = directory(48 * MIB);
    let server = qemu_nbd(dir.path(), &[]);
    let node = "driver=nbd,node-name=n,export=disk,server.type=unix,server.path=nbd.sock,reconnect-delay=100,\
                discard=unmap";
    let export = "vhost-user-blk,id=e,node-name=n,addr.type=unix,addr.path=vhost-user-blk.sock,writable=on,\
                  num-queues=2";
    let args = ["--blockdev", node, "--export", export];
    (Machine::with_args("recovery", dir, &args), server)
}

/// Runs the load, and meanwhile `trouble` again and again.
pub(crate) fn under_load(
    machine: &mut Machine,
    guest: &mut Guest,
    mut trouble: impl FnMut(&mut Machine),
) -> Answer {
    let mut random = Random::new(15);
    let at_any_time = guest.reconnects_at_any_time();
    guest.start(LOAD);
    let end = Instant::now() + Duration::from_secs(12);
    while Instant::now() < end {
        if !at_any_time {
            wait_for("requests", || {
                (machine.daemon.count("total", "requests") > 0).then_some(())
            });
        }
        thread::sleep(Duration::from_millis(200 + random.next() % 800));
        trouble(machine);
    }
    wait_for("the load", || guest.poll())
}

/// Boots a guest, which makes a file system on the disk of 48 MiB and finds its files again.
pub(crate) fn use_a_file_system(machine: &Machine) {
    let mut guest = machine.boot(Boot::Kernel);
    assert_eq!(guest.ok("blockdev --getsize64 /dev/vda"), (48 * MIB).to_string());
    guest.ok("mkfs.ext4 -q /dev/vda && mount -t ext4 -o discard /dev/vda /mnt");
    guest.ok(
        "for i in 1 2 3 4 5 6; do dd if=/dev/urandom of=/mnt/$i bs=64k count=$((i * i)) status=none; done",
    );
    let written = guest.ok("md5sum /mnt/?");
    guest.ok("umount /mnt && echo 3 >/proc/sys/vm/drop_caches && mount -t ext4 /dev/vda /mnt");
    assert_eq!(guest.ok("md5sum /mnt/?"), written);
    guest.ok("rm /mnt/6 && umount /mnt");
    guest.power_off();
}

/// Runs the load, and kills backends meanwhile.
pub(crate) fn kill_backends(mut machine: Machine) {
    let mut guest = machine.boot(Boot::KernelWithFio);
    let mut kills = 0;
    let load = under_load(&mut machine, &mut guest, |machine| {
        machine.daemon.restart(libc::SIGKILL);
        kills += 1;
    });
    finish(guest, &load);
    println!("{kills} backends were killed: nothing was lost");
    assert!(kills > 3, "only {kills} kills");
}

/// Checks that the guest has seen no error.
pub(crate) fn finish(mut guest: Guest, load: &Answer) {
    assert_eq!(load.status, "0", "fio: {}", load.output);
    let errors = guest.run("dmesg | grep -i -e 'i/o error' -e 'timeout' -e 'hung'");
    assert_eq!(errors.output, "", "the guest's kernel complains");
    guest.power_off();
}

#[test]
fn a_guests_file_system_on_a_server_is_clean() {
    if !has("qemu-nbd") {
        return;
    }
    let (machine, _server) = machine();
    use_a_file_system(&machine);
    host("e2fsck", &["-fn"], &machine.daemon.image_path());
}

#[test]
fn a_guest_never_notices_a_killed_server() {
    if !has("qemu-nbd") {
        return;
    }
    let (mut machine, mut server) = machine();
    let mut guest = machine.boot(Boot::KernelWithFio);
    let mut kills = 0;
    let load = under_load(&mut machine, &mut guest, |machine| {
        server.signal(libc::SIGKILL);
        server.wait();
        server = qemu_nbd(machine.daemon.dir(), &[]);
        kills += 1;
    });
    finish(guest, &load);
    println!("{kills} servers were killed: nothing was lost");
    assert!(kills > 3, "only {kills} kills");
}

#[test]
fn a_guest_on_a_server_never_notices_a_killed_backend() {
    if has("qemu-nbd") {
        let (machine, _server) = machine();
        kill_backends(machine);
    }
}

//! A real guest with several disks of one daemon: disks come and go, the daemon is killed, the guest moves.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;
use testkit::daemon::{Daemon, SOCKET};
use testkit::guest::{Boot, Guest};
use testkit::machine::MIB;
use testkit::process::wait_for;
use testkit::qmp::Qmp;
use testkit::random::Random;

const SIZE: u64 = 32 * MIB;

/// The variant of the guest: two vCPUs, and QEMU connects again.
const CONFIG: &str = "recovery";

/// The second disk of the guest, and a place for the third one.
const QEMU: [&str; 6] = [
    "-chardev",
    "socket,id=second,path=second.sock,reconnect-ms=100",
    "-device",
    "vhost-user-blk-pci,chardev=second,queue-size=128",
    "-device",
    "pcie-root-port,id=free,chassis=1,slot=1",
];

const IMAGES: [&str; 3] = ["first.img", "second.img", "third.img"];

/// Makes the images of three disks.
fn images() -> TempDir {
    let dir = tempfile::tempdir().expect("make a directory");
    for name in IMAGES {
        let mut random = File::open("/dev/urandom").expect("open it").take(SIZE);
        let mut image = File::create(dir.path().join(name)).expect("make an image");
        io::copy(&mut random, &mut image).expect("fill it");
    }
    dir
}

/// Serves the first `count` disks on one IOThread. With `more` options for each node.
fn serve(dir: TempDir, count: usize, more: &str) -> Daemon {
    let mut args = ["--object", "iothread,id=io0", "--chardev"]
        .map(str::to_owned)
        .to_vec();
    args.push("socket,id=m,path=monitor.sock,server=on,wait=off".to_owned());
    args.extend(["--monitor", "chardev=m"].map(str::to_owned));
    for (image, socket) in IMAGES
        .iter()
        .zip([SOCKET, "second.sock", "third.sock"])
        .take(count)
    {
        // One of the disks bypasses the page cache, so that the guest uses both kinds.
        let cache = if *image == IMAGES[1] {
            ",cache.direct=on"
        } else {
            ""
        };
        args.push("--blockdev".to_owned());
        args.push(format!("file,node-name={image},filename={image}{cache}{more}"));
        args.push("--export".to_owned());
        args.push(format!(
            "vhost-user-blk,id={image},node-name={image},addr.type=unix,addr.path={socket},writable=on,num-queues=2,\
             iothread=io0,allow-inactive=on"
        ));
    }
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    Daemon::start_with(dir, &args)
}

fn monitor(daemon: &Daemon) -> Qmp {
    Qmp::connect(&daemon.dir().join("monitor.sock"))
}

/// Makes the daemon serve the third disk. Inside the sandbox, its files come as descriptors.
fn add_third(daemon: &Daemon) {
    let (mut qmp, path) = (monitor(daemon), daemon.dir().join("third.sock"));
    let image = File::options()
        .read(true)
        .write(true)
        .open(daemon.dir().join(IMAGES[2]));
    qmp.execute_with("add-fd", &json!({"fdset-id": 1}), &image.expect("open the image"));
    let node = json!({"driver": "file", "node-name": "third", "filename": "/dev/fdset/1"});
    qmp.execute("blockdev-add", &node);
    qmp.execute("remove-fd", &json!({"fdset-id": 1}));
    // A killed daemon leaves its sockets. QEMU may connect as soon as the new one listens.
    let _ = fs::remove_file(&path);
    let listener = UnixListener::bind(&path).expect("listen");
    qmp.execute_with("getfd", &json!({"fdname": "third"}), &listener);
    let export = json!({
        "type": "vhost-user-blk", "id": "third", "node-name": "third", "addr": {"type": "fd", "str": "third"},
        "writable": true, "num-queues": 2, "iothread": "io0"
    });
    qmp.execute("block-export-add", &export);
}

fn remove_third(daemon: &Daemon) {
    let mut qmp = monitor(daemon);
    qmp.execute("block-export-del", &json!({"id": "third"}));
    qmp.execute("blockdev-del", &json!({"node-name": "third"}));
}

/// Plugs the third disk into the guest, and waits until the guest has it.
fn plug(guest: &mut Guest) {
    let mut qmp = guest.qmp();
    // QEMU before 9.2 knows whole seconds only.
    let again = match qmp.version() >= (9, 2) {
        true => json!({"reconnect-ms": 100}),
        false => json!({"reconnect": 1}),
    };
    let mut socket = json!({"addr": {"type": "unix", "data": {"path": "third.sock"}}, "server": false});
    merge(&mut socket, &again);
    let backend = json!({"type": "socket", "data": socket});
    qmp.execute("chardev-add", &json!({"id": "third", "backend": backend}));
    let device = json!({
        "driver": "vhost-user-blk-pci", "id": "third", "chardev": "third", "queue-size": 128, "num-queues": 2,
        "bus": "free"
    });
    qmp.execute("device_add", &device);
    wait_for("the guest to find the disk", || {
        (guest.run("test -b /dev/vdc").status == "0").then_some(())
    });
}

fn unplug(guest: &Guest) {
    let mut qmp = guest.qmp();
    qmp.execute("device_del", &json!({"id": "third"}));
    wait_for("the guest to give the disk back", || {
        let devices = qmp.execute("qom-list", &json!({"path": "/machine/peripheral"}));
        let devices = devices.as_array().expect("a list");
        devices
            .iter()
            .all(|device| device["name"] != "third")
            .then_some(())
    });
    // The device is still using it for a moment.
    wait_for("the socket to be free", || {
        qmp.try_execute("chardev-remove", &json!({"id": "third"})).ok()
    });
}

fn merge(options: &mut Value, more: &Value) {
    for (key, value) in more.as_object().expect("an object") {
        options[key] = value.clone();
    }
}

/// Commands that the guest gets while it is busy must be short: it may lose bytes of a line that is longer than the
/// FIFO of its serial port.
fn prepare(guest: &mut Guest) {
    guest.ok("echo '[ ! -s /tmp/status ]' >/tmp/runs");
    guest.ok("echo 'until [ -s /tmp/status ]; do sleep 0.1; done; cat /tmp/status' >/tmp/wait");
    guest.ok(&format!(
        "echo '{} --size=24m --loops=1 >/tmp/third 2>&1' >/tmp/use",
        verify("third", "vdc")
    ));
    guest.ok(&format!(
        "echo 's=0; until [ -e /tmp/enough ] || [ $s != 0 ]; do \
                       {} --name=first --filename=/dev/vda --name=second --filename=/dev/vdb \"$@\" >/tmp/fio 2>&1; \
                       s=$?; done; echo $s >/tmp/status' >/tmp/load",
        timed(3)
    ));
}

/// Writes, reads back, and compares.
fn verify(name: &str, disk: &str) -> String {
    format!(
        "fio --name={name} --filename=/dev/{disk} --ioengine=libaio --direct=1 --iodepth=16 --rw=randwrite \
         --bsrange=4k-64k --verify=crc32c --verify_fatal=1 --minimal"
    )
}

/// The options of jobs that do the same for a time.
fn timed(seconds: u64) -> String {
    format!(
        "fio --ioengine=libaio --direct=1 --iodepth=16 --rw=randwrite --bsrange=4k-64k --size={SIZE} --verify=crc32c \
         --verify_backlog=64 --verify_fatal=1 --minimal --time_based --runtime={seconds}"
    )
}

/// Starts a load in the background that goes on until `finish`, and fails on the first I/O error and the first wrong
/// byte.
fn start_load(guest: &mut Guest, more: &str) {
    guest.ok(&format!("sh /tmp/load {more} </dev/null >/dev/null 2>&1 &"));
}

/// Waits for the load, and checks that the guest has noticed nothing.
fn finish(mut guest: Guest) {
    guest.ok("touch /tmp/enough");
    let status = guest.ok("sh /tmp/wait");
    assert_eq!(status, "0", "fio: {}", guest.ok("cat /tmp/fio"));
    let errors = guest.run("dmesg | grep -i -e 'i/o error' -e timeout -e hung");
    assert_eq!(errors.output, "", "the guest's kernel complains");
    guest.power_off();
}

fn boot(daemon: &Daemon) -> Guest {
    Guest::boot(daemon.dir(), CONFIG, Boot::KernelWithFio, &QEMU)
}

#[test]
fn a_third_disk_comes_and_goes_under_load() {
    let daemon = serve(images(), 2, "");
    let mut guest = boot(&daemon);
    prepare(&mut guest);
    start_load(&mut guest, "");
    for round in 0..2 {
        add_third(&daemon);
        plug(&mut guest);
        guest.ok("sh /tmp/use");
        unplug(&guest);
        remove_third(&daemon);
        println!("round {round}");
    }
    assert_eq!(guest.run("sh /tmp/runs").status, "0", "the load ran all the time");
    finish(guest);
}

/// Returns the duration of the load in seconds.
fn seconds() -> u64 {
    std::env::var("SOAK_SECONDS").map_or(8, |text| text.parse().expect("SOAK_SECONDS is a number"))
}

/// Kills the daemon at random moments, while the guest uses three disks. `again` brings back what the command line does
/// not have.
fn survives_kills(mut daemon: Daemon, again: impl Fn(&Daemon)) {
    let (mut random, seconds) = (Random::new(3), seconds());
    let mut guest = boot(&daemon);
    prepare(&mut guest);
    again(&daemon);
    plug(&mut guest);
    start_load(&mut guest, "--name=3 --filename=/dev/vdc");
    let at_any_time = guest.reconnects_at_any_time();
    let (mut kills, end) = (0, Instant::now() + Duration::from_secs(seconds));
    while kills < 3 || Instant::now() < end {
        if !at_any_time {
            daemon.wait_for(|daemon| frontends(daemon) == IMAGES.len(), "have all frontends");
            wait_for("requests", || (in_use(&daemon) == IMAGES.len()).then_some(()));
        }
        thread::sleep(Duration::from_millis(200 + random.next() % 800));
        daemon.restart(libc::SIGKILL);
        again(&daemon);
        kills += 1;
    }
    finish(guest);
    println!("{kills} kills in {seconds} s: nothing was lost");
}

/// Returns the number of disks that have taken requests.
fn in_use(daemon: &Daemon) -> usize {
    let stats = monitor(daemon).execute("query-blockstats", &json!({}));
    let total = |disk: &Value, name| disk["x-export"]["total"][name].as_u64().expect("a number");
    let taken = |disk: &&Value| total(disk, "reads") + total(disk, "writes") > 0;
    stats.as_array().expect("a list").iter().filter(taken).count()
}

/// Returns the number of connected frontends.
fn frontends(daemon: &Daemon) -> usize {
    let log = daemon.output();
    let count = |event| log.matches(event).count();
    count("frontend connected") - count("frontend left")
}

#[test]
fn three_disks_survive_kills_of_their_daemon() {
    survives_kills(serve(images(), 3, ""), |_| ());
}

#[test]
fn a_disk_added_later_survives_kills_too() {
    survives_kills(serve(images(), 2, ""), add_third);
}

#[test]
fn a_guest_with_two_disks_migrates() {
    let here = serve(images(), 2, "");
    let dir = TempDir::new().expect("make a directory");
    for image in IMAGES {
        symlink(here.dir().join(image), dir.path().join(image)).expect("link to the image");
    }
    let there = serve(dir, 2, ",active=off");
    let mut guest = boot(&here);
    if !guest.can_migrate() {
        return;
    }
    let seconds = seconds().max(12);
    prepare(&mut guest);
    start_load(&mut guest, "");
    let (mut moves, end) = (0, Instant::now() + Duration::from_secs(seconds));
    while moves < 2 || Instant::now() < end {
        let destination = if moves % 2 == 0 { &there } else { &here };
        guest = guest.migrate_to(incoming(destination.dir()));
        moves += 1;
    }
    println!("{moves} migrations in {seconds} s: nothing was lost");
    finish(guest);
}

fn incoming(dir: &Path) -> Guest {
    Guest::incoming(dir, CONFIG, Boot::KernelWithFio, &QEMU)
}

//! Daemons that take over an image from each other, or a listening socket that outlives them.

use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use testkit::daemon::{Daemon, HAND_OVER, SOCKET, binary, run};
use testkit::fuse::StalledFile;
use testkit::inflight::Inflight;
use testkit::loop_device::LoopDevice;
use testkit::process::{Process, wait_for};
use testkit::raw::{Answer, msg};
use testkit::skip::skipped;
use testkit::target::image;
use testkit::vm::{DATA, HEADER, Ring, SECTOR, STATUS, USER, Vm, header, readable, writable};

/// Starts a daemon on another daemon's image, with a socket of its own.
fn beside(other: &Daemon, options: &[&str]) -> Daemon {
    let dir = tempfile::tempdir().expect("make a directory");
    let image = other.image_path();
    let image = image.to_str().expect("the path is UTF-8");
    let args = ["--socket-path", "vhost-user-blk.sock", "--blk-file", image];
    Daemon::start_with(dir, &[&args, options].concat())
}

fn stop(vm: &mut Vm) {
    vm.client.stop_ring(0).expect("stop the ring");
    vm.rings.clear();
}

/// Tries to start a ring. Returns the answer to the last message.
fn try_to_start(vm: &mut Vm) -> Answer {
    let ring = Ring::new(0, 16);
    let user = |offset: usize| USER + offset as u64;
    vm.share_memory();
    let client = &mut vm.client;
    client.vring_state(msg::SET_VRING_NUM, 0, 16);
    client.vring_addr(0, user(ring.desc), user(ring.used), user(ring.avail));
    client.vring_fd(msg::SET_VRING_KICK, 0, Some(ring.kick.as_raw_fd()))
}

#[test]
fn a_second_daemon_on_an_image_is_refused() {
    let daemon = Daemon::start(&image(), &[]);
    let path = daemon.image_path();
    let path = path.to_str().expect("the path is UTF-8");
    let dir = tempfile::tempdir().expect("make a directory");
    let args = ["--socket-path", "s", "--blk-file", path];
    let exit = run(&args, dir.path());
    assert!(!exit.status.success(), "both serve the image");
    // Root sees that the other daemon runs. Others do not, and wait for a killed one.
    // SAFETY: takes nothing and always succeeds.
    let lines = if unsafe { libc::geteuid() } == 0 { 1 } else { 2 };
    assert_eq!(exit.output.lines().count(), lines, "{}", exit.output);
    for word in [path, "in use", "--incoming"] {
        assert!(exit.output.contains(word), "{}", exit.output);
    }
}

/// The directory in which a daemon runs.
#[derive(Clone, Copy)]
enum Place {
    Own,
    OfKilled,
}

fn write_a_block(vm: &mut Vm) {
    vm.poke(HEADER, &header(1, 8));
    vm.send(
        0,
        &[readable(HEADER, 16), readable(DATA, 4096), writable(STATUS, 1)],
    );
}

/// A daemon that waits for the image of a killed one, whose last write waits.
struct Waiting<End> {
    daemon: Process,
    dir: TempDir,
    /// Lets the write go, before the killed daemon is waited for.
    _end: End,
    _killed: Daemon,
}

impl<End> Waiting<End> {
    /// Starts a daemon beside this one, in a directory of its own or in this one.
    fn start(args: &[&str], killed: Daemon, end: End, place: Place) -> Self {
        let dir = tempfile::tempdir().expect("make a directory");
        let mut command = Command::new(binary());
        command.args(args).stdin(Stdio::null());
        command.current_dir(match place {
            Place::Own => dir.path(),
            Place::OfKilled => killed.dir(),
        });
        command.stderr(fs::File::create(dir.path().join("log")).expect("make a log"));
        Self {
            daemon: Process::start("vhost-user-blk", &mut command, |_| ()).0,
            dir,
            _end: end,
            _killed: killed,
        }
    }

    fn said(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    fn wait_to_say(&mut self, words: &str, times: usize) {
        wait_for(words, || {
            let ended = self.daemon.ended();
            let said = self.said();
            assert_eq!(ended, None, "{said}");
            (said.matches(words).count() >= times).then_some(())
        });
    }
}

const WAITS: &str = "waiting until its last I/O is over";

/// Kills a daemon whose write to `image` waits, and starts another one there.
fn kill_during_write<'a>(file: &'a StalledFile, image: &Path, engine: &str) -> Waiting<impl Drop + use<'a>> {
    let image = image.to_str().expect("the path is UTF-8");
    let args = [
        "--socket-path",
        SOCKET,
        "--blk-file",
        image,
        "--direct",
        "--format",
        "raw",
        "--aio",
        engine,
    ];
    let start = || Daemon::start_with(tempfile::tempdir().expect("make a directory"), &args);
    let old = start();
    let end = file.let_go_at_the_end();
    let mut vm = Vm::start(&old, 1);
    write_a_block(&mut vm);
    wait_for("the write", || file.has_reader().then_some(()));
    old.signal(libc::SIGKILL);
    let mut waiting = Waiting::start(&args, old, end, Place::Own);
    waiting.wait_to_say(WAITS, 1);
    waiting
}

fn lockable_file() -> Option<StalledFile> {
    StalledFile::mount_lockable(1 << 20)
        .inspect_err(|error| skipped(format_args!("no FUSE file system can be mounted: {error}")))
        .ok()
}

#[test]
fn a_successor_waits_for_a_killed_daemons_last_write() {
    let Some(file) = lockable_file() else { return };
    // Its worker cannot end before the write.
    let mut waiting = kill_during_write(&file, &file.path(), "threads");
    file.let_go();
    waiting.wait_to_say("serving", 1);
}

#[test]
fn a_successor_waits_for_a_killed_daemons_io_uring() {
    // A container hides who else may have the lock. There a successor waits for 5 s only.
    if fs::read_link("/proc/self/ns/pid").is_ok_and(|namespace| namespace.as_os_str() != "pid:[4026531836]") {
        return skipped("not all processes of the machine are visible");
    }
    let Some(file) = lockable_file() else { return };
    let Some(device) = LoopDevice::over(&file.path()) else {
        return;
    };
    // The process ends, but its ring keeps the lock.
    let mut waiting = kill_during_write(&file, Path::new(device.path()), "io_uring");
    // However long that takes: the second report comes after the time for hidden holders.
    waiting.wait_to_say(WAITS, 2);
    file.let_go();
    waiting.wait_to_say("serving", 1);
}

#[test]
fn a_process_that_takes_over_waits_for_the_io_uring_of_a_killed_one() {
    let Some(file) = lockable_file() else { return };
    let Some(device) = LoopDevice::over(&file.path()) else {
        return;
    };
    let args = [
        "--socket-path",
        SOCKET,
        "--blk-file",
        device.path(),
        "--direct",
        "--format",
        "raw",
        "--aio",
        "io_uring",
        "--hand-over",
        HAND_OVER,
        "--fail-take-over",
        "passed",
    ];
    let old = Daemon::start_with(tempfile::tempdir().expect("make a directory"), &args);
    let end = file.let_go_at_the_end();
    let mut vm = Vm::start(&old, 1);
    write_a_block(&mut vm);
    wait_for("the write", || file.has_reader().then_some(()));
    let mut waiting = Waiting::start(&["--take-over", HAND_OVER], old, end, Place::OfKilled);
    waiting.wait_to_say("as soon as its last requests have ended", 1);
    // If it went on at once, it would say so soon.
    thread::sleep(Duration::from_millis(300));
    assert!(!waiting.said().contains("in place of"), "{}", waiting.said());
    file.let_go();
    waiting.wait_to_say("in place of the old process", 1);
}

#[test]
fn a_signal_ends_the_wait_for_an_image() {
    let Some(file) = lockable_file() else { return };
    let mut waiting = kill_during_write(&file, &file.path(), "threads");
    let sent = Instant::now();
    waiting.daemon.signal(libc::SIGTERM);
    assert_eq!(waiting.daemon.wait().code(), Some(1));
    assert!(sent.elapsed() < Duration::from_secs(5), "{:?}", sent.elapsed());
    let (said, path) = (waiting.said(), file.path());
    let told = format!("error: {} is still in use", path.display());
    let last = said.lines().last().unwrap_or_default();
    assert!(
        last.contains(&told) && last.contains("a signal ends the daemon"),
        "{said}"
    );
}

#[test]
fn stopping_all_rings_releases_the_image() {
    let source = Daemon::start(&image(), &[]);
    let mut from = Vm::start(&source, 1);
    let destination = beside(&source, &["--incoming"]);
    assert_eq!(from.read_sector(0, 3), [3; SECTOR], "the source serves on");

    let mut to = Vm::connect(&destination, 0);
    assert_eq!(try_to_start(&mut to), Answer::Nak, "both would write");
    to.client.wait_for_end();
    let said = destination.output();
    let image = source.image_path();
    assert!(
        said.contains("in use") && said.contains(&*image.to_string_lossy()),
        "{said}"
    );

    stop(&mut from);
    let mut to = Vm::start(&destination, 1);
    assert_eq!(to.read_sector(0, 4), [4; SECTOR]);
    assert_eq!(try_to_start(&mut from), Answer::Nak, "both would write");

    // The image goes back to the source.
    stop(&mut to);
    let mut from = Vm::start(&source, 1);
    assert_eq!(from.read_sector(0, 5), [5; SECTOR]);
}

#[test]
fn a_failed_migration_leaves_the_source_its_image() {
    let source = Daemon::start(&image(), &[]);
    let mut from = Vm::start(&source, 1);
    let destination = beside(&source, &["--incoming"]);
    let to = Vm::connect(&destination, 0);
    stop(&mut from);
    from.start_ring(0, Ring::new(0, 16));
    assert_eq!(from.read_sector(0, 6), [6; SECTOR]);
    drop(to);
}

#[test]
fn the_last_ring_to_stop_unlocks_the_image() {
    let source = Daemon::start(&image(), &["--num-queues", "2"]);
    let mut from = Vm::start(&source, 2);
    let destination = beside(&source, &["--incoming"]);
    from.client.stop_ring(0).expect("stop one ring");
    let mut to = Vm::connect(&destination, 0);
    assert_eq!(try_to_start(&mut to), Answer::Nak, "both would write");
    from.client.stop_ring(1).expect("stop the other ring");
    Vm::start(&destination, 1).read_sector(0, 1);
}

#[test]
fn a_frontend_that_vanishes_frees_the_image() {
    let source = Daemon::start(&image(), &[]);
    let from = Vm::start(&source, 1);
    let mut destination = beside(&source, &["--incoming"]);
    drop(from);
    let mut source = source;
    source.wait_for(|d| d.output().contains("frontend left"), "see its frontend leave");
    Vm::start(&destination, 1).read_sector(0, 1);
    assert!(destination.is_alive());
}

/// Starts a daemon on a listening socket that it inherits as descriptor 9.
fn on_listener(listener: &UnixListener, dir: &Path) -> Process {
    let mut command = Command::new(binary());
    command
        .args(["--fd", "9", "--blk-file", "disk.img"])
        .current_dir(dir)
        .stdin(Stdio::null())
        .stderr(Stdio::null());
    let fd = listener.as_raw_fd();
    // SAFETY: the closure runs between fork and exec and makes async-signal-safe calls only.
    unsafe {
        // If the number is the same, dup2 leaves the descriptor as it is, to be closed.
        command.pre_exec(
            move || match (libc::dup2(fd, 9), libc::fcntl(9, libc::F_SETFD, 0)) {
                (9, 0) => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            },
        );
    }
    Process::start("vhost-user-blk", &mut command, |_| ()).0
}

#[test]
fn a_socket_passes_on_with_requests_in_flight() {
    let dir = tempfile::tempdir().expect("make a directory");
    fs::write(dir.path().join("disk.img"), image()).expect("write the image");
    let socket = dir.path().join("vhost.sock");
    let listener = UnixListener::bind(&socket).expect("listen");
    let mut daemon = on_listener(&listener, dir.path());
    let connect = || UnixStream::connect(&socket).expect("connect");
    let mut vm = Vm::on(connect(), 0);
    let region = Inflight::get(&mut vm.client, 1, 16);
    vm.rings.push(Ring::new(0, 16));
    for signal in [libc::SIGTERM, libc::SIGKILL, libc::SIGTERM] {
        assert_eq!(region.set(&mut vm.client), Answer::Ack);
        vm.share_memory();
        vm.restart_rings();
        vm.read_sector(0, 7);
        daemon.signal(signal);
        // The next daemon starts while this one is still exiting.
        let next = on_listener(&listener, dir.path());
        daemon.wait();
        daemon = next;
        vm.reconnect(connect(), 0);
    }
}

#[test]
fn a_reset_device_drains_and_starts_afresh() {
    let daemon = Daemon::start(&image(), &["--num-queues", "2"]);
    let mut vm = Vm::start(&daemon, 2);
    vm.read_sector(0, 1);
    vm.read_sector(1, 2);
    assert_eq!(vm.client.ask(msg::RESET_DEVICE, &[], &[]), Answer::Ack);
    for queue in 0..2 {
        vm.publish(queue, 0);
        vm.kick(queue);
        let base = vm.client.stop_ring(u32::try_from(queue).expect("small"));
        assert_eq!(base.expect("an answer"), 0, "nothing is left of queue {queue}");
        assert_eq!(vm.published(queue), 1, "queue {queue} does not run any more");
    }
    // The rings use the same memory, except that a driver starts with both indices at zero.
    for (queue, ring) in (0..).zip(std::mem::take(&mut vm.rings)) {
        for part in [ring.avail, ring.used] {
            vm.memory.store_u16(part + 2, 0);
        }
        vm.start_ring(queue, Ring::new(queue, 16));
        assert_eq!(vm.read_sector(queue, 3), [3; SECTOR]);
    }
}

/// Returns the disk's size in bytes, as the driver sees it.
fn capacity(vm: &mut Vm) -> u64 {
    let sectors = vm.client.config(0, 8).expect("eight bytes");
    u64::from_le_bytes(sectors.try_into().expect("eight bytes")) * SECTOR as u64
}

#[test]
fn taking_over_an_image_rereads_its_size() {
    let source = Daemon::start(&image(), &[]);
    let mut from = Vm::start(&source, 1);
    let destination = beside(&source, &["--incoming"]);
    stop(&mut from);
    let file = fs::File::options()
        .write(true)
        .open(source.image_path())
        .expect("open the image");
    let size = 2 * image().len() as u64;
    file.set_len(size).expect("extend it");
    let mut to = Vm::start(&destination, 1);
    assert_eq!(capacity(&mut to), size);
    assert_eq!(to.read_sector(0, size / SECTOR as u64 - 1), [0; SECTOR]);
    stop(&mut to);

    // The source, which gets the image back, sees the new size too.
    drop(from);
    file.set_len(2 * size).expect("extend it");
    let mut from = Vm::start(&source, 1);
    assert_eq!(capacity(&mut from), 2 * size);
}

#[test]
fn taking_over_a_block_device_drops_stale_cache() {
    let below = tempfile::NamedTempFile::new().expect("make a file");
    fs::write(below.path(), image()).expect("fill it");
    let Some(device) = LoopDevice::over(below.path()) else {
        return;
    };
    let dir = tempfile::tempdir().expect("make a directory");
    let args = [
        "--socket-path",
        "vhost-user-blk.sock",
        "--blk-file",
        device.path(),
        "--incoming",
    ];
    let destination = Daemon::start_with(dir, &args);
    // This host has read the data and now has it in its cache.
    let seen = fs::read(device.path()).expect("read the device");
    assert_eq!(seen[4096], 8);
    // Writes of another host to a shared disk bypass this host's cache.
    let write = |byte: u8| {
        let file = below.as_file();
        file.write_all_at(&[byte; SECTOR], 4096).expect("write below");
        file.sync_all().expect("flush below");
    };
    write(0xee);
    let mut to = Vm::start(&destination, 1);
    assert_eq!(to.read_sector(0, 8), [0xee; SECTOR], "stale");
    stop(&mut to);
    drop(to);
    write(0xdd);
    let mut to = Vm::start(&destination, 1);
    assert_eq!(to.read_sector(0, 8), [0xdd; SECTOR], "stale");
}

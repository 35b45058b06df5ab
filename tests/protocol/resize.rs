//! The disk changes its size while it is served, and the driver changes the cache mode. A successor knows both.

use std::fs::OpenOptions;
use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

use testkit::daemon::Daemon;
use testkit::inflight::Inflight;
use testkit::memory::PATIENCE;
use testkit::raw::{Answer, msg};
use testkit::target::{image, start};
use testkit::vm::{DATA, HEADER, Ring, SECTOR, STATUS, Vm, header, readable, writable};

const OLD: u64 = 64 * SECTOR as u64;
const IO_ERROR: u8 = 1;
/// The offset of `writeback` in the configuration space.
const WRITEBACK: u32 = 32;

/// Sets up the backend's channel and returns our end.
fn channel(vm: &mut Vm) -> UnixStream {
    let (ours, theirs) = UnixStream::pair().expect("make a socket pair");
    ours.set_read_timeout(Some(PATIENCE)).expect("set a timeout");
    let answer = vm.client.ask(msg::SET_BACKEND_REQ_FD, &[], &[theirs.as_raw_fd()]);
    assert_eq!(answer, Answer::Ack, "SET_BACKEND_REQ_FD");
    ours
}

/// Waits for one message, which must be CONFIG_CHANGE.
fn config_change(channel: &mut UnixStream) {
    let mut message = [0; 12];
    channel
        .read_exact(&mut message)
        .expect("the backend says something");
    assert_eq!(message.to_vec(), [2u32, 1, 0].map(u32::to_le_bytes).concat());
}

fn resize(daemon: &Daemon, size: u64) {
    let image = OpenOptions::new().write(true).open(daemon.image_path());
    image
        .expect("open the image")
        .set_len(size)
        .expect("resize the image");
    daemon.signal(libc::SIGHUP);
}

fn capacity(vm: &mut Vm) -> u64 {
    let bytes = vm.client.config(0, 8).expect("the configuration");
    512 * u64::from_le_bytes(bytes.try_into().expect("eight bytes"))
}

/// Reads one sector and returns the status.
fn read(vm: &mut Vm, sector: u64) -> u8 {
    vm.poke(HEADER, &header(0, sector));
    let chain = [readable(HEADER, 16), writable(DATA, 512), writable(STATUS, 1)];
    vm.request(0, &chain).expect("an answer").0
}

#[test]
fn a_grown_disk_is_announced_and_fully_usable() {
    let (daemon, _) = start();
    let mut vm = Vm::start(&daemon, 1);
    let mut channel = channel(&mut vm);
    assert_eq!((capacity(&mut vm), read(&mut vm, 64)), (OLD, IO_ERROR));
    resize(&daemon, 2 * OLD);
    config_change(&mut channel);
    assert_eq!(capacity(&mut vm), 2 * OLD);
    assert_eq!(
        [64, 127, 128].map(|sector| read(&mut vm, sector)),
        [0, 0, IO_ERROR]
    );
    assert!(daemon.output().contains("resized"), "{}", daemon.output());
}

#[test]
fn requests_past_a_shrunk_disk_fail() {
    let (daemon, _) = start();
    let mut vm = Vm::start(&daemon, 1);
    let mut channel = channel(&mut vm);
    // A partial block does not count.
    resize(&daemon, OLD / 2 + 511);
    config_change(&mut channel);
    assert_eq!(capacity(&mut vm), OLD / 2);
    assert_eq!(
        [31, 32, 63].map(|sector| read(&mut vm, sector)),
        [0, IO_ERROR, IO_ERROR]
    );
}

#[test]
fn unchanged_and_empty_images_are_not_announced() {
    let (mut daemon, _) = start();
    let mut vm = Vm::start(&daemon, 1);
    let mut channel = channel(&mut vm);
    daemon.signal(libc::SIGHUP);
    resize(&daemon, 0);
    daemon.wait_for(
        |daemon| daemon.output().contains("no whole block"),
        "refuse an empty disk",
    );
    assert_eq!(capacity(&mut vm), OLD);
    resize(&daemon, 2 * OLD);
    // The channel has carried no message before this one.
    config_change(&mut channel);
    channel.set_nonblocking(true).expect("do not wait");
    assert!(channel.read(&mut [0]).is_err(), "one change, one message");
}

#[test]
fn overlapping_checks_announce_a_change_once() {
    const CHANGES: usize = 50;
    let (mut daemon, _) = start();
    let mut vm = Vm::start(&daemon, 1);
    let mut channel = channel(&mut vm);
    for change in 1..=CHANGES as u64 {
        daemon.signal(libc::SIGHUP);
        resize(&daemon, OLD + change * SECTOR as u64);
        daemon.signal(libc::SIGHUP);
        config_change(&mut channel);
        vm.read_sector(0, 0);
    }
    drop(vm);
    daemon.terminate();
    assert_eq!(daemon.output().matches("resized").count(), CHANGES);
    let mut rest = Vec::new();
    channel.read_to_end(&mut rest).expect("read what is left");
    assert!(rest.is_empty(), "one change, one message");
}

#[test]
fn a_resize_needs_no_channel_or_frontend() {
    let (mut daemon, _) = start();
    resize(&daemon, 2 * OLD);
    daemon.wait_for(|daemon| daemon.output().contains("resized"), "see the new size");
    let mut vm = Vm::start(&daemon, 1);
    assert_eq!((capacity(&mut vm), read(&mut vm, 127)), (2 * OLD, 0));
    resize(&daemon, 3 * OLD);
    daemon.wait_for(
        |daemon| daemon.output().matches("resized").count() == 2,
        "see the new size",
    );
    assert_eq!((capacity(&mut vm), read(&mut vm, 191)), (3 * OLD, 0));
}

#[test]
fn a_resize_while_stopped_is_announced_later() {
    let (mut daemon, _) = start();
    let mut vm = Vm::start(&daemon, 2);
    let mut channel = channel(&mut vm);
    let silent = |channel: &mut UnixStream| {
        channel.set_nonblocking(true).expect("do not wait");
        let silent = channel.read(&mut [0]).is_err();
        channel.set_nonblocking(false).expect("wait");
        silent
    };
    // One running ring is enough for the announcement.
    let first = vm.client.stop_ring(0).expect("stop");
    resize(&daemon, 2 * OLD);
    config_change(&mut channel);
    let second = vm.client.stop_ring(1).expect("stop");
    for (size, times) in [(3 * OLD, 2), (4 * OLD, 3)] {
        resize(&daemon, size);
        daemon.wait_for(
            |daemon| daemon.output().matches("resized").count() == times,
            "see the new size",
        );
        assert!(silent(&mut channel), "a suspended device speaks");
    }
    assert_eq!((first, second, capacity(&mut vm)), (0, 0, 4 * OLD));
    vm.restart_rings();
    config_change(&mut channel);
    vm.read_sector(0, 0);
    assert!(silent(&mut channel), "one message for both changes");
}

#[test]
fn nothing_is_announced_when_a_ring_only_stops_and_starts() {
    let (daemon, _) = start();
    let mut vm = Vm::connect(&daemon, 0);
    let region = Inflight::get(&mut vm.client, 1, 16);
    assert_eq!(region.set(&mut vm.client), Answer::Ack);
    let mut channel = channel(&mut vm);
    vm.share_memory();
    vm.rings.push(Ring::new(0, 16));
    for _ in 0..3 {
        vm.restart_rings();
        vm.read_sector(0, 3);
        vm.client.stop_ring(0).expect("stop");
    }
    drop(vm);
    let mut said = Vec::new();
    channel.read_to_end(&mut said).expect("the connection ends");
    assert!(said.is_empty(), "{said:?}");
}

#[test]
fn a_channel_must_be_a_socket() {
    let (daemon, baseline) = start();
    let mut vm = Vm::start(&daemon, 1);
    let file = tempfile::tempfile().expect("a file");
    let answer = vm.client.ask(msg::SET_BACKEND_REQ_FD, &[], &[file.as_raw_fd()]);
    assert!(answer.is_refusal());
    drop(vm);
    testkit::target::assert_unharmed(daemon, &baseline);
}

#[test]
fn a_channel_closes_with_its_connection() {
    let (mut daemon, baseline) = start();
    let mut vm = Vm::start(&daemon, 1);
    let mut first = channel(&mut vm);
    let mut second = channel(&mut vm);
    assert_eq!(first.read(&mut [0]).expect("it is closed"), 0);
    drop(vm);
    assert_eq!(second.read(&mut [0]).expect("it is closed"), 0);
    daemon.wait_for_holdings(&baseline);
}

#[test]
fn a_successor_keeps_the_drivers_cache_mode() {
    let mut daemon = Daemon::start(&image(), &[]);
    let mut vm = Vm::connect(&daemon, 0);
    let region = Inflight::get(&mut vm.client, 1, 16);
    vm.rings.push(Ring::new(0, 16));
    for (writeback, size) in [(1, 2 * OLD), (0, 3 * OLD), (0, 2 * OLD), (1, OLD)] {
        assert_eq!(region.set(&mut vm.client), Answer::Ack);
        vm.share_memory();
        vm.restart_rings();
        assert_eq!(vm.client.set_config(WRITEBACK, &[writeback]), Answer::Ack);
        let image = OpenOptions::new().write(true).open(daemon.image_path());
        image.expect("open").set_len(size).expect("resize the image");
        daemon.restart(libc::SIGKILL);

        vm.reconnect(daemon.connect(), 0);
        let mut channel = channel(&mut vm);
        assert_eq!(region.set(&mut vm.client), Answer::Ack);
        assert_eq!(vm.client.config(WRITEBACK, 1).expect("read"), [writeback]);
        vm.share_memory();
        vm.restart_rings();
        config_change(&mut channel);
        assert_eq!(capacity(&mut vm), size);
        vm.client.stop_ring(0).expect("stop");
    }
}

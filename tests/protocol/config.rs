//! The device's features, configuration space and serial number.

use virtio_driver::{VirtioBlkFeatureFlags as Blk, VirtioFeatureFlags as Ring};

use testkit::daemon::Daemon;
use testkit::frontend::{Frontend, all_features};
use testkit::raw::{Answer, Client, VERSION_1, msg};
use testkit::vm::{DATA, FILL, HEADER, STATUS, Vm, header, readable, writable};

const IMAGE: usize = 1 << 20;

fn connect(daemon: &Daemon) -> Frontend {
    Frontend::connect(&daemon.socket(), 1, 4, all_features()).expect("connect")
}

#[test]
fn the_features_are_those_of_the_disk() {
    let daemon = Daemon::start(&vec![0; IMAGE], &["--num-queues", "4"]);
    let features = connect(&daemon).features();
    let expected = Blk::SEG_MAX
        | Blk::BLK_SIZE
        | Blk::TOPOLOGY
        | Blk::FLUSH
        | Blk::CONFIG_WCE
        | Blk::MQ
        | Blk::DISCARD
        | Blk::WRITE_ZEROES;
    let missing = (expected.bits() | Ring::VERSION_1.bits() | Ring::RING_EVENT_IDX.bits()) & !features;
    assert_eq!(missing, 0, "features {missing:#x} are missing");
    assert_eq!(
        features & Blk::RO.bits(),
        0,
        "a writable disk is announced as read-only"
    );
}

#[test]
fn the_configuration_space_describes_the_disk() {
    let daemon = Daemon::start(
        &vec![0; IMAGE],
        &["--num-queues", "4", "--logical-block-size", "4096"],
    );
    let config = connect(&daemon).config();
    assert_eq!(config.capacity.to_native(), (IMAGE / 512) as u64);
    assert_eq!(config.num_queues.to_native(), 4);
    assert_eq!(config.blk_size.to_native(), 4096);
    assert!((1..=1022).contains(&config.seg_max.to_native()), "seg_max");
    assert_eq!(config.writeback, 1, "a page-cached file is write-back");
    assert!(config.max_discard_sectors.to_native() > 0 && config.max_discard_seg.to_native() > 0);
    assert_eq!(
        config.discard_sector_alignment.to_native() % 8,
        0,
        "discards are aligned to blocks"
    );
    assert!(config.max_write_zeroes_sectors.to_native() > 0 && config.max_write_zeroes_seg.to_native() > 0);
}

#[test]
fn segment_limit_follows_ring_size_without_indirect_tables() {
    let daemon = Daemon::start(&vec![0; IMAGE], &[]);
    for (features, expected) in [(0, 14), (1 << 28, 126)] {
        let mut client = Client::new(daemon.connect());
        client.negotiate(VERSION_1 | features).expect("negotiate");
        assert_eq!(client.config(12, 4).expect("seg_max"), 126_u32.to_le_bytes());
        assert_eq!(client.vring_state(msg::SET_VRING_NUM, 0, 16), Answer::Ack);
        let seg_max = client.config(12, 4).expect("seg_max");
        assert_eq!(seg_max, u32::to_le_bytes(expected), "{features:#x}");
    }
}

#[test]
fn any_part_of_configuration_space_is_readable() {
    let daemon = Daemon::start(&vec![0; IMAGE], &[]);
    let mut vm = Vm::connect(&daemon, 0);
    let whole = vm.client.config(0, 60).expect("60 bytes");
    assert_eq!(whole.len(), 60);
    for (offset, len) in [(0, 8), (8, 4), (20, 4), (32, 1), (34, 2), (36, 24), (59, 1)] {
        let part = vm.client.config(offset, len).expect("a part");
        let start = usize::try_from(offset).expect("small");
        assert_eq!(part, whole[start..start + part.len()], "{len} bytes at {offset}");
        assert_eq!(part.len(), usize::try_from(len).expect("small"));
    }
}

#[test]
fn unused_bytes_of_the_configuration_space_are_zero() {
    let daemon = Daemon::start(&vec![0; IMAGE], &[]);
    let config = Vm::connect(&daemon, 0).client.config(0, 60).expect("60 bytes");
    // `unused0` after `writeback`, `unused1` after `write_zeroes_may_unmap`, geometry and size_max.
    let unused = [&config[8..12], &config[16..20], &config[33..34], &config[57..60]].concat();
    assert_eq!(unused, vec![0; 12]);
}

#[test]
fn only_the_write_cache_mode_is_writable() {
    let daemon = Daemon::start(&vec![0; IMAGE], &[]);
    let mut vm = Vm::connect(&daemon, 0);
    let before = vm.client.config(0, 60).expect("60 bytes");
    for (offset, len) in [(0, 8), (0, 60), (31, 2), (32, 2), (34, 2), (56, 1)] {
        let answer = vm.client.set_config(offset, &vec![0; len]);
        assert_eq!(answer, Answer::Nak, "{len} bytes at {offset}");
    }
    assert_eq!(vm.client.config(0, 60).expect("60 bytes"), before);
    assert_eq!(vm.client.set_config(32, &[0]), Answer::Ack);
    let after = vm.client.config(0, 60).expect("60 bytes");
    assert_eq!(
        (after[32], &after[..32], &after[33..]),
        (0, &before[..32], &before[33..])
    );
}

#[test]
fn the_serial_number_is_padded_with_zeroes() {
    for (serial, expected) in [
        ("abc", b"abc\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0"),
        ("12345678901234567890", b"12345678901234567890"),
    ] {
        let daemon = Daemon::start(&vec![0; IMAGE], &["--serial", serial]);
        let mut vm = Vm::start(&daemon, 1);
        vm.poke(HEADER, &header(8, 0));
        let answer = vm.request(
            0,
            &[readable(HEADER, 16), writable(DATA, 20), writable(STATUS, 1)],
        );
        assert_eq!(answer, Some((0, 21)));
        assert_eq!(vm.peek(DATA, 20), expected);
        assert_eq!(vm.peek(DATA + 20, 1), [FILL], "more than 20 bytes were written");
    }
}

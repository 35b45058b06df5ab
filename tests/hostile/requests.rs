//! Requests that a disk must refuse, and the exact answers.

use testkit::target::serve;
use testkit::vm::{DATA, FILL, HEADER, SECTOR, SEGMENTS, STATUS, Vm, header, readable, writable};

const OK: u8 = 0;
const IOERR: u8 = 1;
const UNSUPP: u8 = 2;

const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;
const SECURE_ERASE: u32 = 14;

const SECTORS: u64 = 64;

fn image() -> Vec<u8> {
    (0..SECTORS)
        .flat_map(|sector| [sector.to_le_bytes()[0] | 0x80; SECTOR])
        .collect()
}

fn sector(number: usize) -> Vec<u8> {
    image()[number * SECTOR..(number + 1) * SECTOR].to_vec()
}

/// Sends one request of `kind` with `len` bytes of data that the device reads or writes.
fn transfer(vm: &mut Vm, kind: u32, sector: u64, len: u32) -> Option<(u8, u32)> {
    vm.poke(HEADER, &header(kind, sector));
    vm.poke(DATA, &vec![FILL; usize::try_from(len).expect("small") + 1]);
    let data = if kind == OUT {
        readable(DATA, len)
    } else {
        writable(DATA, len)
    };
    vm.request(0, &[readable(HEADER, 16), data, writable(STATUS, 1)])
}

/// Sends a DISCARD or WRITE_ZEROES with these bytes as its segments.
fn with_segments(vm: &mut Vm, kind: u32, segments: &[u8]) -> Option<(u8, u32)> {
    vm.poke(HEADER, &header(kind, 0));
    vm.poke(SEGMENTS, segments);
    let len = u32::try_from(segments.len()).expect("small");
    vm.request(
        0,
        &[readable(HEADER, 16), readable(SEGMENTS, len), writable(STATUS, 1)],
    )
}

fn segment(sector: u64, sectors: u32, flags: u32) -> Vec<u8> {
    [
        &sector.to_le_bytes()[..],
        &sectors.to_le_bytes(),
        &flags.to_le_bytes(),
    ]
    .concat()
}

#[test]
fn transfers_outside_the_disk_fail_without_effect() {
    let daemon = serve(&image(), &[]);
    let mut vm = Vm::start(&daemon, 1);
    for (name, sector, len) in [
        ("just behind the end", SECTORS, 512),
        ("over the end", SECTORS - 1, 1024),
        ("far behind the end", 1 << 40, 512),
        ("a sector that overflows in bytes", u64::MAX / 512 + 1, 512),
        ("a sector that wraps to zero", 1 << 55, 512),
        ("an end that overflows", u64::MAX / 512, 512),
        ("the last sector there is", u64::MAX, 512),
        ("less than a sector", 0, 511),
        ("more than a sector", 0, 513),
        ("one byte", 0, 1),
    ] {
        for kind in [IN, OUT] {
            assert_eq!(
                transfer(&mut vm, kind, sector, len),
                Some((IOERR, 1)),
                "{name}, type {kind}"
            );
            let len = usize::try_from(len).expect("small");
            assert_eq!(
                vm.peek(DATA, len),
                vec![FILL; len],
                "{name}: data was written to the guest"
            );
        }
    }
    assert_eq!(transfer(&mut vm, IN, SECTORS - 1, 512), Some((OK, 513)));
    assert_eq!(vm.peek(DATA, SECTOR), sector(63));
    assert!(daemon.image() == image(), "the image changed");
}

#[test]
fn reads_never_expose_another_requests_data() {
    let daemon = serve(&image(), &[]);
    let mut vm = Vm::start(&daemon, 1);
    assert_eq!(transfer(&mut vm, IN, 7, 512), Some((OK, 513)));
    assert_eq!(transfer(&mut vm, IN, SECTORS, 512), Some((IOERR, 1)));
    assert_eq!(vm.peek(DATA, SECTOR), [FILL; SECTOR]);
}

#[test]
fn a_read_only_disk_refuses_all_writes() {
    let daemon = serve(&image(), &["--read-only"]);
    let mut vm = Vm::start(&daemon, 1);
    assert_eq!(transfer(&mut vm, OUT, 0, 512), Some((IOERR, 1)));
    assert_eq!(
        with_segments(&mut vm, DISCARD, &segment(0, 8, 0)),
        Some((IOERR, 1))
    );
    assert_eq!(
        with_segments(&mut vm, WRITE_ZEROES, &segment(0, 8, 0)),
        Some((IOERR, 1))
    );
    assert_eq!(
        with_segments(&mut vm, WRITE_ZEROES, &segment(0, 8, 1)),
        Some((IOERR, 1))
    );
    assert_eq!(transfer(&mut vm, IN, 0, 512), Some((OK, 513)));
    assert!(daemon.image() == image(), "the image changed");
}

#[test]
fn unknown_requests_are_unsupported() {
    let daemon = serve(&image(), &[]);
    let mut vm = Vm::start(&daemon, 1);
    for kind in [2, 3, 5, 7, 9, 10, 12, SECURE_ERASE, 15, 16, 99, 1 << 31, u32::MAX] {
        vm.poke(HEADER, &header(kind, 0));
        vm.poke(DATA, &[FILL; SECTOR]);
        let chain = [readable(HEADER, 16), writable(DATA, 512), writable(STATUS, 1)];
        assert_eq!(vm.request(0, &chain), Some((UNSUPP, 1)), "type {kind}");
        assert_eq!(vm.peek(DATA, SECTOR), [FILL; SECTOR], "type {kind} wrote data");
    }
}

#[test]
fn segments_are_checked_one_by_one() {
    let daemon = serve(&image(), &[]);
    let mut vm = Vm::start(&daemon, 1);
    let many = segment(0, 1, 0).repeat(4096);
    let cases: Vec<(&str, u32, Vec<u8>, u8)> = vec![
        ("a discard that unmaps", DISCARD, segment(0, 8, 1), UNSUPP),
        (
            "a discard with an unknown flag",
            DISCARD,
            segment(0, 8, 2),
            UNSUPP,
        ),
        (
            "zeroes with an unknown flag",
            WRITE_ZEROES,
            segment(0, 8, 2),
            UNSUPP,
        ),
        (
            "zeroes with all flags",
            WRITE_ZEROES,
            segment(0, 8, u32::MAX),
            UNSUPP,
        ),
        ("a discard behind the end", DISCARD, segment(SECTORS, 1, 0), IOERR),
        (
            "a discard over the end",
            DISCARD,
            segment(SECTORS - 1, 2, 0),
            IOERR,
        ),
        (
            "zeroes over the end",
            WRITE_ZEROES,
            segment(SECTORS - 1, 2, 0),
            IOERR,
        ),
        ("a sector that overflows", DISCARD, segment(u64::MAX, 1, 0), IOERR),
        (
            "an end that overflows",
            WRITE_ZEROES,
            segment(u64::MAX - 1, u32::MAX, 0),
            IOERR,
        ),
        (
            "a length that wraps in 32 bits of bytes",
            DISCARD,
            segment(0, 1 << 23, 0),
            IOERR,
        ),
        (
            "zeroes whose length wraps",
            WRITE_ZEROES,
            segment(0, (1 << 23) + 1, 0),
            IOERR,
        ),
        (
            "as many sectors as can be",
            DISCARD,
            segment(0, u32::MAX, 0),
            IOERR,
        ),
        ("half a segment", DISCARD, segment(0, 1, 0)[..8].to_vec(), IOERR),
        (
            "a segment and a byte",
            WRITE_ZEROES,
            [segment(0, 1, 0), vec![0]].concat(),
            IOERR,
        ),
        ("too many discards", DISCARD, many.clone(), IOERR),
        ("too many zeroes", WRITE_ZEROES, many, IOERR),
        (
            "one bad after a good one",
            DISCARD,
            [segment(0, 1, 0), segment(SECTORS, 1, 0)].concat(),
            IOERR,
        ),
    ];
    for (name, kind, segments, status) in cases {
        assert_eq!(
            with_segments(&mut vm, kind, &segments),
            Some((status, 1)),
            "{name}"
        );
        assert!(daemon.image() == image(), "{name}: the image changed");
    }
}

#[test]
fn segments_may_be_spread_over_descriptors() {
    let mut daemon = serve(&image(), &[]);
    let mut vm = Vm::start(&daemon, 1);
    vm.poke(HEADER, &header(WRITE_ZEROES, 0));
    vm.poke(SEGMENTS, &segment(5, 1, 0));
    let parts = [readable(SEGMENTS, 7), readable(SEGMENTS + 7, 9)];
    let chain = [readable(HEADER, 16), parts[0], parts[1], writable(STATUS, 1)];
    assert_eq!(vm.request(0, &chain), Some((OK, 1)));
    daemon.terminate();
    let mut expected = image();
    expected[5 * SECTOR..6 * SECTOR].fill(0);
    assert!(daemon.image() == expected);
}

#[test]
fn write_zeroes_changes_its_range_only() {
    for flags in [0, 1] {
        let mut daemon = serve(&image(), &[]);
        let mut vm = Vm::start(&daemon, 1);
        assert_eq!(
            with_segments(&mut vm, WRITE_ZEROES, &segment(7, 20, flags)),
            Some((OK, 1))
        );
        daemon.terminate();
        let mut expected = image();
        expected[7 * SECTOR..27 * SECTOR].fill(0);
        assert!(daemon.image() == expected, "flags {flags}");
    }
}

#[test]
fn a_serial_number_never_exceeds_its_buffer() {
    let daemon = serve(&image(), &["--serial", "0123456789abcdefghij"]);
    let mut vm = Vm::start(&daemon, 1);
    for len in [1, 5, 19, 20, 21, 512] {
        vm.poke(HEADER, &header(GET_ID, 0));
        vm.poke(DATA, &[FILL; 513]);
        let chain = [readable(HEADER, 16), writable(DATA, len), writable(STATUS, 1)];
        let (status, used) = vm.request(0, &chain).expect("it can be answered");
        let written = usize::try_from(used - 1).expect("small");
        assert!(
            written <= 20 && used - 1 <= len,
            "{len}: {written} bytes are said to be written"
        );
        // A short buffer is filled, or the request is refused.
        assert!(
            status == OK || (status == IOERR && len < 20),
            "{len}: status {status}"
        );
        let serial = b"0123456789abcdefghij";
        assert_eq!(vm.peek(DATA, 513)[..written], serial[..written], "{len}");
        assert_eq!(
            vm.peek(DATA, 513)[written..],
            [FILL; 513][written..],
            "{len}: bytes behind it were written"
        );
    }
}

#[test]
fn a_request_with_half_a_header_fails() {
    let daemon = serve(&image(), &[]);
    let mut vm = Vm::start(&daemon, 1);
    vm.poke(HEADER, &header(FLUSH, 0));
    for len in [1, 8, 15] {
        let answer = vm.request(0, &[readable(HEADER, len), writable(STATUS, 1)]);
        assert_eq!(answer, Some((IOERR, 1)), "a header of {len} bytes");
    }
    assert_eq!(
        vm.request(0, &[writable(STATUS, 1)]),
        Some((IOERR, 1)),
        "no header"
    );
}

#[test]
fn data_in_the_wrong_direction_is_not_touched() {
    let daemon = serve(&image(), &[]);
    let mut vm = Vm::start(&daemon, 1);
    // A write whose data is only writable for the device, and a read whose data is only readable.
    for (kind, data) in [(OUT, writable(DATA, 512)), (IN, readable(DATA, 512))] {
        vm.poke(HEADER, &header(kind, 4));
        vm.poke(DATA, &[FILL; SECTOR]);
        let (status, used) = vm
            .request(0, &[readable(HEADER, 16), data, writable(STATUS, 1)])
            .expect("it can be answered");
        assert!(status <= UNSUPP && used == 1, "type {kind}: {status} {used}");
        assert_eq!(vm.peek(DATA, SECTOR), [FILL; SECTOR], "type {kind}");
    }
    assert!(daemon.image() == image(), "the image changed");
}

#[test]
fn a_flush_ignores_what_comes_with_it() {
    let daemon = serve(&image(), &[]);
    let mut vm = Vm::start(&daemon, 1);
    assert_eq!(transfer(&mut vm, FLUSH, u64::MAX, 512), Some((OK, 1)));
    assert_eq!(vm.peek(DATA, SECTOR), [FILL; SECTOR]);
}

#[test]
fn a_large_block_size_binds_every_request() {
    let daemon = serve(&image(), &["--logical-block-size", "4096"]);
    let mut vm = Vm::start(&daemon, 1);
    assert_eq!(transfer(&mut vm, IN, 8, 4096), Some((OK, 4097)));
    // A sector is 512 bytes whatever the block size. A request that splits a block may be served or refused.
    for (sector, len) in [(1, 512), (8, 512), (1, 4096)] {
        let answer = transfer(&mut vm, IN, sector, len);
        assert!(
            answer == Some((OK, len + 1)) || answer == Some((IOERR, 1)),
            "{sector} {len}: {answer:?}"
        );
    }
    assert!(daemon.image() == image());
}

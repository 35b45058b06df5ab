//! Requests from well-formed, odd and broken chains.

use super::*;
use crate::blk::config::{MAX_DISCARD_SECTORS, MAX_RANGES, MAX_WRITE_ZEROES_SECTORS};
use crate::io::IoVecs;

const RULES: Rules<'static> = Rules {
    start: 0,
    capacity: 1 << 20,
    block_size: 512,
    read_only: false,
    inactive: false,
    discard: true,
    write_zeroes: true,
    unmap: true,
    write_through: false,
    serial: b"serial\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
};

fn header(request_type: u32, sector: u64) -> Vec<u8> {
    let mut bytes = request_type.to_le_bytes().to_vec();
    bytes.extend([0xee; 4]);
    bytes.extend(sector.to_le_bytes());
    bytes
}

fn segment(sector: u64, sectors: u32, flags: u32) -> Vec<u8> {
    [
        &sector.to_le_bytes()[..],
        &sectors.to_le_bytes(),
        &flags.to_le_bytes(),
    ]
    .concat()
}

/// A request in these buffers, after the walk of its chain and without the status byte.
struct Case {
    readable: Vec<Vec<u8>>,
    writable: Vec<Vec<u8>>,
    request: Box<IoRequest>,
}

impl Case {
    fn new(readable: &[&[u8]], writable: &[usize]) -> Self {
        Self {
            readable: readable.iter().map(|r| r.to_vec()).collect(),
            writable: writable.iter().map(|&len| vec![0; len]).collect(),
            request: IoRequest::new(),
        }
    }

    fn parse(&mut self, rules: &Rules<'_>) -> Action {
        let mut iov = IoVecs::new();
        for buf in self.readable.iter_mut().chain(&mut self.writable) {
            // SAFETY: the buffers live as long as the request, and are not touched while it is parsed.
            unsafe { iov.push(buf.as_mut_ptr(), buf.len()) };
        }
        let bytes = |bufs: &[Vec<u8>]| bufs.iter().map(|b| b.len() as u64).sum();
        let chain = Chain {
            readable_ranges: self.readable.iter().filter(|b| !b.is_empty()).count(),
            readable: bytes(&self.readable),
            writable: bytes(&self.writable) + 1,
            fault: false,
            last_writable_mapped: true,
        };
        self.request.iov = iov;
        parse(&chain, &mut self.request, rules)
    }
}

fn parse_case(readable: &[&[u8]], writable: &[usize]) -> (Action, Box<IoRequest>) {
    let mut case = Case::new(readable, writable);
    (case.parse(&RULES), case.request)
}

#[test]
fn a_read_fills_all_bytes_before_the_status() {
    let (action, request) = parse_case(&[&header(0, 4)], &[512, 1024]);
    assert_eq!(
        action,
        Action::Submit {
            written: 1536,
            bytes: 1536
        }
    );
    assert_eq!(
        (request.op, request.offset, request.iov.len()),
        (IoOp::Read, 2048, 1536)
    );
}

#[test]
fn header_and_data_may_be_split_anywhere() {
    let whole = [header(1, 2), vec![7; 512]].concat();
    for at in 1..whole.len() {
        let (action, request) = parse_case(&[&whole[..at], &whole[at..]], &[]);
        assert_eq!(
            action,
            Action::Submit {
                written: 0,
                bytes: 512
            },
            "split at {at}"
        );
        let expected = (IoOp::Write { durable: false }, 1024, 512);
        assert_eq!(
            (request.op, request.offset, request.iov.len()),
            expected,
            "split at {at}"
        );
    }
}

#[test]
fn ranges_of_the_wrong_direction_are_ignored() {
    let (action, request) = parse_case(&[&header(0, 0), &[0; 512]], &[512]);
    assert_eq!(
        (action, request.iov.len()),
        (
            Action::Submit {
                written: 512,
                bytes: 512
            },
            512
        )
    );
    let (action, request) = parse_case(&[&header(1, 0), &[0; 512]], &[512]);
    assert_eq!(
        (action, request.iov.len()),
        (
            Action::Submit {
                written: 0,
                bytes: 512
            },
            512
        )
    );
}

#[test]
fn transfers_past_the_end_or_within_sectors_fail() {
    let end = (1u64 << 20) / 512;
    for (sector, len) in [
        (end, 512),
        (end - 1, 1024),
        (u64::MAX, 512),
        (u64::MAX / 512, 512),
        (0, 511),
        (0, 1),
    ] {
        let (read, _) = parse_case(&[&header(0, sector)], &[len]);
        let (write, _) = parse_case(&[&header(1, sector), &vec![0; len]], &[]);
        assert_eq!(
            [read, write],
            [Operation::Read, Operation::Write].map(Action::Invalid),
            "{sector} {len}"
        );
    }
    let (last, _) = parse_case(&[&header(0, end - 1)], &[512]);
    assert_eq!(
        last,
        Action::Submit {
            written: 512,
            bytes: 512
        }
    );
}

#[test]
fn offsets_and_lengths_are_multiples_of_the_block_size() {
    let rules = Rules {
        block_size: 4096,
        ..RULES
    };
    for (sector, len, ok) in [(8, 4096, true), (1, 4096, false), (8, 512, false)] {
        let action = Case::new(&[&header(0, sector)], &[len]).parse(&rules);
        assert_eq!(action != Action::Invalid(Operation::Read), ok, "{sector} {len}");
    }
}

#[test]
fn a_read_only_disk_refuses_writes() {
    let rules = Rules {
        read_only: true,
        ..RULES
    };
    for request_type in [1, 11, 13] {
        let action = Case::new(&[&header(request_type, 0), &[0; 512]], &[]).parse(&rules);
        assert_eq!(action, Action::Answer(Status::IoErr, 0), "type {request_type}");
    }
}

#[test]
fn a_part_of_a_node_is_addressed_from_its_start() {
    let rules = Rules {
        start: 1 << 20,
        capacity: 4096,
        ..RULES
    };
    let mut case = Case::new(&[&header(0, 7)], &[512]);
    assert!(matches!(case.parse(&rules), Action::Submit { .. }));
    assert_eq!(case.request.offset, (1 << 20) + 7 * 512);
    let mut case = Case::new(&[&header(13, 0), &segment(1, 7, 0)], &[]);
    assert!(matches!(case.parse(&rules), Action::Submit { .. }));
    assert_eq!(case.request.ranges[0].offset, (1 << 20) + 512);
    for (request_type, data, operation) in [
        (0, vec![], Operation::Read),
        (1, vec![0; 512], Operation::Write),
        (13, segment(8, 1, 0), Operation::Unmap),
    ] {
        let action = Case::new(&[&header(request_type, 8), &data], &[512]).parse(&rules);
        assert_eq!(action, Action::Invalid(operation), "type {request_type}");
    }
}

#[test]
fn an_inactive_disk_only_reads() {
    let rules = Rules {
        read_only: true,
        inactive: true,
        ..RULES
    };
    for request_type in [1, 4, 11, 13] {
        let action = Case::new(&[&header(request_type, 0), &[0; 512]], &[]).parse(&rules);
        assert_eq!(action, Action::Answer(Status::IoErr, 0), "type {request_type}");
    }
    let action = Case::new(&[&header(0, 0)], &[512]).parse(&rules);
    assert!(matches!(action, Action::Submit { .. }));
}

#[test]
fn without_unmap_nothing_is_discarded() {
    let rules = Rules {
        unmap: false,
        ..RULES
    };
    for (data, expected) in [
        (segment(0, 8, 0), Action::Answer(Status::Ok, 0)),
        (segment(2047, 2, 0), Action::Invalid(Operation::Unmap)),
    ] {
        let action = Case::new(&[&header(11, 0), &data], &[]).parse(&rules);
        assert_eq!(action, expected);
    }
    let mut case = Case::new(&[&header(13, 0), &segment(0, 8, 1)], &[]);
    case.parse(&rules);
    assert!(!case.request.ranges[0].unmap);
}

#[test]
fn unknown_and_unoffered_types_are_unsupported() {
    let rules = Rules {
        discard: false,
        write_zeroes: false,
        ..RULES
    };
    for request_type in [2, 3, 5, 7, 9, 10, 11, 12, 13, 14, 15, 0x8000_0000, u32::MAX] {
        let action = Case::new(&[&header(request_type, 0), &segment(0, 1, 0)], &[]).parse(&rules);
        assert_eq!(action, Action::Answer(Status::Unsupp, 0), "type {request_type}");
    }
}

#[test]
fn a_short_header_fails() {
    assert_eq!(
        parse_case(&[&header(4, 0)[..15]], &[]).0,
        Action::Answer(Status::IoErr, 0)
    );
}

#[test]
fn get_id_writes_at_most_twenty_bytes() {
    for (len, written) in [(0, 0), (5, 5), (20, 20), (64, 20)] {
        let mut case = Case::new(&[&header(8, 0)], &[len]);
        assert_eq!(case.parse(&RULES), Action::Answer(Status::Ok, written));
        let n = written as usize;
        assert_eq!(case.writable[0][..n], RULES.serial[..n]);
        assert!(case.writable[0][n..].iter().all(|&b| b == 0));
    }
}

#[test]
fn discard_and_write_zeroes_check_every_segment() {
    let io_err = Action::Answer(Status::IoErr, 0);
    let unsupp = Action::Answer(Status::Unsupp, 0);
    let invalid = Action::Invalid(Operation::Unmap);
    let good = segment(8, 8, 0);
    let submit = |bytes| Action::Submit { written: 0, bytes };
    for (request_type, data, expected) in [
        (11, good.clone(), submit(4096)),
        (13, segment(0, 8, 1), submit(4096)),
        (13, [good.clone(), segment(0, 1, 1)].concat(), submit(4608)),
        (11, segment(0, 8, 1), unsupp),
        (11, segment(0, 8, 2), unsupp),
        (13, segment(0, 8, 3), unsupp),
        (11, vec![], io_err),
        (11, good[..15].to_vec(), io_err),
        (11, good.repeat(MAX_RANGES as usize + 1), io_err),
        (11, segment(2047, 2, 0), invalid),
        (11, segment(u64::MAX, 1, 0), invalid),
        (11, segment(0, MAX_DISCARD_SECTORS + 1, 0), io_err),
        (11, segment(0, 1 << 23, 0), io_err),
        (13, segment(0, MAX_WRITE_ZEROES_SECTORS + 1, 0), io_err),
        (13, [good.clone(), segment(0, u32::MAX, 0)].concat(), io_err),
        // An unknown flag outweighs errors in other segments.
        (11, [segment(2047, 2, 0), segment(0, 1, 1)].concat(), unsupp),
        (
            13,
            [segment(u64::MAX, 1, 0), good.clone(), segment(0, 1, 2)].concat(),
            unsupp,
        ),
    ] {
        let (action, _) = parse_case(&[&header(request_type, 0), &data], &[]);
        assert_eq!(action, expected, "type {request_type} {data:?}");
    }
}

#[test]
fn write_through_makes_writes_durable() {
    let rules = Rules {
        write_through: true,
        ..RULES
    };
    let mut case = Case::new(&[&header(1, 0), &[0; 512]], &[]);
    case.parse(&rules);
    assert_eq!(case.request.op, IoOp::Write { durable: true });
}

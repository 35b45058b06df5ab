//! Compares our reading of a descriptor chain with the specification's: buffers, request, answer.
#![no_main]

use std::sync::Arc;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use vhost_user_blk::blk::config::{MAX_DISCARD_SECTORS, MAX_RANGES, MAX_WRITE_ZEROES_SECTORS};
use vhost_user_blk::blk::request::{Action, Rules, Status, parse};
use vhost_user_blk::io::IoVecs;
use vhost_user_blk::io::{IoOp, IoRequest};
use vhost_user_blk::memory::{GuestMemory, MemoryView};
use vhost_user_blk::virtqueue::{Chain, ChainError, RingAddresses, RingFeatures, SplitRing};
use vhost_user_blk_fuzz::chains::{AVAIL, DESC, Request, USED};
use vhost_user_blk_fuzz::guest::{APART, Guest, HIGH, Image, NEXT_TO_IT, RINGS};
use vhost_user_blk_fuzz::spec::{self, Broken, Buffers, Device, Meaning, Operation};

#[derive(Arbitrary, Debug)]
struct Input {
    size: u8,
    indirect: bool,
    large_blocks: bool,
    read_only: bool,
    discard: bool,
    write_zeroes: bool,
    capacity: u16,
    requests: Vec<Request>,
}

const SERIAL: [u8; 20] = *b"0123456789abcdefghij";

fuzz_target!(|input: Input| {
    let device = Device {
        table: DESC,
        queue_size: 1 << (input.size % 6),
        indirect: input.indirect,
        capacity: u64::from(input.capacity) * 512,
        block_size: if input.large_blocks { 4096 } else { 512 },
        read_only: input.read_only,
        discard: input.discard,
        write_zeroes: input.write_zeroes,
        serial: SERIAL,
        max_discard_sectors: MAX_DISCARD_SECTORS.into(),
        max_write_zeroes_sectors: MAX_WRITE_ZEROES_SECTORS.into(),
        max_segments: MAX_RANGES as usize,
    };
    let guest = Guest::new();
    let memory = Arc::new(guest.table());
    let ring = ring(&memory, &device);
    let view = MemoryView::new(Arc::clone(&memory));
    for request in input.requests.iter().take(8) {
        let head = request.store(device.queue_size, &mut |at, bytes| guest.write(at, bytes));
        let image = guest.image();
        let mut found = IoRequest::new();
        let chain = Chain::walk(&ring, &view, head, &mut found.iov);
        check_removed(&ring, &memory, head, chain);
        match (chain, spec::walk(&device, &image, head)) {
            (Err(error), Err(expected)) => assert_eq!(kind(error), expected, "{error}"),
            (Ok(chain), Ok(expected)) => check(&device, &guest, image, &view, (chain, found), expected),
            (chain, expected) => panic!("{chain:?} instead of {expected:?}"),
        }
    }
});

fn ring(memory: &GuestMemory, device: &Device) -> SplitRing {
    let addresses = RingAddresses {
        desc: RINGS.user + DESC,
        avail: RINGS.user + AVAIL,
        used: RINGS.user + USED,
    };
    let features = RingFeatures {
        event_idx: false,
        indirect: device.indirect,
    };
    SplitRing::new(memory, addresses, device.queue_size.into(), 0, features).expect("a ring like any other")
}

fn kind(error: ChainError) -> Broken {
    match error {
        ChainError::TooLong(_) => Broken::TooLong,
        ChainError::BadNext { .. } => Broken::BadNext,
        ChainError::ReadableAfterWritable => Broken::ReadableAfterWritable,
        ChainError::UnexpectedIndirect => Broken::UnexpectedIndirect,
        ChainError::BadIndirectLength(_) => Broken::BadIndirectLength,
        ChainError::IndirectNotMapped(_) => Broken::IndirectNotMapped,
        ChainError::Removed(addr) => panic!("nothing was removed, also not {addr:#x}"),
    }
}

/// Checks that without one of the regions, a chain is unchanged or waits for an address in that region.
fn check_removed(ring: &SplitRing, memory: &GuestMemory, head: u16, whole: Result<Chain, ChainError>) {
    for region in [NEXT_TO_IT, APART, HIGH] {
        let memory = memory.without_region(region.guest, region.user, region.len);
        let view = MemoryView::new(Arc::new(memory.expect("the region is there")));
        let mut iov = IoVecs::new();
        match Chain::walk(ring, &view, head, &mut iov) {
            Err(ChainError::Removed(addr)) => assert!(addr.wrapping_sub(region.guest) < region.len),
            chain => assert_eq!(chain, whole),
        }
    }
}

/// Returns the guest address of each byte in a list.
fn bytes(view: &MemoryView, iov: &IoVecs) -> Vec<u64> {
    let address = |at: *const u8| view.guest_address(at).expect("lists name guest memory only");
    let range = |v: &libc::iovec| {
        let base = v.iov_base.cast::<u8>().cast_const();
        (0..v.iov_len).map(move |i| base.wrapping_add(i))
    };
    iov.as_slice().iter().flat_map(range).map(address).collect()
}

fn check(
    device: &Device,
    guest: &Guest,
    image: Image,
    view: &MemoryView,
    found: (Chain, Box<IoRequest>),
    expected: Buffers,
) {
    let (chain, mut request) = found;
    let all = [&expected.readable[..], &expected.writable].concat();
    assert_eq!(bytes(view, &request.iov), all, "the bytes of the chain");
    assert_eq!(chain.fault, expected.fault);
    assert_eq!(chain.last_writable_mapped, expected.last_is_mapped);
    if !expected.fault {
        let lengths = (expected.readable.len() as u64, expected.writable.len() as u64);
        assert_eq!((chain.readable, chain.writable), lengths);
    }
    let Ok(meaning) = spec::understand(device, &image, expected) else {
        assert!(!chain.last_writable_mapped);
        return;
    };
    let status = request.iov.pop_last_byte().and_then(|at| view.guest_address(at));
    assert_eq!(status, Some(meaning.status_at));
    let action = parse(&chain, &mut request, &rules(device));
    check_action(action, &bytes(view, &request.iov), &request, &meaning);
    // Of all actions only GET_ID writes to the guest's memory before the answer.
    let mut expected = image;
    if let Operation::Answer { data, .. } = &meaning.operation {
        data.iter().for_each(|&(at, byte)| expected.put(at, byte));
    }
    guest.image().assert_is(&expected, &[]);
}

fn rules(device: &Device) -> Rules<'_> {
    Rules {
        start: 0,
        capacity: device.capacity,
        block_size: device.block_size as u32,
        read_only: device.read_only,
        inactive: false,
        discard: device.discard,
        write_zeroes: device.write_zeroes,
        unmap: true,
        write_through: false,
        serial: &device.serial,
    }
}

fn check_action(action: Action, bytes: &[u64], request: &IoRequest, meaning: &Meaning) {
    let ranges = |with_unmap: bool| {
        let range = move |r: &vhost_user_blk::io::IoRange| (r.offset, r.len, with_unmap && r.unmap);
        request.ranges.iter().map(range).collect::<Vec<_>>()
    };
    let submit = |written: usize, bytes: u64| Action::Submit {
        written: written as u32,
        bytes,
    };
    match &meaning.operation {
        Operation::Read { offset, into } => {
            assert_eq!((request.op, request.offset), (IoOp::Read, *offset));
            assert_eq!(bytes, into);
            assert_eq!(action, submit(into.len(), into.len() as u64));
        }
        Operation::Write { offset, from } => {
            assert_eq!(
                (request.op, request.offset),
                (IoOp::Write { durable: false }, *offset)
            );
            assert_eq!(bytes, from);
            assert_eq!(action, submit(0, from.len() as u64));
        }
        Operation::Flush => {
            assert_eq!((request.op, action), (IoOp::Flush, submit(0, 0)));
        }
        Operation::Discard(expected) => {
            let expected: Vec<_> = expected
                .iter()
                .map(|&(offset, len)| (offset, len, false))
                .collect();
            assert_eq!((request.op, ranges(false)), (IoOp::Discard, expected));
            assert_eq!(action, submit(0, ranges(false).iter().map(|r| r.1).sum()));
        }
        Operation::WriteZeroes(expected) => {
            assert_eq!(request.op, IoOp::WriteZeroes { durable: false });
            assert_eq!(&ranges(true), expected);
            assert_eq!(action, submit(0, expected.iter().map(|r| r.1).sum()));
        }
        Operation::Answer { status, data } => {
            let (found, written) = match action {
                Action::Answer(found, written) => (found, written),
                Action::Invalid(_) => (Status::IoErr, 0),
                Action::Submit { .. } => panic!("{action:?} instead of an answer of {status}"),
            };
            assert_eq!((found.byte(), written as usize), (*status, data.len()));
        }
    }
}

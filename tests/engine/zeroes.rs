//! Writes of zeroes that are detected.

use vhost_user_blk::aio::AioContext;
use vhost_user_blk::engine::{Choice, DetectZeroes};
use vhost_user_blk::io::IoOp;

use crate::disk::{Disk, for_each};
use crate::support::{Buffers, Image, On};

const KIB: u64 = 1 << 10;
const WRITE: IoOp = IoOp::Write { durable: false };

/// Writes 64 KiB of zeroes in the middle of a full image. Returns how much of the image is allocated then.
fn allocated_after(zeroes: DetectZeroes) -> u64 {
    let (ctx, image) = (AioContext::new().unwrap(), Image::filled(On::Disk, 256 * KIB, 7));
    let disk = Disk::detecting(&ctx, image.open(), Choice::Threads, zeroes).unwrap();
    let mut buffers = Buffers::new(0, &[16 << 10; 4]);
    disk.submit_detected(vec![disk.request(0, WRITE, 64 * KIB, &mut buffers)]);
    let done = disk.wait(1);
    assert!(done[0].result.is_ok(), "{done:?}");
    let mut expected = vec![7; 256 << 10];
    expected[64 << 10..128 << 10].fill(0);
    assert!(image.contents() == expected);
    image.allocated()
}

#[test]
fn zeroes_free_space_if_that_is_allowed() {
    assert_eq!(allocated_after(DetectZeroes::Unmap), 192 * KIB);
    assert_eq!(allocated_after(DetectZeroes::On), 256 * KIB);
    assert_eq!(allocated_after(DetectZeroes::Off), 256 * KIB);
}

#[test]
fn only_writes_of_zeroes_are_converted() {
    for_each(256 * KIB, |case, _, disk| {
        let mut zeroes = Buffers::new(0, &[512, 512]);
        let mut data = Buffers::new(0, &[512, 512]);
        data.bytes_mut()[1023] = 1;
        let mut into = Buffers::new(0, &[1024]);
        let durable = IoOp::Write { durable: true };
        disk.submit_detected(vec![
            disk.request(0, WRITE, 0, &mut zeroes),
            disk.request(1, durable, 4096, &mut zeroes),
            disk.request(2, WRITE, 8192, &mut data),
            disk.request(3, IoOp::Read, 12288, &mut into),
        ]);
        let ops: Vec<IoOp> = disk.wait(4).iter().map(|request| request.op).collect();
        let converted = |durable| match case.stores() {
            true => IoOp::ZeroedWrite { durable, unmap: true },
            false => IoOp::Write { durable },
        };
        assert_eq!(
            ops,
            [converted(false), converted(true), WRITE, IoOp::Read],
            "{case:?}"
        );
    });
}

#[test]
fn adjacent_zeroes_are_one_request() {
    for_each(256 * KIB, |case, image, disk| {
        let mut buffers: Vec<Buffers> = (0..8).map(|_| Buffers::new(0, &[4096])).collect();
        let requests = (0u16..).zip(&mut buffers);
        let requests = requests.map(|(n, buffers)| disk.request(n, WRITE, u64::from(n) * 4096, buffers));
        let merged = disk.submit_detected(requests.collect());
        assert_eq!(merged, if case.stores() { 7 } else { 0 }, "{case:?}");
        assert!(
            disk.wait(8).iter().all(|request| request.result.is_ok()),
            "{case:?}"
        );
        assert!(
            !case.stores() || image.contents()[..32 << 10] == [0; 32 << 10],
            "{case:?}"
        );
    });
}

//! Random requests against a plain `Vec<u8>`.

use proptest::prelude::*;
use proptest::test_runner::{TestCaseResult, TestRunner};
use vhost_user_blk::storage::RawFile;

use crate::support::{Buffers, Image, On, read};

/// Bytes of the disk: more than one bounce buffer and more than one buffer of zeroes.
pub(crate) const SIZE: u64 = 3 << 20;

/// A range of random numbers. [`Self::on`] makes it fit the disk.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Range {
    offset: u64,
    len: u64,
}

/// The memory layout of a request's buffers.
#[derive(Clone, Debug)]
pub(crate) struct Shape {
    skew: usize,
    cuts: Vec<usize>,
}

#[derive(Clone, Debug)]
pub(crate) enum Op {
    Read(Range, Shape),
    Write {
        range: Range,
        shape: Shape,
        seed: u8,
        durable: bool,
    },
    Discard(Range),
    WriteZeroes {
        range: Range,
        may_unmap: bool,
    },
    Flush,
}

fn range() -> impl Strategy<Value = Range> {
    let len = prop_oneof![5 => 0..20_000u64, 1 => 0..SIZE];
    (0..SIZE, len).prop_map(|(offset, len)| Range { offset, len })
}

fn shape() -> impl Strategy<Value = Shape> {
    let skew = prop_oneof![3 => Just(0), 1 => Just(512), 1 => Just(4), 1 => 1..4096usize];
    let cuts = prop::collection::vec(prop_oneof![Just(512), Just(4096), 1..9000usize], 0..12);
    (skew, cuts).prop_map(|(skew, cuts)| Shape { skew, cuts })
}

pub(crate) fn ops() -> impl Strategy<Value = Vec<Op>> {
    let op = prop_oneof![
        4 => (range(), shape()).prop_map(|(range, shape)| Op::Read(range, shape)),
        6 => (range(), shape(), any::<u8>(), prop::bool::weighted(0.1))
            .prop_map(|(range, shape, seed, durable)| Op::Write { range, shape, seed, durable }),
        2 => range().prop_map(Op::Discard),
        2 => (range(), any::<bool>()).prop_map(|(range, may_unmap)| Op::WriteZeroes { range, may_unmap }),
        1 => Just(Op::Flush),
    ];
    prop::collection::vec(op, 1..24)
}

impl Range {
    /// Returns offset and length of a range on the disk, in multiples of `unit`.
    fn on(self, size: u64, unit: u64) -> (u64, u64) {
        let offset = self.offset % size / unit * unit;
        (offset, self.len.min(size - offset) / unit * unit)
    }
}

impl Shape {
    fn buffers(&self, len: u64) -> Buffers {
        let mut left = usize::try_from(len).unwrap();
        let mut lens = Vec::new();
        for cut in self.cuts.iter().copied().chain([usize::MAX]) {
            lens.push(cut.min(left));
            left -= cut.min(left);
        }
        Buffers::new(self.skew, &lens)
    }
}

fn slice(model: &mut [u8], offset: u64, len: u64) -> &mut [u8] {
    &mut model[usize::try_from(offset).unwrap()..][..usize::try_from(len).unwrap()]
}

/// Executes `op` on the storage and the model. With `discard_zeroes`, a discarded range must read as zeroes.
fn step(storage: &RawFile, model: &mut [u8], op: &Op, unit: u64, discard_zeroes: bool) -> TestCaseResult {
    let size = storage.size();
    match op {
        Op::Read(range, shape) => {
            let (offset, len) = range.on(size, unit);
            let mut buffers = shape.buffers(len);
            storage.readv(&buffers.iov(), offset)?;
            prop_assert!(buffers.bytes() == slice(model, offset, len));
        }
        Op::Write {
            range,
            shape,
            seed,
            durable,
        } => {
            let (offset, len) = range.on(size, unit);
            let mut buffers = shape.buffers(len);
            for (i, byte) in buffers.bytes_mut().iter_mut().enumerate() {
                *byte = seed.wrapping_add((i % 251).to_le_bytes()[0]);
            }
            slice(model, offset, len).copy_from_slice(buffers.bytes());
            match durable {
                true => storage.writev_durable(&buffers.iov(), offset)?,
                false => storage.writev(&buffers.iov(), offset)?,
            }
        }
        Op::Discard(range) => {
            let (offset, len) = range.on(size, unit);
            storage.discard(offset, len)?;
            match discard_zeroes {
                true => slice(model, offset, len).fill(0),
                false => {
                    let now = read(storage, offset, usize::try_from(len).unwrap())?;
                    slice(model, offset, len).copy_from_slice(&now);
                }
            }
        }
        Op::WriteZeroes { range, may_unmap } => {
            let (offset, len) = range.on(size, unit);
            storage.write_zeroes(offset, len, *may_unmap)?;
            slice(model, offset, len).fill(0);
        }
        Op::Flush => storage.flush()?,
    }
    Ok(())
}

/// Runs `ops` on ranges in multiples of `unit`, then compares the whole disk with the model.
pub(crate) fn check(storage: &RawFile, ops: &[Op], unit: u64, discard_zeroes: bool) -> TestCaseResult {
    let size = usize::try_from(storage.size()).unwrap();
    let mut model = read(storage, 0, size)?;
    for op in ops {
        step(storage, &mut model, op, unit, discard_zeroes)?;
    }
    prop_assert!(read(storage, 0, size)? == model, "the disk differs in the end");
    Ok(())
}

/// Makes a property test that writes no file of failures.
pub(crate) fn runner(cases: u32) -> TestRunner {
    TestRunner::new(ProptestConfig {
        cases,
        failure_persistence: None,
        ..ProptestConfig::default()
    })
}

/// Runs random requests in multiples of the required alignment, on a new image for each case.
fn check_images(on: On, direct: bool, cases: u32) {
    runner(cases)
        .run(&ops(), |ops| {
            let image = Image::new(on, SIZE);
            let storage = if direct { image.open_direct() } else { image.open() };
            let unit = u64::from(storage.limits().request_alignment);
            check(&storage, &ops, unit, true)?;
            // The file must have the same content and size through another open file and the page cache.
            let whole = read(&storage, 0, usize::try_from(SIZE).unwrap())?;
            prop_assert!(image.contents() == whole);
            Ok(())
        })
        .unwrap();
}

#[test]
fn a_file_matches_a_vec() {
    check_images(On::Disk, false, 48);
}

#[test]
fn a_file_with_o_direct_matches_a_vec() {
    check_images(On::Disk, true, 48);
}

#[test]
fn a_file_on_tmpfs_matches_a_vec() {
    check_images(On::Tmpfs, false, 48);
}

#[test]
fn requests_of_several_threads_do_not_mix() {
    let image = Image::new(On::Disk, SIZE);
    for storage in [image.open(), image.open_direct()] {
        std::thread::scope(|scope| {
            for thread in 0..4u8 {
                let storage = &storage;
                scope.spawn(move || {
                    let (base, len) = (u64::from(thread) * (SIZE / 4), 65536);
                    for round in 0..12u8 {
                        let byte = thread * 64 + round;
                        let mut buffers = Buffers::new(usize::from(round % 2), &[len]);
                        buffers.bytes_mut().fill(byte);
                        let offset = base + u64::from(round % 3) * 65536;
                        storage.writev(&buffers.iov(), offset).unwrap();
                        storage.flush().unwrap();
                        buffers.bytes_mut().fill(0xff);
                        storage.readv(&buffers.iov(), offset).unwrap();
                        assert!(buffers.bytes().iter().all(|&b| b == byte));
                    }
                });
            }
        });
    }
}

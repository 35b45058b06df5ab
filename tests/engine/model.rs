//! Random batches against a plain `Vec<u8>`.

use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use vhost_user_blk::aio::AioContext;
use vhost_user_blk::io::{IoOp, IoRange};

use crate::disk::{CASES, Case, Disk};
use crate::support::Buffers;

const SLOTS: usize = 48;
const SLOT: usize = 16 << 10;

/// An operation on one slot of the disk, and the layout of its buffers.
#[derive(Clone, Debug)]
struct Step {
    op: IoOp,
    start: usize,
    len: usize,
    skew: usize,
    cut: usize,
    seed: u8,
}

fn step() -> impl Strategy<Value = Option<Step>> {
    let op = prop_oneof![
        6 => Just(IoOp::Read),
        6 => prop::bool::weighted(0.1).prop_map(|durable| IoOp::Write { durable }),
        1 => Just(IoOp::Flush),
        1 => prop::bool::weighted(0.1).prop_map(|durable| IoOp::WriteZeroes { durable }),
    ];
    let skew = prop_oneof![6 => Just(0), 1 => 1..4096usize];
    let cut = prop_oneof![4 => Just(usize::MAX), 2 => Just(512), 1 => 1..5000usize];
    // Requests for whole slots are adjacent, so they may be merged.
    let place = prop_oneof![1 => Just((0, 32)), 1 => (0..32usize, 0..=32usize)];
    let step = (op, place, skew, cut, any::<u8>()).prop_map(|(op, (start, len), skew, cut, seed)| {
        let len = len.min(32 - start) * 512;
        Step {
            op,
            start: start * 512,
            len,
            skew,
            cut,
            seed,
        }
    });
    prop::option::of(step)
}

/// Makes batches with at most one step for each slot, so that the order within a batch does not matter.
fn batches() -> impl Strategy<Value = Vec<Vec<Option<Step>>>> {
    prop::collection::vec(prop::collection::vec(step(), SLOTS), 1..6)
}

fn run_batch(case: Case, disk: &Disk, model: &mut [u8], batch: &[Option<Step>]) -> Result<(), TestCaseError> {
    let steps = || {
        (0u16..)
            .zip(batch)
            .filter_map(|(slot, step)| Some((slot, step.as_ref()?)))
    };
    let offset = |slot: u16, step: &Step| usize::from(slot) * SLOT + step.start;
    let mut buffers: Vec<Buffers> = steps().map(|(slot, step)| step.buffers(slot)).collect();
    let requests = steps().zip(&mut buffers).map(|((slot, step), buffers)| {
        let offset = offset(slot, step) as u64;
        match step.op {
            IoOp::Read | IoOp::Salvage | IoOp::Write { .. } | IoOp::ZeroedWrite { .. } => {
                disk.request(slot, step.op, offset, buffers)
            }
            IoOp::Flush
            | IoOp::FlushAtRest
            | IoOp::Leave
            | IoOp::Settle
            | IoOp::Inherit
            | IoOp::RefreshSize
            | IoOp::LookAnew => disk.command(slot, step.op, None),
            IoOp::Discard | IoOp::WriteZeroes { .. } => {
                let range = IoRange {
                    offset,
                    len: step.len as u64,
                    unmap: step.seed % 2 == 0,
                };
                disk.command(slot, step.op, Some(range))
            }
        }
    });
    match batch.iter().flatten().any(|step| step.seed % 2 == 0) {
        true => disk.submit_detected(requests.collect()),
        false => disk.submit_merged(requests.collect()),
    };
    let done = disk.wait(buffers.len());
    for (((slot, step), request), buffers) in steps().zip(done).zip(&buffers) {
        prop_assert_eq!(request.token, slot);
        prop_assert!(request.result.is_ok(), "{:?}: {:?}", step, request.result);
        let range = &mut model[offset(slot, step)..][..step.len];
        match step.op {
            IoOp::Read | IoOp::Salvage => {
                prop_assert!(!case.stores() || buffers.bytes() == range, "{:?}", step)
            }
            IoOp::Write { .. } | IoOp::ZeroedWrite { .. } => range.copy_from_slice(buffers.bytes()),
            IoOp::Discard | IoOp::WriteZeroes { .. } => range.fill(0),
            IoOp::Flush
            | IoOp::FlushAtRest
            | IoOp::Leave
            | IoOp::Settle
            | IoOp::Inherit
            | IoOp::RefreshSize
            | IoOp::LookAnew => {}
        }
    }
    Ok(())
}

impl Step {
    fn buffers(&self, slot: u16) -> Buffers {
        let mut left = self.len;
        let mut lens = Vec::new();
        while left > 0 {
            lens.push(self.cut.min(left));
            left -= self.cut.min(left);
        }
        let mut buffers = Buffers::new(self.skew, &lens);
        let salt = self.seed.wrapping_mul(31).wrapping_add(slot.to_le_bytes()[0]);
        if self.seed.is_multiple_of(4) {
            return buffers;
        }
        for (byte, n) in buffers.bytes_mut().iter_mut().zip(0u32..) {
            *byte = (n % 251).to_le_bytes()[0] ^ salt;
        }
        buffers
    }
}

#[test]
fn every_engine_agrees_with_a_vector_of_bytes() {
    for case in CASES {
        let ctx = AioContext::new().unwrap();
        let size = SLOTS * SLOT;
        let image = case.image(size as u64);
        let Some(disk) = case.disk(&ctx, &image) else {
            continue;
        };
        let model = std::cell::RefCell::new(vec![7; size]);
        let config = ProptestConfig {
            cases: 24,
            failure_persistence: None,
            ..ProptestConfig::default()
        };
        let result = TestRunner::new(config).run(&batches(), |batches| {
            let model = &mut *model.borrow_mut();
            // Every round starts with the disk as the last one left it, also when proptest shrinks a failure.
            batches
                .iter()
                .try_for_each(|batch| run_batch(case, &disk, model, batch))
        });
        result.unwrap_or_else(|error| panic!("{case:?}: {error}"));
        assert!(
            !case.stores() || image.contents() == model.into_inner(),
            "{case:?}"
        );
    }
}

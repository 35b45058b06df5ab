//! Requirements for every engine.

use std::io::ErrorKind;

use vhost_user_blk::aio::AioContext;
use vhost_user_blk::engine::{BlockNode, Choice};
use vhost_user_blk::io::{IoOp, IoRange};

use crate::disk::{CASES, Disk, for_each};
use crate::support::Buffers;

const MIB: u64 = 1 << 20;
const WRITE: IoOp = IoOp::Write { durable: false };

#[test]
fn an_oversized_batch_completes_each_request_once() {
    for_each(MIB, |case, _, disk| {
        const COUNT: u16 = 3000;
        let mut buffers: Vec<Buffers> = (0..COUNT).map(|_| Buffers::new(0, &[512])).collect();
        let request = |(token, buffers): (u16, &mut Buffers)| {
            disk.request(token, IoOp::Read, u64::from(token % 2048) * 512, buffers)
        };
        disk.submit((0..COUNT).zip(&mut buffers).map(request).collect());
        let done = disk.wait(COUNT.into());
        assert!(
            done.iter()
                .zip(0..)
                .all(|(r, token)| r.token == token && r.result.is_ok()),
            "{case:?}"
        );
        assert!(
            !case.stores() || buffers.iter().all(|b| b.bytes() == [7; 512]),
            "{case:?}"
        );
    });
}

#[test]
fn requests_of_many_ranges_are_transferred_whole() {
    for_each(4 * MIB, |case, image, disk| {
        // These are more ranges than one system call takes.
        let lens = [512; 1500];
        let mut buffers = Buffers::new(0, &lens);
        buffers
            .bytes_mut()
            .iter_mut()
            .zip(0..)
            .for_each(|(byte, n)| *byte = u32::to_le_bytes(n)[1]);
        let expected = buffers.bytes().to_vec();
        disk.run(disk.request(0, WRITE, MIB, &mut buffers)).unwrap();
        assert!(
            !case.stores() || image.contents()[1 << 20..][..expected.len()] == expected,
            "{case:?}"
        );
        let mut back = Buffers::new(0, &lens);
        disk.run(disk.request(0, IoOp::Read, MIB, &mut back)).unwrap();
        assert!(!case.stores() || back.bytes() == expected, "{case:?}");
    });
}

#[test]
fn unaligned_buffers_are_copied_for_o_direct() {
    for_each(MIB, |case, image, disk| {
        let mut buffers = Buffers::new(13, &[1000, 24, 3072]);
        buffers.bytes_mut().fill(9);
        disk.run(disk.request(0, WRITE, 8192, &mut buffers)).unwrap();
        assert!(
            !case.stores() || image.contents()[8192..][..4096] == [9; 4096],
            "{case:?}"
        );
        buffers.bytes_mut().fill(0);
        disk.run(disk.request(0, IoOp::Read, 4096, &mut buffers)).unwrap();
        assert!(!case.stores() || buffers.bytes() == [7; 4096], "{case:?}");
    });
}

#[test]
fn requests_past_the_disk_never_grow_it() {
    for_each(MIB, |case, image, disk| {
        for (offset, op) in [
            (MIB - 512, WRITE),
            (MIB, WRITE),
            (u64::MAX - 511, IoOp::Read),
            (MIB, IoOp::Read),
        ] {
            let mut buffers = Buffers::new(0, &[1024]);
            let error = disk.run(disk.request(0, op, offset, &mut buffers)).unwrap_err();
            assert_eq!(
                error.kind(),
                ErrorKind::InvalidInput,
                "{case:?} {op:?} at {offset}"
            );
        }
        assert!(image.contents() == vec![7; 1 << 20], "{case:?}");
    });
}

#[test]
fn truncation_fails_only_reads_of_missing_data() {
    for_each(MIB, |case, image, disk| {
        if !case.stores() {
            return;
        }
        image.file().set_len(8192).unwrap();
        let mut buffers = Buffers::new(0, &[8192]);
        for offset in [4096, 64 << 10] {
            let error = disk
                .run(disk.request(0, IoOp::Read, offset, &mut buffers))
                .unwrap_err();
            assert_eq!(error.kind(), ErrorKind::UnexpectedEof, "{case:?} at {offset}");
        }
        disk.run(disk.request(0, IoOp::Read, 0, &mut buffers)).unwrap();
        assert!(buffers.bytes() == [7; 8192], "{case:?}");
    });
}

#[test]
fn commands_are_carried_out() {
    for_each(MIB, |case, image, disk| {
        let range = |offset| {
            Some(IoRange {
                offset,
                len: 4096,
                unmap: true,
            })
        };
        disk.submit(vec![
            disk.command(0, IoOp::Flush, None),
            disk.command(1, IoOp::WriteZeroes { durable: true }, range(0)),
            disk.command(2, IoOp::Discard, range(8192)),
        ]);
        for request in disk.wait(3) {
            assert!(
                request.result.is_ok(),
                "{case:?}: {:?} {:?}",
                request.op,
                request.result
            );
        }
        assert!(
            !case.stores() || image.contents()[..8192] == [[0; 4096], [7; 4096]].concat(),
            "{case:?}"
        );
    });
}

#[test]
fn a_new_size_applies_after_refreshing_it() {
    for_each(MIB, |case, image, disk| {
        let resize = |size| match &disk.node {
            BlockNode::File(_) => image.file().set_len(size).unwrap(),
            BlockNode::NullCo(null) | BlockNode::NullAio(null, _) => null.set_len(size),
            BlockNode::Nbd(_) | BlockNode::Rbd(_) | BlockNode::Qcow2(_) => {
                unreachable!("no server is used here")
            }
        };
        let write = |offset| {
            let mut buffers = Buffers::new(0, &[4096]);
            disk.run(disk.request(0, WRITE, offset, &mut buffers))
        };
        resize(2 * MIB);
        assert_eq!(disk.node.size(), MIB, "{case:?}");
        assert_eq!(
            write(MIB).unwrap_err().kind(),
            ErrorKind::InvalidInput,
            "{case:?}"
        );
        disk.run(disk.command(0, IoOp::RefreshSize, None)).unwrap();
        assert_eq!(disk.node.size(), 2 * MIB, "{case:?}");
        write(MIB).unwrap();
        resize(MIB / 2);
        disk.run(disk.command(0, IoOp::RefreshSize, None)).unwrap();
        assert_eq!(
            write(MIB / 2).unwrap_err().kind(),
            ErrorKind::InvalidInput,
            "{case:?}"
        );
    });
}

#[test]
fn a_timer_never_completes_during_the_submit_call() {
    let ctx = AioContext::new().unwrap();
    let latency = std::time::Duration::from_millis(2);
    let disk = Disk::on(&ctx, BlockNode::null_aio(MIB, latency), Choice::Auto).unwrap();
    let mut buffers = Buffers::new(0, &[512]);
    let start = std::time::Instant::now();
    for token in 0..3 {
        disk.submit(vec![disk.request(token, IoOp::Read, 0, &mut buffers)]);
        assert_eq!(disk.done.count(), 0);
    }
    assert_eq!(disk.wait(3).len(), 3);
    assert!(start.elapsed() >= latency);
}

#[test]
fn null_disks_return_zeroes_if_told() {
    let ctx = AioContext::new().unwrap();
    let latency = std::time::Duration::from_micros(10);
    for (zeroes, expected) in [(false, 9), (true, 0)] {
        for (latency, choice) in [
            (None, Choice::Auto),
            (None, Choice::Threads),
            (Some(latency), Choice::Auto),
        ] {
            let disk = Disk::on(&ctx, BlockNode::null_disk(MIB, latency, zeroes), choice).unwrap();
            let mut buffers = [Buffers::new(1, &[512, 1024]), Buffers::new(0, &[4096])];
            buffers.iter_mut().for_each(|buffers| buffers.bytes_mut().fill(9));
            let [first, second] = &mut buffers;
            let batch = vec![
                disk.request(0, IoOp::Read, 0, first),
                disk.request(1, IoOp::Read, 1536, second),
            ];
            disk.submit_merged(batch);
            assert_eq!(disk.wait(2).len(), 2);
            let all = buffers.iter().flat_map(|buffers| buffers.bytes());
            assert!(
                all.into_iter().all(|byte| *byte == expected),
                "{zeroes} {latency:?} {choice:?}"
            );
        }
    }
}

#[test]
fn freeing_an_engine_waits_for_the_kernel() {
    let ctx = AioContext::new().unwrap();
    for case in CASES.into_iter().filter(|case| case.direct) {
        let image = case.image(4 * MIB);
        let Some(disk) = case.disk(&ctx, &image) else {
            continue;
        };
        // The pool is not freed with the engine. io_uring leaves files on an overlay to it.
        let plan = disk.plan.to_string();
        if plan == "threads" || plan == "io_uring" && !image.open().supports_nowait() {
            continue;
        }
        let mut buffers: Vec<Buffers> = (0..600).map(|_| Buffers::new(0, &[4096])).collect();
        let request = |(token, buffers): (u16, &mut Buffers)| {
            disk.request(token, IoOp::Read, u64::from(token) * 4096, buffers)
        };
        disk.submit((0..).zip(&mut buffers).map(request).collect());
        let done = std::rc::Rc::clone(&disk.done);
        drop(disk);
        // The disk is gone and nothing writes to the memory any more.
        assert_eq!(done.count(), 600, "{case:?}");
        assert!(buffers.iter().all(|b| b.bytes() == [7; 4096]), "{case:?}");
    }
}

#[test]
fn a_loop_without_requests_does_nothing() {
    let ctx = AioContext::new().unwrap();
    for case in CASES {
        let image = case.image(MIB);
        let Some(disk) = case.disk(&ctx, &image) else {
            continue;
        };
        let mut buffers = Buffers::new(0, &[4096]);
        disk.run(disk.request(0, IoOp::Read, 0, &mut buffers)).unwrap();
        // Aftereffects of the request, such as a worker that goes to sleep, end within a few passes.
        let idle = (0..1000).any(|_| !ctx.poll(false) && !ctx.poll(false));
        assert!(idle, "{case:?}");
    }
}

//! Adjacent requests of a batch are merged. Only the time that they take shows it.

use std::io::ErrorKind;

use vhost_user_blk::io::{IoOp, Requests};

use crate::disk::{Disk, for_each};
use crate::support::Buffers;

const MIB: u64 = 1 << 20;
const WRITE: IoOp = IoOp::Write { durable: false };
const DURABLE: IoOp = IoOp::Write { durable: true };

/// Makes requests of 4 KiB from operations and block numbers.
fn requests(disk: &Disk, what: &[(IoOp, u64)], buffers: &mut [Buffers]) -> Requests {
    (0..)
        .zip(what)
        .zip(buffers)
        .map(|((token, &(op, block)), buffers)| disk.request(token, op, block * 4096, buffers))
        .collect()
}

fn pages(count: usize) -> Vec<Buffers> {
    (0..count).map(|_| Buffers::new(0, &[4096])).collect()
}

#[test]
fn merged_sequences_complete_every_request() {
    for_each(MIB, |case, image, disk| {
        for op in [WRITE, DURABLE, IoOp::Read] {
            let mut buffers = pages(64);
            for (buffers, byte) in buffers.iter_mut().zip(10..) {
                buffers.bytes_mut().fill(if op == IoOp::Read { 0 } else { byte });
            }
            let what: Vec<_> = (0..64).map(|block| (op, 100 + block)).collect();
            let merged = disk.submit_merged(requests(disk, &what, &mut buffers));
            assert!(
                !case.stores() && merged == 0 || (48..64).contains(&merged),
                "{case:?} {op:?}: {merged}"
            );
            let done = disk.wait(64);
            assert!(
                done.iter()
                    .zip(0..)
                    .all(|(r, token)| r.token == token && r.result.is_ok()),
                "{case:?} {op:?}"
            );
            if !case.stores() {
                continue;
            }
            assert!(
                buffers
                    .iter()
                    .zip(10..)
                    .all(|(buffers, byte)| buffers.bytes() == [byte; 4096]),
                "{case:?} {op:?}"
            );
            let contents = image.contents();
            let written = contents[100 * 4096..][..64 * 4096].chunks(4096);
            assert!(
                written.zip(10..).all(|(block, byte)| block == [byte; 4096]),
                "{case:?} {op:?}"
            );
            assert!(
                contents[..100 * 4096]
                    .iter()
                    .chain(&contents[164 * 4096..])
                    .all(|&byte| byte == 7)
            );
        }
    });
}

#[test]
fn requests_that_are_not_adjacent_stay_apart() {
    for_each(MIB, |case, _, disk| {
        let what = [
            (WRITE, 2),
            (IoOp::Read, 3),
            (IoOp::Read, 5),
            (IoOp::Read, 4),
            (WRITE, 6),
            (DURABLE, 7),
            (WRITE, 8),
        ];
        let mut buffers = pages(what.len());
        assert_eq!(
            disk.submit_merged(requests(disk, &what, &mut buffers)),
            0,
            "{case:?}"
        );
        assert_eq!(disk.wait(what.len()).len(), what.len(), "{case:?}");
    });
}

#[test]
fn merged_reads_past_eof_fail_individually() {
    for_each(MIB, |case, image, disk| {
        if !case.stores() {
            return;
        }
        image.file().set_len(3 * 4096).unwrap();
        let what: Vec<_> = (0..8).map(|block| (IoOp::Read, block)).collect();
        let mut buffers = pages(what.len());
        assert_eq!(
            disk.submit_merged(requests(disk, &what, &mut buffers)),
            7,
            "{case:?}"
        );
        for (request, buffers) in disk.wait(8).iter().zip(&buffers) {
            match &request.result {
                Ok(()) => assert!(
                    request.token < 3 && buffers.bytes() == [7; 4096],
                    "{case:?}: {}",
                    request.token
                ),
                Err(error) => {
                    assert!(request.token >= 3, "{case:?}: {}", request.token);
                    assert_eq!(error.kind(), ErrorKind::UnexpectedEof, "{case:?}");
                }
            }
        }
    });
}

#[test]
fn merged_writes_past_the_disk_fail_individually() {
    for_each(MIB, |case, image, disk| {
        let what: Vec<_> = (252..260).map(|block| (WRITE, block)).collect();
        let mut buffers = pages(what.len());
        buffers.iter_mut().for_each(|b| b.bytes_mut().fill(9));
        assert_eq!(
            disk.submit_merged(requests(disk, &what, &mut buffers)),
            if case.stores() { 7 } else { 0 },
            "{case:?}"
        );
        for request in disk.wait(8) {
            let failed = request
                .result
                .as_ref()
                .is_err_and(|e| e.kind() == ErrorKind::InvalidInput);
            assert_eq!(failed, request.token >= 4, "{case:?}: {:?}", request.result);
        }
        let contents = image.contents();
        assert_eq!(contents.len(), 1 << 20, "{case:?}");
        assert!(
            !case.stores() || contents[252 * 4096..].iter().all(|&byte| byte == 9),
            "{case:?}"
        );
    });
}

#[test]
fn overflowing_requests_are_not_merged() {
    for_each(MIB, |case, _, disk| {
        let mut buffers = pages(2);
        let requests = (0u16..).zip([u64::MAX - 511, 3584]).zip(&mut buffers);
        let requests =
            requests.map(|((token, offset), buffers)| disk.request(token, IoOp::Read, offset, buffers));
        assert_eq!(disk.submit_merged(requests.collect()), 0, "{case:?}");
        let done = disk.wait(2);
        assert!(done[0].result.is_err(), "{case:?}");
    });
}

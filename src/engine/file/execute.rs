//! What a request is on a file: blocking calls, or attempts that take no waiting. Any thread.

use std::io;

use crate::io::{IoOp, IoRequest, IoVecs};
use crate::storage::Storage;

/// Executes the request if that takes no waiting; returns whether it did.
pub(in crate::engine) fn try_execute(storage: &Storage, request: &mut IoRequest) -> bool {
    let done = match request.op {
        IoOp::Read => storage.try_readv(request.whole(), request.offset),
        IoOp::Write { durable: false } => storage.try_writev(request.whole(), request.offset),
        IoOp::Write { durable: true }
        | IoOp::Flush
        | IoOp::Discard
        | IoOp::WriteZeroes { .. }
        | IoOp::Salvage => matches!(storage, Storage::Null(_)),
    };
    if done {
        request.set_results(|_| Ok(()));
    }
    done
}

/// Executes the request with blocking calls: all members of a group at once, or one by one if that fails, so that each
/// gets a result of its own.
pub(in crate::engine) fn execute(storage: &Storage, request: &mut IoRequest) {
    if request.is_merged() && run(storage, request, request.whole()).is_ok() {
        return request.set_results(|_| Ok(()));
    }
    request.set_results(|member| run(storage, member, member.alone()));
    if request.op == IoOp::Salvage {
        request.op = IoOp::Read;
    }
}

fn run(storage: &Storage, request: &IoRequest, memory: &IoVecs) -> io::Result<()> {
    match request.op {
        IoOp::Read => storage.readv(memory, request.offset),
        IoOp::Salvage => storage.salvage(memory, request.offset, |_, _| true),
        IoOp::Write { durable: false } => storage.writev(memory, request.offset),
        IoOp::Write { durable: true } => storage.writev_durable(memory, request.offset),
        IoOp::Flush => storage.flush(),
        IoOp::Discard => request
            .ranges
            .iter()
            .try_for_each(|r| storage.discard(r.offset, r.len)),
        IoOp::WriteZeroes { durable } => {
            request
                .ranges
                .iter()
                .try_for_each(|r| storage.write_zeroes(r.offset, r.len, r.unmap))?;
            if durable { storage.flush() } else { Ok(()) }
        }
    }
}

//! Requests as operations on a file: blocking calls, or attempts that do not wait. Any thread.

use std::io;

use crate::engine::job::{Execute, TryExecute};
use crate::io::{IoOp, IoRequest, IoVecs};
use crate::storage::{Nowait, RawFile};

/// A file, and the way in which its requests are tried.
pub(in crate::engine) struct Session<'a> {
    file: &'a RawFile,
    /// A lone request is tried by a system call, although the file is mapped. A copy from the mapping answers half a
    /// microsecond sooner, when the driver's thread is about to sleep: waking it then takes 8 us longer.
    by_call: bool,
}

impl TryExecute for RawFile {
    type Session<'a> = Session<'a>;

    fn nowait(&self) -> Nowait {
        Self::nowait(self)
    }

    fn writes_take_turns(&self) -> bool {
        Self::writes_take_turns(self)
    }

    fn session(&self, lone: bool) -> Option<Session<'_>> {
        Some(Session {
            file: self,
            by_call: lone,
        })
    }

    fn try_execute(&Session { file, by_call }: &Session<'_>, request: &mut IoRequest) -> bool {
        let (memory, offset) = (request.whole(), request.offset);
        let done = match (request.op, by_call) {
            (IoOp::Read, false) => file.try_readv(memory, offset),
            (IoOp::Read, true) => file.try_readv_by_call(memory, offset),
            (IoOp::Write { durable: false }, false) => file.try_writev(memory, offset),
            (IoOp::Write { durable: false }, true) => file.try_writev_by_call(memory, offset),
            _ => false,
        };
        if done {
            request.set_results(|_| Ok(()));
        }
        done
    }
}

impl Execute for RawFile {
    /// Executes the request with blocking calls. Merged requests are executed together, or one by one if that fails, so
    /// that each gets its own result.
    fn execute(&self, request: &mut IoRequest) {
        if request.is_merged() && run(self, request, request.whole()).is_ok() {
            return request.set_results(|_| Ok(()));
        }
        request.set_results(|member| run(self, member, member.alone()));
        if request.op == IoOp::Salvage {
            request.op = IoOp::Read;
        }
    }
}

fn run(file: &RawFile, request: &IoRequest, memory: &IoVecs) -> io::Result<()> {
    match request.op {
        IoOp::Read => file.readv(memory, request.offset),
        IoOp::Salvage => file.salvage(memory, request.offset),
        IoOp::Write { durable: false } => file.writev(memory, request.offset),
        IoOp::Write { durable: true } => file.writev_durable(memory, request.offset),
        IoOp::ZeroedWrite { durable, unmap } => {
            file.write_zeroes(request.offset, memory.len() as u64, unmap)?;
            if durable { file.flush() } else { Ok(()) }
        }
        IoOp::Flush => file.flush(),
        IoOp::FlushAtRest => file.flush_at_rest(),
        IoOp::Leave | IoOp::Settle | IoOp::Inherit => Ok(()),
        IoOp::RefreshSize => file.refresh_size().map(drop),
        IoOp::LookAnew => file.look_anew().map(drop),
        IoOp::Discard => request
            .ranges
            .iter()
            .try_for_each(|r| file.discard(r.offset, r.len)),
        IoOp::WriteZeroes { durable } => {
            request
                .ranges
                .iter()
                .try_for_each(|r| file.write_zeroes(r.offset, r.len, r.unmap))?;
            if durable { file.flush() } else { Ok(()) }
        }
    }
}

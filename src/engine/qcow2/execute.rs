//! Requests as blocking calls, or attempts that do not wait. Any thread.

use std::io;
use std::sync::RwLockReadGuard;

use super::disk::Qcow2Disk;
use super::tables::Tables;
use crate::engine::job::{Execute, TryExecute};
use crate::io::{IoOp, IoRange, IoRequest, IoVecs};
use crate::storage::Nowait;

/// A disk whose tables are locked.
pub(in crate::engine) struct Session<'a> {
    disk: &'a Qcow2Disk,
    tables: RwLockReadGuard<'a, Tables>,
}

impl TryExecute for Qcow2Disk {
    type Session<'a> = Session<'a>;

    fn nowait(&self) -> Nowait {
        self.data().nowait()
    }

    /// Writes that allocate clusters wait for flushes, and not for each other.
    fn writes_take_turns(&self) -> bool {
        false
    }

    fn session(&self, _lone: bool) -> Option<Session<'_>> {
        let tables = self.try_tables()?;
        Some(Session { disk: self, tables })
    }

    fn try_execute(session: &Session<'_>, request: &mut IoRequest) -> bool {
        let (disk, tables) = (session.disk, &session.tables);
        let done = match request.op {
            IoOp::Read => disk.try_read_from(tables, request.whole(), request.offset),
            IoOp::Write { durable: false } => disk.try_write(tables, request.whole(), request.offset),
            _ => false,
        };
        if done {
            request.set_results(|_| Ok(()));
        }
        done
    }
}

impl Execute for Qcow2Disk {
    /// Executes the request with blocking calls. Merged requests are executed together, or one by one if that fails, so
    /// that each gets its own result.
    fn execute(&self, request: &mut IoRequest) {
        if request.is_merged() && run(self, request, request.whole()).is_ok() {
            return request.set_results(|_| Ok(()));
        }
        request.set_results(|member| {
            let done = run(self, member, member.alone());
            self.watch(done).map_err(|error| match member.op {
                IoOp::Flush | IoOp::FlushAtRest => error,
                _ => self.without_false_hope(error),
            })
        });
        if request.op == IoOp::Salvage {
            request.op = IoOp::Read;
        }
    }
}

fn run(disk: &Qcow2Disk, request: &IoRequest, memory: &IoVecs) -> io::Result<()> {
    let when = |durable: bool| if durable { disk.flush() } else { Ok(()) };
    match request.op {
        IoOp::Read => disk.read(memory, request.offset),
        IoOp::Salvage => disk.salvage(memory, request.offset),
        IoOp::Write { durable } => {
            disk.write(memory, request.offset)?;
            when(durable)
        }
        IoOp::ZeroedWrite { durable, unmap } => {
            disk.write_zeroes(request.offset, memory.len() as u64, unmap)?;
            when(durable)
        }
        // Nothing was written.
        IoOp::Flush | IoOp::FlushAtRest | IoOp::Leave | IoOp::Settle if disk.limits().read_only => Ok(()),
        IoOp::Flush => disk.flush(),
        IoOp::FlushAtRest => disk.flush_at_rest(),
        IoOp::Leave => disk.leave(),
        IoOp::Settle => disk.settle(),
        IoOp::Inherit => disk.inherit(),
        IoOp::Discard => request
            .ranges
            .iter()
            .try_for_each(|range| disk.discard(range.offset, range.len)),
        IoOp::WriteZeroes { durable } => {
            let zero = |range: &IoRange| disk.write_zeroes(range.offset, range.len, range.unmap);
            request.ranges.iter().try_for_each(zero)?;
            when(durable)
        }
        // Nobody else changes the size of a disk that is written to.
        IoOp::RefreshSize if !disk.limits().read_only => Ok(()),
        IoOp::RefreshSize | IoOp::LookAnew => disk.look_anew(),
    }
}

//! Requests as blocking calls. Any thread.

use std::io;

use super::disk::Qcow2Disk;
use crate::engine::job::Execute;
use crate::io::{IoOp, IoRange, IoRequest};

impl Execute for Qcow2Disk {
    fn execute(&self, request: &mut IoRequest) {
        request.set_results(|member| {
            let done = run(self, member);
            self.watch(done)
        });
        if request.op == IoOp::Salvage {
            request.op = IoOp::Read;
        }
    }
}

fn run(disk: &Qcow2Disk, request: &IoRequest) -> io::Result<()> {
    let memory = request.alone();
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

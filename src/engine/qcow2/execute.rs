//! Requests as blocking calls. Any thread.

use std::io;

use super::disk::Qcow2Disk;
use crate::engine::job::Execute;
use crate::io::{IoOp, IoRequest};

impl Execute for Qcow2Disk {
    fn execute(&self, request: &mut IoRequest) {
        request.set_results(|member| match member.op {
            IoOp::Read => self.read(member.alone(), member.offset),
            IoOp::Salvage => self.salvage(member.alone(), member.offset),
            // Nothing is ever written.
            IoOp::Flush | IoOp::FlushAtRest => Ok(()),
            IoOp::RefreshSize | IoOp::LookAnew => self.look_anew(),
            IoOp::Write { .. } | IoOp::ZeroedWrite { .. } | IoOp::Discard | IoOp::WriteZeroes { .. } => {
                Err(io::Error::from_raw_os_error(libc::EROFS))
            }
        });
        if request.op == IoOp::Salvage {
            request.op = IoOp::Read;
        }
    }
}

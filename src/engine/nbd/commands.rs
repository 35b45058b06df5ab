//! Requests, and the commands for the server that each of them becomes. IOThread only.

use std::collections::VecDeque;
use std::io;
use std::ops::Range;

use super::disk::NbdDisk;
use super::slab::Slab;
use crate::io::{IoOp, IoRequest, Requests};
use crate::nbd::{Command, Coverage, Expected, error_of};

/// The largest range of a discard or of zeroes in one command. Longer ones would keep others waiting.
const RANGE_MAX: u32 = 1 << 30;
/// The largest read that a server is asked to answer in one piece.
const WHOLE_MAX: u32 = 64 << 10;

/// A request and the progress of its commands.
#[derive(Debug)]
pub(super) struct Active {
    pub(super) request: Box<IoRequest>,
    /// The channel that has submitted it.
    pub(super) channel: u64,
    /// Number of its commands that are not answered yet.
    left: u32,
    /// The first error.
    error: Option<i32>,
    /// After the last command, a flush makes the data stable.
    flush_after: bool,
    /// Its ring stops.
    pub(super) stopping: bool,
}

/// A command for the server.
#[derive(Debug)]
pub(super) struct Work {
    /// The request.
    pub(super) owner: u64,
    pub(super) command: Command,
    pub(super) offset: u64,
    pub(super) len: u32,
    /// The place of its first byte in the memory of the request.
    pub(super) at: usize,
    /// All of it was sent.
    pub(super) sent: bool,
    /// The parts of a read that have come.
    pub(super) received: Coverage,
    /// The server has reported an error.
    pub(super) error: Option<i32>,
}

impl Work {
    /// Returns the write that does what the server cannot do without data: the guest has asked for a write.
    fn zeroes_to_write(&self, op: IoOp) -> Option<Command> {
        match (self.command, op, self.error) {
            (Command::WriteZeroes { fua, .. }, IoOp::ZeroedWrite { .. }, Some(libc::EOPNOTSUPP)) => {
                Some(Command::Write { fua })
            }
            _ => None,
        }
    }
}

/// All requests and commands of a connection.
#[derive(Debug, Default)]
pub(super) struct Commands {
    active: Slab<Active>,
    works: Slab<Work>,
    /// Commands to send, in order.
    pub(super) to_send: VecDeque<u64>,
    /// Requests that are over.
    pub(super) done: Requests,
}

impl Commands {
    /// Returns the number of requests in flight.
    pub(super) fn len(&self) -> usize {
        self.active.len()
    }

    /// Returns whether no request is in flight.
    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Takes a request, and queues its commands.
    pub(super) fn add(&mut self, request: Box<IoRequest>, channel: u64, disk: &NbdDisk) {
        let (op, export) = (request.op, disk.export());
        let durable = match op {
            IoOp::Write { durable } | IoOp::ZeroedWrite { durable, .. } | IoOp::WriteZeroes { durable } => {
                durable
            }
            _ => false,
        };
        let (offset, len) = (request.offset, request.whole().len());
        let ranges = request.ranges.clone();
        let owner = self.active.insert(Active {
            request,
            channel,
            left: 0,
            error: None,
            flush_after: durable && !export.has_fua() && export.flushes(),
            stopping: false,
        });
        let fua = durable && export.has_fua();
        match op {
            IoOp::Read | IoOp::Salvage => {
                self.transfer(owner, Command::Read { whole: false }, offset, 0..len, disk)
            }
            IoOp::ZeroedWrite { unmap, .. } if export.writes_zeroes() => {
                let no_hole = !unmap || !disk.options().remote.unmap;
                self.range(owner, Command::WriteZeroes { fua, no_hole }, offset, len as u64);
            }
            IoOp::Write { .. } | IoOp::ZeroedWrite { .. } => {
                self.transfer(owner, Command::Write { fua }, offset, 0..len, disk);
            }
            IoOp::Flush | IoOp::FlushAtRest | IoOp::Leave | IoOp::Settle => self.flush(owner, disk),
            IoOp::Discard if export.trims() && disk.options().remote.unmap => {
                for range in &ranges {
                    self.range(owner, Command::Trim, range.offset, range.len);
                }
            }
            // Without an effect, as for files.
            IoOp::Discard => {}
            IoOp::WriteZeroes { .. } if export.writes_zeroes() => {
                for range in &ranges {
                    let no_hole = !range.unmap || !disk.options().remote.unmap;
                    self.range(
                        owner,
                        Command::WriteZeroes { fua, no_hole },
                        range.offset,
                        range.len,
                    );
                }
            }
            IoOp::WriteZeroes { .. } => self.fail(owner, libc::EOPNOTSUPP),
            IoOp::RefreshSize | IoOp::LookAnew | IoOp::Inherit => {}
        }
        self.settle(owner, disk);
    }

    fn flush(&mut self, owner: u64, disk: &NbdDisk) {
        if disk.export().flushes() && !disk.options().remote.no_flush {
            self.push(owner, Command::Flush, 0, 0, 0);
        }
    }

    /// Queues the commands for a part of a read or write at `offset`, none of which is longer than the server takes.
    fn transfer(&mut self, owner: u64, command: Command, offset: u64, part: Range<usize>, disk: &NbdDisk) {
        let (max, df) = (disk.export().max_block, disk.export().has_df());
        let mut at = part.start;
        while at < part.end {
            let piece = u32::try_from(part.end - at).map_or(max, |rest| rest.min(max));
            let command = match command {
                Command::Read { .. } => Command::Read {
                    whole: df && piece <= WHOLE_MAX,
                },
                command => command,
            };
            self.push(owner, command, offset.wrapping_add(at as u64), piece, at);
            at += piece as usize;
        }
    }

    /// Queues the commands for a range without data.
    fn range(&mut self, owner: u64, command: Command, offset: u64, len: u64) {
        let mut done = 0;
        while done < len {
            let piece = u32::try_from(len - done).map_or(RANGE_MAX, |rest| rest.min(RANGE_MAX));
            self.push(owner, command, offset.wrapping_add(done), piece, 0);
            done += u64::from(piece);
        }
    }

    fn push(&mut self, owner: u64, command: Command, offset: u64, len: u32, at: usize) {
        if let Some(active) = self.active.get_mut(owner) {
            active.left += 1;
        }
        let number = self.works.insert(Work {
            owner,
            command,
            offset,
            len,
            at,
            sent: false,
            received: Coverage::default(),
            error: None,
        });
        self.to_send.push_back(number);
    }

    fn fail(&mut self, owner: u64, errno: i32) {
        if let Some(active) = self.active.get_mut(owner) {
            active.error.get_or_insert(errno);
        }
    }

    pub(super) fn work(&self, number: u64) -> Option<&Work> {
        self.works.get(number)
    }

    pub(super) fn work_mut(&mut self, number: u64) -> Option<&mut Work> {
        self.works.get_mut(number)
    }

    /// Returns a command and its request.
    pub(super) fn both(&self, number: u64) -> Option<(&Work, &IoRequest)> {
        let work = self.works.get(number)?;
        Some((work, &self.active.get(work.owner)?.request))
    }

    /// Returns what the server may answer.
    pub(super) fn expected(&self, number: u64) -> Option<Expected> {
        // A command that was not sent cannot be answered.
        let work = self.works.get(number).filter(|work| work.sent)?;
        let read = matches!(work.command, Command::Read { .. }).then_some((work.offset, work.len));
        Some(Expected { read })
    }

    /// A command is over. Completes its request with the last one.
    pub(super) fn finish(&mut self, number: u64, disk: &NbdDisk) {
        let Some(work) = self.works.remove(number) else {
            return;
        };
        if let Some(active) = self.active.get_mut(work.owner) {
            active.left -= 1;
            match work.zeroes_to_write(active.request.op) {
                Some(command) => {
                    let (offset, done) = (active.request.offset, work.offset - active.request.offset);
                    #[allow(clippy::cast_possible_truncation, reason = "the range lies in memory")]
                    let at = done as usize;
                    self.transfer(work.owner, command, offset, at..at + work.len as usize, disk);
                }
                None => active.error = active.error.or(work.error),
            }
        }
        self.settle(work.owner, disk);
    }

    /// Completes a request that has no command left.
    fn settle(&mut self, owner: u64, disk: &NbdDisk) {
        let Some(active) = self.active.get_mut(owner) else {
            return;
        };
        if active.left > 0 {
            return;
        }
        if active.flush_after && active.error.is_none() {
            active.flush_after = false;
            return self.flush(owner, disk);
        }
        if let Some(Active {
            mut request, error, ..
        }) = self.active.remove(owner)
        {
            request.result = match error {
                None => Ok(()),
                Some(errno) => Err(io::Error::from_raw_os_error(errno)),
            };
            if request.op == IoOp::Salvage {
                request.op = IoOp::Read;
                if request.result.is_err() {
                    request.alone().write_zeroes();
                    request.result = Ok(());
                }
            }
            self.done.push(request);
        }
    }

    /// Queues every command again, because the connection that they were sent over is gone.
    pub(super) fn rewind(&mut self) {
        self.to_send.clear();
        let numbers: Vec<u64> = self.works.iter().map(|(number, _)| number).collect();
        for number in numbers {
            if let Some(work) = self.works.get_mut(number) {
                (work.sent, work.received, work.error) = (false, Coverage::default(), None);
            }
            self.to_send.push_back(number);
        }
    }

    /// Ends the requests that `which` selects, none of whose commands may be on its way.
    pub(super) fn fail_all(&mut self, errno: i32, which: impl Fn(&Active) -> bool) {
        let selected = self.active.iter().filter(|(_, active)| which(active));
        let owners: Vec<u64> = selected.map(|(number, _)| number).collect();
        for owner in owners {
            if let Some(Active { mut request, .. }) = self.active.remove(owner) {
                request.result = Err(io::Error::from_raw_os_error(errno));
                self.done.push(request);
            }
        }
        let orphans = self
            .works
            .iter()
            .filter(|(_, work)| self.active.get(work.owner).is_none());
        let orphans: Vec<u64> = orphans.map(|(number, _)| number).collect();
        for number in orphans {
            self.works.remove(number);
        }
        let works = &self.works;
        self.to_send.retain(|number| works.get(*number).is_some());
    }

    /// Marks the requests of a channel whose ring stops. Returns whether there are any.
    pub(super) fn mark_stopping(&mut self, channel: u64) -> bool {
        let mut any = false;
        for active in self.active.iter_mut().filter(|active| active.channel == channel) {
            active.stopping = true;
            any = true;
        }
        any
    }

    /// Returns whether a request is in flight whose ring stops.
    pub(super) fn has_stopping(&self) -> bool {
        self.active.iter().any(|(_, active)| active.stopping)
    }

    /// The server has answered a command with an error.
    pub(super) fn report(&mut self, number: u64, error: u32) {
        let error = error_of(error);
        if let Some(work) = self.works.get_mut(number) {
            // A discard may be without an effect.
            if !(work.command == Command::Trim && error == libc::EOPNOTSUPP) {
                work.error.get_or_insert(error);
            }
        }
    }
}

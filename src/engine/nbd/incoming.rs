//! Answers from the server. IOThread only.
//!
//! One call reads the rest of the data that is awaited straight into the guest's memory, and what follows it into a
//! buffer. Short answers come many at a time that way, and are copied; long ones are not.

use std::io;
use std::os::fd::AsRawFd;

use super::commands::Commands;
use super::disk::NbdDisk;
use super::lost::Lost;
use super::stream::{self, RANGES_MAX, Ranges};
use crate::nbd::{Decoded, Event, ProtocolError, Replies, decode};

/// Size of the buffer, and how much of it is used between long answers.
const BUFFER: usize = 64 << 10;
const AFTER_LONG: usize = 4 << 10;
/// The length from which on an answer is long.
const LONG: u32 = 32 << 10;
/// The largest number of calls in a row, so that other disks get their turn.
const CALLS_MAX: usize = 16;

/// The receiver of one connection.
#[derive(Debug)]
pub(super) struct Incoming {
    replies: Replies,
    buffer: Box<[u8]>,
    /// The range of the buffer with bytes that were not decoded yet.
    start: usize,
    end: usize,
    state: State,
    /// The last data was long.
    long: bool,
    ranges: Ranges,
}

/// The meaning of the next byte.
#[derive(Clone, Copy, Debug)]
enum State {
    Header,
    /// Data for byte `at` of the memory of a command's request.
    Data {
        number: u64,
        at: usize,
        left: usize,
        last: bool,
    },
    /// Bytes that nobody wants.
    Skip {
        number: u64,
        left: usize,
        last: bool,
    },
}

impl Incoming {
    pub(super) fn new(replies: Replies) -> Self {
        Self {
            replies,
            buffer: vec![0; BUFFER].into(),
            start: 0,
            end: 0,
            state: State::Header,
            long: false,
            ranges: Ranges::default(),
        }
    }

    /// Reads what has arrived.
    pub(super) fn receive(
        &mut self,
        socket: &impl AsRawFd,
        commands: &mut Commands,
        disk: &NbdDisk,
    ) -> Result<(), Lost> {
        for _ in 0..CALLS_MAX {
            let (direct, room) = self.prepare(commands);
            // SAFETY: the memory belongs to a request that `commands` owns, and to the buffer.
            let read = unsafe { stream::read(socket, &self.ranges.0) };
            self.ranges.0.clear();
            let bytes = match read {
                Ok(0) => return Err(Lost::Closed),
                Ok(bytes) => bytes,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.raw_os_error() == Some(libc::EFAULT) && direct > 0 => {
                    self.spoil(commands);
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            let placed = bytes.min(direct);
            self.end += bytes - placed;
            self.placed(placed, commands, disk)?;
            self.digest(commands, disk)?;
            if bytes < direct + room {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Collects the ranges of the next call. Returns the bytes of the guest's memory and of the buffer.
    fn prepare(&mut self, commands: &Commands) -> (usize, usize) {
        self.buffer.copy_within(self.start..self.end, 0);
        (self.start, self.end) = (0, self.end - self.start);
        let ranges = &mut self.ranges.0;
        let mut direct = 0;
        if let State::Data { number, at, left, .. } = self.state
            && let Some((_, request)) = commands.both(number)
        {
            ranges.extend(request.whole().part(at, left).take(RANGES_MAX - 1));
            direct = ranges.iter().map(|range| range.iov_len).sum();
            if direct < left {
                return (direct, 0);
            }
        }
        let limit = if self.long { AFTER_LONG } else { BUFFER };
        let free = &mut self.buffer[self.end..limit.max(self.end + 64).min(BUFFER)];
        ranges.push(libc::iovec {
            iov_base: free.as_mut_ptr().cast(),
            iov_len: free.len(),
        });
        (direct, free.len())
    }

    /// The memory of a read is gone: its data is skipped, and the command fails.
    fn spoil(&mut self, commands: &mut Commands) {
        if let State::Data {
            number, left, last, ..
        } = self.state
        {
            if let Some(work) = commands.work_mut(number) {
                work.error = Some(libc::EFAULT);
            }
            self.state = State::Skip { number, left, last };
        }
    }

    /// `bytes` of the data that is awaited are in their place.
    fn placed(&mut self, bytes: usize, commands: &mut Commands, disk: &NbdDisk) -> Result<(), Lost> {
        if let State::Data {
            number,
            at,
            left,
            last,
        } = &mut self.state
        {
            (*at, *left) = (*at + bytes, *left - bytes);
            if *left == 0 {
                let (number, last) = (*number, *last);
                self.state = State::Header;
                return end_part(number, last, commands, disk);
            }
        }
        Ok(())
    }

    /// Takes the contents of the buffer apart.
    fn digest(&mut self, commands: &mut Commands, disk: &NbdDisk) -> Result<(), Lost> {
        while self.start < self.end {
            let there = &self.buffer[self.start..self.end];
            match self.state {
                State::Header => match decode(there, self.replies, |number| commands.expected(number))? {
                    Decoded::More(_) => return Ok(()),
                    Decoded::Header(len, event) => {
                        self.start += len;
                        self.begin(event, commands, disk)?;
                    }
                },
                State::Data { number, at, left, .. } => {
                    let len = left.min(there.len());
                    if let Some((_, request)) = commands.both(number) {
                        request.whole().write_at(at, &there[..len]);
                    }
                    self.start += len;
                    self.placed(len, commands, disk)?;
                }
                State::Skip { number, left, last } => {
                    let len = left.min(there.len());
                    self.start += len;
                    if len < left {
                        let left = left - len;
                        self.state = State::Skip { number, left, last };
                    } else {
                        self.state = State::Header;
                        end_part(number, last, commands, disk)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Acts on a header.
    fn begin(&mut self, event: Event, commands: &mut Commands, disk: &NbdDisk) -> Result<(), Lost> {
        match event {
            Event::Data {
                cookie: number,
                at,
                len,
                last,
            } => {
                let at = count(commands, number, at, len)?;
                self.long = len >= LONG;
                let left = len as usize;
                self.state = State::Data {
                    number,
                    at,
                    left,
                    last,
                };
                Ok(())
            }
            Event::Hole {
                cookie: number,
                at,
                len,
                last,
            } => {
                let at = count(commands, number, at, len)?;
                if let Some((_, request)) = commands.both(number) {
                    request.whole().zero_at(at, len as usize);
                }
                end_part(number, last, commands, disk)
            }
            Event::Error {
                cookie: number,
                error,
                skip,
                last,
            } => {
                commands.report(number, error);
                if skip == 0 {
                    return end_part(number, last, commands, disk);
                }
                let left = skip as usize;
                self.state = State::Skip { number, left, last };
                Ok(())
            }
            Event::Done { cookie } => end_part(cookie, true, commands, disk),
        }
    }
}

/// Counts data of a read. Returns its place in the memory of the request.
fn count(commands: &mut Commands, number: u64, at: u32, len: u32) -> Result<usize, ProtocolError> {
    let work = commands.work_mut(number).ok_or(ProtocolError::Cookie)?;
    work.received.add(at, len)?;
    Ok(work.at + at as usize)
}

/// A part of an answer is complete. With the last one, so is the command.
fn end_part(number: u64, last: bool, commands: &mut Commands, disk: &NbdDisk) -> Result<(), Lost> {
    if !last {
        return Ok(());
    }
    let work = commands.work(number).ok_or(ProtocolError::Cookie)?;
    let is_read = commands
        .expected(number)
        .is_some_and(|expected| expected.read.is_some());
    if is_read && work.error.is_none() && work.received.bytes() != work.len {
        return Err(ProtocolError::Amount.into());
    }
    commands.finish(number, disk);
    Ok(())
}

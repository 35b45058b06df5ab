//! Commands on their way to the server: as many as possible with one system call. IOThread only.

use std::io;
use std::os::fd::AsRawFd;

use super::commands::Commands;
use super::disk::NbdDisk;
use super::lost::Lost;
use super::stream::{self, RANGES_MAX, Ranges};
use crate::nbd::{Command, HEADER_LEN_MAX, Replies, Request};

/// The largest number of commands of one call.
const BATCH_MAX: usize = 256;

/// The sender of one connection.
#[derive(Debug)]
pub(super) struct Outgoing {
    replies: Replies,
    /// Bytes of the first command that were sent.
    sent: usize,
    /// The headers of a batch. Their number never exceeds the capacity, so they stay in place.
    headers: Vec<[u8; HEADER_LEN_MAX]>,
    /// The ranges of a batch. Empty between calls, kept for its capacity.
    ranges: Ranges,
}

impl Outgoing {
    pub(super) fn new(replies: Replies) -> Self {
        Self {
            replies,
            sent: 0,
            headers: Vec::with_capacity(BATCH_MAX),
            ranges: Ranges::default(),
        }
    }

    /// Sends what there is room for. Returns false if something is left.
    pub(super) fn send(
        &mut self,
        socket: &impl AsRawFd,
        commands: &mut Commands,
        disk: &NbdDisk,
    ) -> Result<bool, Lost> {
        let mut batch = BATCH_MAX;
        while !commands.to_send.is_empty() {
            self.gather(commands, batch);
            // SAFETY: the headers stay in place, and the memory belongs to requests that `commands` owns.
            let written = unsafe { stream::write(socket, &self.ranges.0) };
            self.ranges.0.clear();
            match written {
                Ok(bytes) => self.advance(commands, bytes),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.raw_os_error() != Some(libc::EFAULT) => return Err(error.into()),
                // Some memory is gone. Which command it belongs to shows when they are sent one by one.
                Err(_) if batch > 1 && self.sent == 0 => batch = 1,
                Err(_) => {
                    let broken = self.sent > 0;
                    self.give_up_first(commands, disk);
                    if broken {
                        return Err(Lost::Memory);
                    }
                }
            }
        }
        Ok(true)
    }

    /// Collects the ranges of the next commands.
    fn gather(&mut self, commands: &Commands, batch: usize) {
        self.headers.clear();
        let (ranges, mut skip) = (&mut self.ranges.0, self.sent);
        for number in commands.to_send.iter().take(batch) {
            let Some((work, request)) = commands.both(*number) else {
                continue;
            };
            if ranges.len() >= RANGES_MAX {
                break;
            }
            let mut header = [0; HEADER_LEN_MAX];
            let len = Request {
                command: work.command,
                cookie: *number,
                offset: work.offset,
                len: work.len,
            }
            .encode(self.replies, &mut header);
            self.headers.push(header);
            let base = self
                .headers
                .last_mut()
                .map_or(std::ptr::null_mut(), |header| header.as_mut_ptr());
            let skipped = skip.min(len);
            if skipped < len {
                ranges.push(libc::iovec {
                    iov_base: base.wrapping_add(skipped).cast(),
                    iov_len: len - skipped,
                });
            }
            if matches!(work.command, Command::Write { .. }) {
                let (at, len) = (skip - skipped, work.len as usize);
                let room = RANGES_MAX - ranges.len();
                let before = ranges.len();
                ranges.extend(request.whole().part(work.at + at, len - at).take(room + 1));
                if ranges.len() > RANGES_MAX {
                    // The rest follows with the next call.
                    ranges.truncate(RANGES_MAX.max(before));
                    break;
                }
            }
            skip = 0;
        }
    }

    /// `bytes` more were sent.
    fn advance(&mut self, commands: &mut Commands, bytes: usize) {
        let header = match self.replies {
            Replies::Extended => 32,
            Replies::Simple | Replies::Structured => 28,
        };
        let mut sent = self.sent + bytes;
        self.sent = 0;
        while let Some(number) = commands.to_send.front() {
            let Some(work) = commands.work(*number) else {
                commands.to_send.pop_front();
                continue;
            };
            let payload = match work.command {
                Command::Write { .. } => work.len as usize,
                _ => 0,
            };
            if sent < header + payload {
                self.sent = sent;
                return;
            }
            sent -= header + payload;
            if let Some(number) = commands.to_send.pop_front()
                && let Some(work) = commands.work_mut(number)
            {
                work.sent = true;
            }
        }
    }

    /// Ends the first command, whose memory is gone.
    fn give_up_first(&mut self, commands: &mut Commands, disk: &NbdDisk) {
        self.sent = 0;
        if let Some(number) = commands.to_send.pop_front() {
            if let Some(work) = commands.work_mut(number) {
                work.error = Some(libc::EFAULT);
            }
            commands.finish(number, disk);
        }
    }
}

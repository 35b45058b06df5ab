//! What becomes of requests that the disk cannot execute: policies in QEMU's words, and what the queues share about them.
//!
//! Nothing here is on the way of a request that succeeds.

use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use clap::ValueEnum;
use serde::Deserialize;

use crate::io::IoOp;
use crate::log_limit::LogLimit;

/// What the guest gets for a read that fails.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum ReadErrors {
    /// An I/O error.
    #[default]
    Report,
    /// Success, with zeroes for what cannot be read.
    Ignore,
}

/// What the guest gets for everything else that fails.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum WriteErrors {
    /// An I/O error.
    Report,
    /// Success, though the data is lost.
    Ignore,
    /// Nothing until there is room, if there is none (ENOSPC, EDQUOT); else an I/O error.
    #[default]
    Enospc,
}

/// How a disk deals with trouble.
#[derive(Clone, Copy, Debug, Default)]
pub struct TroubleParams {
    /// For reads.
    pub read_errors: ReadErrors,
    /// For everything else.
    pub write_errors: WriteErrors,
    /// A request that takes longer is reported.
    pub io_timeout: Option<Duration>,
}

/// What to do about a request that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The guest gets the error.
    Report,
    /// The guest gets OK.
    Ignore,
    /// It is tried again later.
    Hold,
}

impl TroubleParams {
    /// `final_flush`: flushes fail for good by now, so that trying one again is no use.
    pub(super) fn verdict(&self, op: IoOp, error: &io::Error, final_flush: bool) -> Verdict {
        if !is_the_disks(error) {
            return Verdict::Report;
        }
        let flushes = match op {
            IoOp::Read | IoOp::Salvage => {
                return match self.read_errors {
                    ReadErrors::Report => Verdict::Report,
                    ReadErrors::Ignore => Verdict::Ignore,
                };
            }
            IoOp::Write { durable } | IoOp::WriteZeroes { durable } => durable,
            IoOp::Flush | IoOp::FlushAtRest => true,
            IoOp::Discard | IoOp::RefreshSize | IoOp::LookAnew => false,
        };
        match self.write_errors {
            WriteErrors::Report => Verdict::Report,
            WriteErrors::Ignore => Verdict::Ignore,
            WriteErrors::Enospc if is_full(error) && !(flushes && final_flush) => Verdict::Hold,
            WriteErrors::Enospc => Verdict::Report,
        }
    }
}

/// Whether an error is the disk's, and not the guest's (a range that is no more on the disk, memory that is gone), or an
/// end in sight.
fn is_the_disks(error: &io::Error) -> bool {
    match error.raw_os_error() {
        None => !matches!(
            error.kind(),
            io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported
        ),
        Some(libc::ECANCELED | libc::EFAULT) => false,
        Some(_) => error.kind() != io::ErrorKind::Unsupported,
    }
}

/// Whether somebody has to make room.
fn is_full(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT))
}

/// A disk that stays full is mentioned this often.
const STILL_HELD: Duration = Duration::from_secs(60);

/// What the queues of a disk share about requests in trouble. Any thread.
#[derive(Debug, Default)]
pub struct Trouble {
    /// How to deal with it.
    pub params: TroubleParams,
    limit: LogLimit,
    held: Mutex<Held>,
}

/// Requests that wait for room on the disk.
#[derive(Debug, Default)]
struct Held {
    count: usize,
    since: Option<Instant>,
    /// When that was logged last; its end is then to be logged as well.
    told: Option<Instant>,
}

impl Trouble {
    /// Deals with it in this way.
    pub fn new(params: TroubleParams) -> Self {
        Self {
            params,
            ..Self::default()
        }
    }

    /// Logs a request that failed, unless the same has just been logged.
    pub(super) fn failed(&self, at: &At<'_>, verdict: Verdict, error: &io::Error) {
        let what = match verdict {
            Verdict::Report => "the guest gets an I/O error",
            Verdict::Ignore => "ignored: the guest is told that all is well",
            Verdict::Hold => return,
        };
        let hint = hint(error);
        let At {
            disk,
            queue,
            op,
            sector,
        } = at;
        let Some(suppressed) = self
            .limit
            .pass(what, format_args!("{} {:?}", at.op, error.raw_os_error()))
        else {
            return tracing::debug!(disk, queue, op, sector, %error, "request failed; {what}");
        };
        tracing::warn!(disk, queue, op, sector, %error, suppressed, "request failed{hint}; {what}");
    }

    /// A request waits for room.
    pub(super) fn held(&self, at: &At<'_>, error: &io::Error) {
        let mut held = self.lock();
        held.count += 1;
        if held.since.is_some() {
            return;
        }
        let now = Instant::now();
        held.since = Some(now);
        held.told = self.limit.pass("no room", "").map(|_| now);
        if held.told.is_some() {
            let At { disk, op, sector, .. } = at;
            tracing::warn!(disk, op, sector, %error, "no room on the disk: held, and tried again until there is some");
        }
    }

    /// Requests were tried again, and there was no room.
    pub(super) fn still_held(&self, disk: &str) {
        let mut held = self.lock();
        if let Some(since) = held.since
            && held.told.is_none_or(|told| told.elapsed() >= STILL_HELD)
            && let Some(suppressed) = self.limit.pass("still no room", "")
        {
            held.told = Some(Instant::now());
            let (count, seconds) = (held.count, since.elapsed().as_secs());
            tracing::warn!(
                disk,
                held = count,
                seconds,
                suppressed,
                "still no room on the disk"
            );
        }
    }

    /// Requests wait no more: there is room, or they were given up.
    pub(super) fn released(&self, disk: &str, requests: usize) {
        let mut held = self.lock();
        held.count = held.count.saturating_sub(requests);
        if held.count == 0
            && let Some(since) = held.since.take()
            && held.told.take().is_some()
        {
            let seconds = since.elapsed().as_secs_f32();
            tracing::warn!(disk, seconds, "no request is held for lack of room any more");
        }
    }

    /// Logs a request that takes too long, unless the same has just been logged.
    pub(super) fn late(&self, at: &At<'_>, age: Duration) {
        let Some(suppressed) = self.limit.pass("late", at.op) else {
            return;
        };
        let seconds = age.as_secs_f64();
        let At {
            disk,
            queue,
            op,
            sector,
        } = at;
        tracing::warn!(
            disk,
            queue,
            op,
            sector,
            seconds,
            suppressed,
            "the disk does not answer: request is still in flight"
        );
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        // Nothing panics under the lock.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a log line says about a request.
#[derive(Clone, Copy, Debug)]
pub(super) struct At<'a> {
    pub(super) disk: &'a str,
    pub(super) queue: u16,
    pub(super) op: &'static str,
    /// Of what has one place.
    pub(super) sector: Option<u64>,
}

fn hint(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        None if error.kind() == io::ErrorKind::UnexpectedEof => {
            " (the image ends there: it is shorter than it was, or than SIGHUP has made known)"
        }
        Some(libc::EFAULT) => " (guest memory is gone: its file was cut short, or it has failed)",
        Some(libc::EFBIG) => " (larger than the file system or 'ulimit -f' allows)",
        Some(libc::EROFS) => " (the file system has become read-only)",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WRITE: IoOp = IoOp::Write { durable: false };
    const DURABLE: IoOp = IoOp::Write { durable: true };

    fn verdict(read: ReadErrors, write: WriteErrors, op: IoOp, errno: i32, final_flush: bool) -> Verdict {
        let params = TroubleParams {
            read_errors: read,
            write_errors: write,
            io_timeout: None,
        };
        params.verdict(op, &io::Error::from_raw_os_error(errno), final_flush)
    }

    #[test]
    fn only_what_needs_room_is_held_and_only_while_room_may_help() {
        let zeroes = IoOp::WriteZeroes { durable: false };
        for (op, errno, final_flush, expected) in [
            (WRITE, libc::ENOSPC, false, Verdict::Hold),
            (WRITE, libc::EDQUOT, true, Verdict::Hold),
            (zeroes, libc::ENOSPC, false, Verdict::Hold),
            (IoOp::Discard, libc::ENOSPC, false, Verdict::Hold),
            (DURABLE, libc::ENOSPC, false, Verdict::Hold),
            (DURABLE, libc::ENOSPC, true, Verdict::Report),
            (IoOp::Flush, libc::ENOSPC, false, Verdict::Hold),
            (IoOp::Flush, libc::ENOSPC, true, Verdict::Report),
            (WRITE, libc::EIO, false, Verdict::Report),
            (WRITE, libc::EFBIG, false, Verdict::Report),
            (WRITE, libc::EROFS, false, Verdict::Report),
            (IoOp::Read, libc::ENOSPC, false, Verdict::Report),
        ] {
            let got = verdict(ReadErrors::Report, WriteErrors::Enospc, op, errno, final_flush);
            assert_eq!(got, expected, "{op:?} {errno} {final_flush}");
        }
    }

    #[test]
    fn reads_and_writes_have_policies_of_their_own() {
        use {ReadErrors as R, WriteErrors as W};
        for (read, write, op, expected) in [
            (R::Ignore, W::Report, IoOp::Read, Verdict::Ignore),
            (R::Ignore, W::Report, WRITE, Verdict::Report),
            (R::Report, W::Ignore, IoOp::Read, Verdict::Report),
            (R::Report, W::Ignore, WRITE, Verdict::Ignore),
            (R::Report, W::Ignore, IoOp::Flush, Verdict::Ignore),
            (R::Report, W::Report, WRITE, Verdict::Report),
        ] {
            assert_eq!(verdict(read, write, op, libc::ENOSPC, false), expected, "{op:?}");
        }
    }

    #[test]
    fn what_is_the_guests_fault_is_never_ignored() {
        let params = TroubleParams {
            read_errors: ReadErrors::Ignore,
            write_errors: WriteErrors::Ignore,
            io_timeout: None,
        };
        let cancelled = io::Error::from_raw_os_error(libc::ECANCELED);
        let errors = [
            io::ErrorKind::InvalidInput.into(),
            io::ErrorKind::Unsupported.into(),
            cancelled,
        ];
        for error in errors {
            assert_eq!(params.verdict(WRITE, &error, false), Verdict::Report, "{error}");
        }
        // The kernel's own EINVAL is the storage's: say, an unaligned end of a truncated file with O_DIRECT.
        let einval = io::Error::from_raw_os_error(libc::EINVAL);
        assert_eq!(params.verdict(IoOp::Read, &einval, false), Verdict::Ignore);
    }
}

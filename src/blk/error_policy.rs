//! Policies for requests that the disk cannot execute, in QEMU's words.

use std::io;
use std::time::Duration;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::io::IoOp;

/// The guest's answer to a read that fails.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum ReadErrors {
    /// An I/O error.
    #[default]
    Report,
    /// Success, with zeroes for what cannot be read.
    Ignore,
}

/// The guest's answer to any other request that fails.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum WriteErrors {
    /// An I/O error.
    Report,
    /// Success, though the data is lost.
    Ignore,
    /// Nothing while the disk is full (ENOSPC, EDQUOT); else an I/O error.
    #[default]
    Enospc,
}

/// How a disk deals with requests that fail or take long.
#[derive(Clone, Copy, Debug, Default)]
pub struct ErrorPolicy {
    /// For reads.
    pub read_errors: ReadErrors,
    /// For all other requests.
    pub write_errors: WriteErrors,
    /// Requests that take longer are reported.
    pub io_timeout: Option<Duration>,
}

/// The decision about a request that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The guest gets the error.
    Report,
    /// The guest gets OK.
    Ignore,
    /// The request is tried again later.
    Hold,
}

impl ErrorPolicy {
    /// Decides about a request. `final_flush`: flushes fail for good by now, so that trying one again is no use.
    pub(super) fn verdict(&self, op: IoOp, error: &io::Error, final_flush: bool) -> Verdict {
        if !is_the_disks(op, error) {
            return Verdict::Report;
        }
        let flushes = match op {
            IoOp::Read | IoOp::Salvage => {
                return match self.read_errors {
                    ReadErrors::Report => Verdict::Report,
                    ReadErrors::Ignore => Verdict::Ignore,
                };
            }
            IoOp::Write { durable } | IoOp::ZeroedWrite { durable, .. } | IoOp::WriteZeroes { durable } => {
                durable
            }
            IoOp::Flush | IoOp::FlushAtRest => true,
            IoOp::Leave
            | IoOp::Settle
            | IoOp::Inherit
            | IoOp::Discard
            | IoOp::RefreshSize
            | IoOp::LookAnew => false,
        };
        match self.write_errors {
            WriteErrors::Report => Verdict::Report,
            WriteErrors::Ignore => Verdict::Ignore,
            WriteErrors::Enospc if is_full(error) && !(flushes && final_flush) => Verdict::Hold,
            WriteErrors::Enospc => Verdict::Report,
        }
    }
}

/// True for an error of the disk. False for an error of the guest (a range past the end of the disk, memory that is
/// gone), for requests that the disk does not support, and for those that were cancelled.
fn is_the_disks(op: IoOp, error: &io::Error) -> bool {
    match error.raw_os_error() {
        None if error.kind() == io::ErrorKind::InvalidInput => false,
        Some(libc::ECANCELED | libc::EFAULT) => false,
        _ => !is_unsupported(op, error),
    }
}

/// Returns whether the guest is told that the disk does not support a request. Every disk has to support reads, writes
/// and flushes, so for these such an error is an I/O error.
pub(super) fn is_unsupported(op: IoOp, error: &io::Error) -> bool {
    let is_optional = matches!(op, IoOp::Discard | IoOp::WriteZeroes { .. });
    is_optional && error.kind() == io::ErrorKind::Unsupported
}

/// True if the request succeeds once somebody makes room.
fn is_full(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT))
}

#[cfg(test)]
mod tests {
    use super::*;

    const WRITE: IoOp = IoOp::Write { durable: false };
    const DURABLE: IoOp = IoOp::Write { durable: true };

    fn verdict(read: ReadErrors, write: WriteErrors, op: IoOp, errno: i32, final_flush: bool) -> Verdict {
        let policy = ErrorPolicy {
            read_errors: read,
            write_errors: write,
            io_timeout: None,
        };
        policy.verdict(op, &io::Error::from_raw_os_error(errno), final_flush)
    }

    #[test]
    fn requests_are_held_only_if_room_helps() {
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
    fn reads_and_writes_have_separate_policies() {
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
    fn the_guests_own_errors_are_never_ignored() {
        let policy = ErrorPolicy {
            read_errors: ReadErrors::Ignore,
            write_errors: WriteErrors::Ignore,
            io_timeout: None,
        };
        let cancelled = io::Error::from_raw_os_error(libc::ECANCELED);
        for error in [io::ErrorKind::InvalidInput.into(), cancelled] {
            assert_eq!(policy.verdict(WRITE, &error, false), Verdict::Report, "{error}");
        }
        // EINVAL from the kernel is an error of the disk, for example at an unaligned end of a truncated file with
        // O_DIRECT.
        let einval = io::Error::from_raw_os_error(libc::EINVAL);
        assert_eq!(policy.verdict(IoOp::Read, &einval, false), Verdict::Ignore);
    }

    #[test]
    fn only_optional_requests_can_be_unsupported() {
        let zeroes = IoOp::WriteZeroes { durable: false };
        let error = io::Error::from_raw_os_error(libc::EOPNOTSUPP);
        for (op, expected) in [
            (IoOp::Read, false),
            (WRITE, false),
            (IoOp::Flush, false),
            (IoOp::Discard, true),
            (zeroes, true),
        ] {
            assert_eq!(is_unsupported(op, &error), expected, "{op:?}");
            assert_eq!(is_the_disks(op, &error), !expected, "{op:?}");
        }
    }
}

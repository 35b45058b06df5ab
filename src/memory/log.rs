//! The dirty log: a record of the guest pages that the device writes to while the VM migrates (LOG_SHMFD).
//!
//! The frontend reads and clears the log concurrently. Any thread.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use super::{MappedArea, keep_length};

/// Bytes of guest memory covered by one bit.
const PAGE: u64 = 4096;
/// Bytes of guest memory covered by one byte of the log.
const BYTE: u64 = 8 * PAGE;

/// The reason why a log was refused.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The file ends before the log does.
    #[error("dirty log of {size} bytes at {offset:#x} is beyond the end of its file")]
    BeyondEof {
        /// Size of the log in bytes.
        size: u64,
        /// Offset of the log in its file.
        offset: u64,
    },
    /// The log does not cover the whole memory table.
    #[error("dirty log of {size} bytes does not cover the guest's memory up to {end:#x}")]
    TooSmall {
        /// Size of the log in bytes.
        size: u64,
        /// Guest address after the last region.
        end: u64,
    },
    /// The log could not be mapped.
    #[error("cannot map the dirty log")]
    Io(#[from] io::Error),
}

/// A mapped log with one bit per page. The lowest bit of the first byte is page 0.
#[derive(Debug)]
pub struct DirtyLog {
    area: MappedArea,
}

/// The logging of one ring.
#[derive(Clone, Debug)]
pub struct RingLog {
    /// The log to mark pages in.
    pub log: Arc<DirtyLog>,
    /// Guest address of the used ring, if writes to the used ring are logged as well.
    pub used: Option<u64>,
}

impl DirtyLog {
    /// Maps `size` bytes of `file` from `offset`, a multiple of the page size (SET_LOG_BASE).
    ///
    /// # Errors
    /// The file is too short, or cannot be mapped.
    pub fn map(file: &File, offset: u64, size: u64) -> Result<Self, LogError> {
        keep_length(file);
        let len = file.metadata()?.len();
        if offset.checked_add(size).is_none_or(|end| end > len) {
            return Err(LogError::BeyondEof { size, offset });
        }
        let size = usize::try_from(size).map_err(io::Error::other)?;
        let area = MappedArea::map(file, offset, size)?;
        Ok(Self { area })
    }

    /// Returns whether an access has found a page of the log lost.
    pub(crate) fn is_lost(&self) -> bool {
        self.area.is_lost()
    }

    /// Checks that every page below the guest address `end` has a bit.
    ///
    /// # Errors
    /// The log is too small ([`LogError::TooSmall`]).
    pub fn check_covers(&self, end: u64) -> Result<(), LogError> {
        let size = self.area.len() as u64;
        if end.div_ceil(BYTE) <= size {
            Ok(())
        } else {
            Err(LogError::TooSmall { size, end })
        }
    }

    /// Marks the pages of `len` bytes at a guest address, which have just been written. Pages past the end of the log
    /// are ignored.
    pub fn mark(&self, guest: u64, len: u64) {
        if len == 0 {
            return;
        }
        for page in guest / PAGE..=guest.saturating_add(len - 1) / PAGE {
            let Some(byte) = usize::try_from(page / 8).ok().filter(|&at| at < self.area.len()) else {
                return;
            };
            // SAFETY: within the area; shared with the frontend, hence atomic.
            let byte = unsafe { AtomicU8::from_ptr(self.area.as_ptr().add(byte)) };
            // Release: pairs with the frontend's atomic exchange of the bits; a frontend that sees this bit sees what
            // was written. The bit is stored even if it is set already, because the frontend may have cleared it and
            // copied the page right before our write.
            byte.fetch_or(1 << (page % 8), Ordering::Release);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;
    use crate::memory::memfd;

    /// Creates a log for 64 pages. Returns the log and its file.
    fn log() -> (DirtyLog, File) {
        let file = memfd(c"log", 4096).unwrap();
        (DirtyLog::map(&file, 0, 8).unwrap(), file)
    }

    fn bits(file: &File) -> u128 {
        let mut bytes = [0; 16];
        file.read_exact_at(&mut bytes, 0).unwrap();
        u128::from_le_bytes(bytes)
    }

    #[test]
    fn exactly_the_touched_pages_are_marked() {
        for (guest, len, expected) in [
            (0, 1, 0b1),
            (4095, 1, 0b1),
            (4095, 2, 0b11),
            (4096, 4096, 0b10),
            (4097, 4096, 0b110),
            (0, 0, 0),
            (7 * 4096, 2 * 4096, 0b11 << 7),
            (63 * 4096, 4096, 1 << 63),
        ] {
            let (log, file) = log();
            log.mark(guest, len);
            assert_eq!(bits(&file), expected, "{guest:#x}+{len:#x}");
        }
    }

    #[test]
    fn pages_past_the_log_are_ignored() {
        let (log, file) = log();
        log.mark(64 * 4096, 4096);
        log.mark(u64::MAX, 1);
        log.mark(u64::MAX, u64::MAX);
        assert_eq!(bits(&file), 0);
        log.mark(63 * 4096, u64::MAX);
        assert_eq!(bits(&file), 1 << 63);
    }

    #[test]
    fn log_beyond_its_file_is_refused() {
        for (offset, size) in [(0, 4097), (4096, 1), (u64::MAX, 1), (1, u64::MAX)] {
            let file = memfd(c"log", 4096).unwrap();
            let mapped = DirtyLog::map(&file, offset, size);
            assert!(
                matches!(mapped, Err(LogError::BeyondEof { .. })),
                "{offset} {size}"
            );
        }
        let misaligned = DirtyLog::map(&memfd(c"log", 4096).unwrap(), 1, 8);
        assert!(misaligned.is_err());
    }

    #[test]
    fn loss_is_noticed_if_sealing_fails() {
        let unsealed = tempfile::tempfile_in("/dev/shm").unwrap();
        unsealed.set_len(4096).unwrap();
        let watched = DirtyLog::map(&unsealed, 0, 8).unwrap();
        unsealed.set_len(0).unwrap();
        watched.mark(0, 1);
        assert!(watched.is_lost());
        let (log, file) = log();
        assert!(file.set_len(0).is_err());
        log.mark(0, 1);
        assert!(!log.is_lost());
    }

    #[test]
    fn log_must_cover_the_last_page() {
        let (log, _) = log();
        assert!(log.check_covers(64 * 4096).is_ok());
        assert!(log.check_covers(64 * 4096 + 1).is_err());
        assert!(log.check_covers(u64::MAX).is_err());
    }
}

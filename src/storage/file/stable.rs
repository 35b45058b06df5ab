//! Flushes of an image, and the doubts about what predecessors have flushed.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::RawFile;
use crate::storage::flush::FlushWitness;
use crate::storage::kind::Kind;
use crate::storage::transfer::retry;
use crate::sys;

impl RawFile {
    /// Makes stable all writes, discards and zeroes that completed before this call. Callers that wait at the same time
    /// share one flush.
    ///
    /// # Errors
    /// Those of `fdatasync`. Without O_DIRECT a failure is final: the kernel may have dropped the data that it
    /// could not write, so every later flush fails too, until the storage is opened anew.
    pub fn flush(&self) -> io::Result<()> {
        if !self.flushes {
            return Ok(());
        }
        self.flush_after_check(self.kind == Kind::BlockDevice)
    }

    /// Like [`flush`](Self::flush), while nothing is being written. If possible, this leaves the kernel's report of a
    /// failed write to the next process that opens the file.
    ///
    /// # Errors
    /// Those of [`flush`](Self::flush).
    pub fn flush_at_rest(&self) -> io::Result<()> {
        if !self.flushes {
            return Ok(());
        }
        self.flush_after_check(true)
    }

    fn flush_after_check(&self, check: bool) -> io::Result<()> {
        let written_back = self.written_back.as_ref().filter(|_| check);
        let check = || written_back.map_or(Ok(()), |written_back| written_back.wait(self.size()));
        let take = || sys::file::take_writeback_error(&self.file);
        self.flusher.flush(check, take, || {
            self.dispel_doubt()?;
            retry(|| self.file.sync_data())
        })
    }

    /// Returns whether all further flushes will fail.
    pub fn flushes_fail(&self) -> bool {
        self.flusher.is_over()
    }

    /// Returns whether the last flush failed, so that data written before it may be lost.
    pub fn last_flush_failed(&self) -> bool {
        self.flusher.has_failed()
    }

    /// Makes every flush fail from now on, because a predecessor has lost data.
    pub fn fail_flushes(&self) {
        self.flusher.give_up(libc::EIO);
    }

    /// Replaces `old`, a witness that records the outcome of flushes through the page cache, with `new`, which is told
    /// at once if flushes have failed for good. Each disk on this file has a witness of its own.
    pub fn replace_flush_witness(
        &self,
        old: Option<&Arc<dyn FlushWitness>>,
        new: Option<Arc<dyn FlushWitness>>,
    ) {
        self.flusher.replace_witness(old, new);
    }

    /// Records that a predecessor was killed during a flush whose outcome is unknown.
    ///
    /// The next flush of a file syncs its whole file system, and fails if that reports a loss. Returns false for a
    /// block device, where no such check exists.
    pub fn doubt_last_flush(&self) -> bool {
        let can_be_dispelled = self.kind == Kind::Regular;
        // Relaxed: the next flush can only come from a ring that starts later, which orders this.
        self.doubtful.store(can_be_dispelled, Ordering::Relaxed);
        can_be_dispelled
    }

    /// Syncs the whole file system if a predecessor was killed during a flush. That predecessor may have taken the
    /// file's own report, but not the one of the file system.
    fn dispel_doubt(&self) -> io::Result<()> {
        // Relaxed: one flush runs at a time.
        if !self.doubtful.load(Ordering::Relaxed) {
            return Ok(());
        }
        let synced = retry(|| sys::file::sync_file_system(&self.file));
        if let Err(error) = &synced {
            // The kernel reports this only once.
            self.flusher.give_up(error.raw_os_error().unwrap_or(libc::EIO));
        }
        self.doubtful.store(false, Ordering::Relaxed);
        synced
    }
}

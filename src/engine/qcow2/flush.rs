//! Makes writes stable, and leaves an image clean for its next user. Any thread.

use std::collections::VecDeque;
use std::io;
use std::ops::Range;

use super::clusters::Clusters;
use super::disk::Qcow2Disk;
use super::tables::Tables;

impl Qcow2Disk {
    /// Makes all completed writes stable, and frees the clusters that are not in use any more.
    ///
    /// # Errors
    /// Those of [`RawFile::flush`](crate::storage::RawFile::flush), or the refcounts are corrupt.
    pub fn flush(&self) -> io::Result<()> {
        let tables = self.tables();
        self.flush_with(&tables)
    }

    pub(super) fn flush_with(&self, tables: &Tables) -> io::Result<()> {
        let released = match &mut *self.state.clusters() {
            Some(clusters) => clusters.take_released(),
            None => Vec::new(),
        };
        let flushed = self.flush_data().and_then(|()| match &self.data_file {
            Some(_) => self.file.flush(),
            None => Ok(()),
        });
        if released.is_empty() {
            return flushed;
        }
        self.with_clusters(tables, |clusters| match flushed {
            Ok(()) => {
                let unused = clusters.free(&self.file, released)?;
                self.give_back(tables, &unused);
                Ok(())
            }
            Err(error) => {
                clusters.release(released);
                Err(error)
            }
        })
    }

    /// Makes data stable that has been written to clusters.
    pub(super) fn flush_data(&self) -> io::Result<()> {
        self.data().flush()
    }

    /// Returns the error of a request. A lack of space is an I/O error if flushes fail for good: clusters are taken with a
    /// flush, so a request that is tried again once there is room would fail again.
    pub(super) fn without_false_hope(&self, error: io::Error) -> io::Error {
        match error.raw_os_error() {
            Some(libc::ENOSPC | libc::EDQUOT) if self.own_files().any(|file| file.flushes_fail()) => {
                io::Error::from_raw_os_error(libc::EIO)
            }
            _ => error,
        }
    }

    /// Makes everything stable while nothing is being written, and leaves the image as clean as it can be: no cluster is
    /// reserved, and the dirty bit is clear.
    ///
    /// # Errors
    /// Those of [`flush`](Self::flush).
    pub(super) fn flush_at_rest(&self) -> io::Result<()> {
        let tables = self.tables();
        self.flush_with(&tables)?;
        self.leave_clean(&tables, || self.file.flush())?;
        if let Some(data) = &self.data_file {
            data.flush_at_rest()?;
        }
        self.file.flush_at_rest()?;
        self.state.set_in_use(false);
        Ok(())
    }

    /// Gives up what is reserved, and clears the dirty bit, before the process ends. This does not flush, so that the next
    /// process sees the kernel's reports of failed writes. Call it while nothing is being written.
    ///
    /// # Errors
    /// The file cannot be written. The image stays marked as dirty then.
    pub(super) fn leave(&self) -> io::Result<()> {
        self.check_writable()?;
        let tables = self.tables();
        if let Some(clusters) = &mut *self.state.clusters() {
            let released = clusters.take_released();
            if !released.is_empty() {
                // After a power cut, old entries may be back. So the dirty bit stays, and so does the data.
                clusters.give_up_reserved(&self.file, &tables)?;
                clusters.free(&self.file, released)?;
                return Ok(());
            }
        }
        // After a power cut, clusters may be leaked although the dirty bit is clear.
        self.leave_clean(&tables, || Ok(()))
    }

    /// Gives up what is reserved, and clears the dirty bit, so that another process of this host can take over the image
    /// without a repair. Flushes only if clusters have lost their entries: these must be gone for good before the clusters
    /// are used again. Call it while nothing is being written.
    ///
    /// # Errors
    /// The image is corrupt, or cannot be written or flushed. The dirty bit stays then.
    pub(super) fn settle(&self) -> io::Result<()> {
        if self.check_writable().is_err() {
            return Err(io::Error::other(
                "the image is corrupt: repair it with qemu-img check -r all",
            ));
        }
        let tables = self.tables();
        let has_released = |clusters: &Clusters| clusters.waiting() > 0;
        if self.state.clusters().as_ref().is_some_and(has_released) {
            self.flush_with(&tables)?;
        }
        // A power cut may leak clusters, as after `leave`.
        self.leave_clean(&tables, || Ok(()))
    }

    /// Gives the space of clusters that nobody uses back to the file system.
    fn give_back(&self, tables: &Tables, unused: &VecDeque<Range<u64>>) {
        let bits = tables.header.cluster.bits();
        for range in unused {
            // Only the space is at stake.
            let _ = self
                .file
                .give_back(range.start << bits, (range.end - range.start) << bits);
        }
    }

    /// Gives up what is reserved, and clears the dirty bit. `flush` makes refcounts stable before that.
    fn leave_clean(&self, tables: &Tables, flush: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        let mut place = self.state.clusters();
        let Some(clusters) = &mut *place else {
            return Ok(());
        };
        clusters.give_up_reserved(&self.file, tables)?;
        if clusters.waiting() > 0 || self.check_writable().is_err() {
            return Ok(());
        }
        *place = None;
        if tables.header.version > 2 {
            flush()?;
        }
        self.set_dirty(tables, false)
    }
}

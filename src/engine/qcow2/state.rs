//! The state of an image that is written to, besides its tables. Any thread.

use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use super::claims::Claims;
use super::clusters::{Clusters, Run};
use super::disk::Qcow2Disk;
use super::tables::Tables;
use crate::qcow2::{Corruption, Field, Header};

/// The state of an image that is written to.
#[derive(Debug, Default)]
pub(super) struct State {
    /// The image was locked for writing.
    may_write: AtomicBool,
    /// The image is ready for writes, and locked.
    in_use: AtomicBool,
    /// The image turned out to be corrupt. Nothing is written any more.
    is_corrupt: AtomicBool,
    /// The incompatible features in the image.
    features: AtomicU64,
    /// Clusters whose entries are being changed.
    pub(super) claims: Claims,
    /// Held while an L2 table is made.
    pub(super) l1: Mutex<()>,
    /// Present from the first allocation on, until the image is at rest.
    clusters: Mutex<Option<Clusters>>,
    /// Notified when clusters have been reserved.
    grown: Condvar,
}

impl State {
    /// Says whether the image is locked for writing.
    pub(super) fn set_may_write(&self, may_write: bool) {
        // Relaxed: requests come only after the lock was taken, which orders this.
        self.may_write.store(may_write, Ordering::Relaxed);
    }

    pub(super) fn may_write(&self) -> bool {
        self.may_write.load(Ordering::Relaxed)
    }

    /// Says whether the image is ready for writes, and locked.
    pub(super) fn set_in_use(&self, in_use: bool) {
        self.in_use.store(in_use, Ordering::Relaxed);
    }

    pub(super) fn in_use(&self) -> bool {
        self.in_use.load(Ordering::Relaxed)
    }

    /// Forgets what it knows, because another process has used the image.
    pub(super) fn look_anew(&self, header: &Header) {
        self.features.store(header.incompatible, Ordering::Relaxed);
        self.is_corrupt.store(header.corrupt, Ordering::Relaxed);
        *self.clusters() = None;
    }

    /// Waits until another thread has reserved clusters, or failed to.
    fn wait_for_growth(&self) {
        let mut place = self.clusters();
        while place.as_ref().is_some_and(|clusters| clusters.is_growing) {
            place = self.grown.wait(place).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn clusters(&self) -> MutexGuard<'_, Option<Clusters>> {
        // After a panic, clusters may be leaked, but none is used twice: they are taken before they are used.
        self.clusters.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Qcow2Disk {
    /// Fails unless the image can be written to.
    ///
    /// # Errors
    /// It was opened for reading (EROFS), or is corrupt (EIO).
    pub(super) fn check_writable(&self) -> io::Result<()> {
        if self.limits().read_only {
            return Err(io::Error::from_raw_os_error(libc::EROFS));
        }
        match self.state.is_corrupt.load(Ordering::Relaxed) {
            true => Err(io::Error::from_raw_os_error(libc::EIO)),
            false => Ok(()),
        }
    }

    /// Runs `work` on the clusters of the image. The image is marked as dirty before.
    pub(super) fn with_clusters<T>(
        &self,
        tables: &Tables,
        work: impl FnOnce(&mut Clusters) -> io::Result<T>,
    ) -> io::Result<T> {
        let mut clusters = self.state.clusters();
        if clusters.is_none() {
            let new = Clusters::read(&self.file, tables)?;
            self.set_dirty(tables, true)?;
            *clusters = Some(new);
        }
        work(clusters.as_mut().expect("just made"))
    }

    /// Takes up to `count` new clusters that are side by side.
    pub(super) fn allocate(&self, tables: &Tables, count: u64) -> io::Result<Run> {
        let cluster = tables.header.cluster.bytes();
        loop {
            let (run, grows) = self.with_clusters(tables, |clusters| {
                let run = clusters.take(count);
                let grows = !clusters.is_growing && (run.is_none() || clusters.is_low(cluster));
                clusters.is_growing |= grows;
                Ok((run, grows))
            })?;
            // Others go on with what is left.
            let grown = if grows {
                self.reserve(tables, count)
            } else {
                Ok(())
            };
            if let Some(run) = run {
                // A failure concerns only those who need what is missing.
                return Ok(run);
            }
            grown?;
            if !grows {
                self.state.wait_for_growth();
            }
        }
    }

    /// Takes a new cluster that reads as zeroes, unless that would have to wait. Only for images in memory, where no flush
    /// waits for a device.
    pub(super) fn try_allocate(&self, tables: &Tables) -> Option<Run> {
        let mut place = self.state.clusters.try_lock().ok()?;
        let clusters = place.as_mut()?;
        if let Some(run) = clusters.take_fresh() {
            return Some(run);
        }
        // What is left may have to be filled with zeroes.
        if clusters.is_growing || !clusters.is_empty() {
            return None;
        }
        let found = clusters.reserve(&self.file, tables, 1).ok()?;
        self.file.flush().ok()?;
        clusters.add_reserved(found);
        clusters.take_fresh()
    }

    /// Reserves more clusters. The caller has set `is_growing`.
    fn reserve(&self, tables: &Tables, least: u64) -> io::Result<()> {
        let found = self.with_clusters(tables, |clusters| {
            let found = clusters.reserve(&self.file, tables, least);
            clusters.is_growing = found.is_ok();
            found
        });
        // Without the lock, so that others can take what is left.
        let found = found.and_then(|found| self.file.flush().map(|()| found));
        let grown = self.with_clusters(tables, |clusters| {
            clusters.is_growing = false;
            found.map(|found| clusters.add_reserved(found))
        });
        self.state.grown.notify_all();
        grown
    }

    /// Releases clusters that have lost an entry. The image has the new entry already.
    pub(super) fn release(&self, tables: &Tables, list: Vec<Range<u64>>) -> io::Result<()> {
        /// Number of releases that cause a flush.
        const MANY: usize = 4096;
        if list.is_empty() {
            return Ok(());
        }
        let waiting = self.with_clusters(tables, |clusters| {
            clusters.release(list);
            Ok(clusters.waiting())
        })?;
        match waiting > MANY {
            true => self.flush_with(tables),
            false => Ok(()),
        }
    }

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

    /// Sets or clears the dirty bit. A set bit is stable before this returns.
    pub(super) fn set_dirty(&self, tables: &Tables, dirty: bool) -> io::Result<()> {
        let old = self.state.features.load(Ordering::Relaxed);
        let new = match dirty {
            true => old | Header::DIRTY,
            false => old & !Header::DIRTY,
        };
        if tables.header.version < 3 || old == new {
            return Ok(());
        }
        self.write_features(new)?;
        if dirty { self.file.flush() } else { Ok(()) }
    }

    fn write_features(&self, features: u64) -> io::Result<()> {
        self.file
            .write_bytes(&features.to_be_bytes(), Field::Incompatible.offset())?;
        self.state.features.store(features, Ordering::Relaxed);
        Ok(())
    }

    /// Marks the image as corrupt if an error of a request says so. Nothing is written to it from then on.
    pub(super) fn watch(&self, result: io::Result<()>) -> io::Result<()> {
        if let Err(error) = &result
            && let Some(corruption) = error
                .get_ref()
                .and_then(|source| source.downcast_ref::<Corruption>())
            && self.state.may_write()
            && !self.state.is_corrupt.swap(true, Ordering::Relaxed)
        {
            tracing::error!(
                disk = self.path().display().to_string(), error = %corruption,
                "the image is marked as corrupt, and nothing is written to it any more: repair it with qemu-img check -r all"
            );
            let version = self.tables().header.version;
            let features = self.state.features.load(Ordering::Relaxed) | Header::CORRUPT;
            let marked = match version {
                2 => Ok(()),
                _ => self.write_features(features).and_then(|()| self.file.flush()),
            };
            if let Err(error) = marked {
                tracing::error!(%error, "the image cannot be marked as corrupt");
            }
        }
        result
    }
}

//! Takes clusters for new data, and releases those that have lost their entries. Any thread.

use std::io;
use std::ops::Range;

use super::clusters::{Clusters, Run};
use super::disk::Qcow2Disk;
use super::tables::Tables;

impl Qcow2Disk {
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

    /// Marks the image as dirty, before entries lose their clusters.
    pub(super) fn mark_as_dirty(&self, tables: &Tables) -> io::Result<()> {
        self.with_clusters(tables, |_| Ok(()))
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
        if self.file.flush().is_err() {
            clusters.unreserve(&self.file, &found);
            return None;
        }
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
        let found = found.map(|found| (found, self.file.flush()));
        let grown = self.with_clusters(tables, |clusters| {
            clusters.is_growing = false;
            let (found, flushed) = found?;
            match flushed {
                Ok(()) => clusters.add_reserved(found),
                Err(_) => clusters.unreserve(&self.file, &found),
            }
            flushed
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
}

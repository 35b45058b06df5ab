//! Discards and zeroes: clusters that lose their data. Workers only.

use std::io;
use std::ops::Range;

use super::disk::{Backing, Qcow2Disk};
use super::tables::{Tables, corrupt};
use crate::qcow2::{Entry, Header};
use crate::storage::zero_memory;

/// The new state of clusters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    /// They read as zeroes, and their space is given back.
    Discard,
    /// They read as zeroes, and clusters that are allocated stay so.
    Zero,
    /// They are not part of the disk any more.
    Forget,
}

impl Qcow2Disk {
    /// Discards a range: its whole clusters read as zeroes and are freed, the rest stays as it is.
    ///
    /// # Errors
    /// Those of [`write`](Self::write).
    pub fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.check_writable()?;
        let tables = self.tables();
        let range = on_disk(&tables, offset, len)?;
        if self.zeroes_as_data(&tables) {
            return Ok(());
        }
        let (_, whole, _) = split(&tables, range);
        self.change_range(&tables, whole, Change::Discard)
    }

    /// Makes a range read as zeroes. With `may_unmap` the space of whole clusters is freed.
    ///
    /// # Errors
    /// Those of [`write`](Self::write).
    pub fn write_zeroes(&self, offset: u64, len: u64, may_unmap: bool) -> io::Result<()> {
        self.check_writable()?;
        let tables = self.tables();
        let range = on_disk(&tables, offset, len)?;
        let change = match may_unmap {
            true => Change::Discard,
            false => Change::Zero,
        };
        self.zero_range(&tables, range, change)
    }

    fn zero_range(&self, tables: &Tables, range: Range<u64>, change: Change) -> io::Result<()> {
        if self.zeroes_as_data(tables) {
            return self.write_zero_bytes(tables, range);
        }
        let (before, whole, after) = split(tables, range);
        self.write_zero_bytes(tables, before)?;
        self.change_range(tables, whole, change)?;
        self.write_zero_bytes(tables, after)
    }

    /// Makes a new part of the disk read as zeroes.
    pub(super) fn zero_part(&self, tables: &Tables, range: Range<u64>) -> io::Result<()> {
        self.zero_range(tables, range, Change::Discard)
    }

    /// Frees the clusters of a range that will not be part of the disk any more.
    pub(super) fn forget(&self, tables: &Tables, range: Range<u64>) -> io::Result<()> {
        match range.is_empty() {
            true => Ok(()),
            false => self.change_range(tables, range, Change::Forget),
        }
    }

    /// Returns whether zeroes are written as data, because the image cannot say that a cluster is zero.
    fn zeroes_as_data(&self, tables: &Tables) -> bool {
        tables.header.version == 2 && self.may_have_backing(tables)
    }

    /// Returns whether unallocated clusters may have data of a backing file, also for others who open this image.
    fn may_have_backing(&self, tables: &Tables) -> bool {
        !matches!(self.backing, Backing::None) || tables.header.backing_file.is_some()
    }

    /// Writes zeroes where the range does not read as zeroes already.
    fn write_zero_bytes(&self, tables: &Tables, range: Range<u64>) -> io::Result<()> {
        if range.is_empty() || !self.is_raw_data(tables) && self.reads_as_zeroes(tables, range.clone())? {
            return Ok(());
        }
        let mut at = range.start;
        while at < range.end {
            let memory = zero_memory(range.end - at);
            let end = at + memory.len() as u64;
            self.write_range(tables, &memory, at..end)?;
            at = end;
        }
        Ok(())
    }

    /// Returns whether the data file must read as a raw image does.
    fn is_raw_data(&self, tables: &Tables) -> bool {
        self.data_file.is_some() && tables.header.autoclear & Header::RAW_DATA != 0
    }

    /// Changes whole clusters, one slice of an L2 table after the other.
    fn change_range(&self, tables: &Tables, range: Range<u64>, change: Change) -> io::Result<()> {
        let slice = tables.layout.bytes_per_slice();
        let mut at = range.start;
        while at < range.end {
            let end = range.end.min(at - at % slice + slice);
            self.change_in_slice(tables, at..end, change)?;
            at = end;
        }
        Ok(())
    }

    fn change_in_slice(&self, tables: &Tables, range: Range<u64>, change: Change) -> io::Result<()> {
        let (layout, cluster) = (tables.layout, tables.header.cluster);
        let bits = cluster.bits();
        let _claim = self
            .state
            .claims
            .take(range.start >> bits..range.end.div_ceil(cluster.bytes()));
        let is_plain = !self.may_have_backing(tables);
        if is_plain && tables.slice_offset(range.start)?.is_none() {
            return Ok(());
        }
        let offset = self.own_table(tables, range.start)?;
        let mut released = Vec::new();
        {
            // Alone: nobody is writing to the clusters that are released.
            let slice = tables.slice_alone(&self.file, range.start, offset)?;
            let starts = (range.start..range.end).step_by(cluster.in_memory());
            let old: Vec<(u64, Entry)> = starts.map(|start| (start, slice.entry(start))).collect();
            let mut bytes = Vec::with_capacity(old.len() * 16);
            let mut new = Vec::with_capacity(old.len());
            for (start, entry) in &old {
                let changed = self.changed(tables, *entry, change, is_plain);
                if let Some(reference) = entry.reference(layout).map_err(corrupt)?
                    && changed.reference(layout).map_err(corrupt)?.is_none()
                {
                    released.push(reference.clusters);
                }
                bytes.extend(changed.to_bytes(layout));
                new.push((*start, changed));
            }
            if old == new {
                return Ok(());
            }
            if !released.is_empty() {
                // From the next write on, their refcounts are too high.
                self.mark_as_dirty(tables)?;
            }
            self.file
                .write_bytes(&bytes, offset + layout.entry_in_slice(range.start))?;
            new.iter().for_each(|(start, entry)| slice.set(*start, *entry));
            if let Some(data) = &self.data_file {
                self.clear_data(tables, data, range.clone(), change)?;
            }
        }
        self.release(tables, released)
    }

    /// Clears what a data file has of clusters that read as zeroes now.
    fn clear_data(
        &self,
        tables: &Tables,
        data: &crate::storage::RawFile,
        range: Range<u64>,
        change: Change,
    ) -> io::Result<()> {
        let len = range.end - range.start;
        match (self.is_raw_data(tables), change) {
            (true, change) => data.zero_growing(range.start, len, change != Change::Zero),
            (false, Change::Discard | Change::Forget) => data.give_back(range.start, len),
            (false, Change::Zero) => Ok(()),
        }
    }

    /// Returns what becomes of an entry. `is_plain`: unallocated clusters read as zeroes.
    fn changed(&self, tables: &Tables, entry: Entry, change: Change, is_plain: bool) -> Entry {
        let layout = tables.layout;
        let has_zeroes = tables.header.version > 2;
        match change {
            _ if is_plain && entry == Entry::default() => entry,
            // A data file that is a raw image as well stays mapped.
            _ if self.is_raw_data(tables) => entry.zeroed(layout, true),
            Change::Zero if has_zeroes => entry.zeroed(layout, true),
            Change::Forget if !has_zeroes => Entry::default(),
            _ if is_plain => Entry::default(),
            _ => entry.zeroed(layout, false),
        }
    }
}

/// Returns a range of the disk.
fn on_disk(tables: &Tables, offset: u64, len: u64) -> io::Result<Range<u64>> {
    match offset.checked_add(len) {
        Some(end) if end <= tables.header.size => Ok(offset..end),
        _ => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "the range ends past the end of the disk",
        )),
    }
}

/// Splits a range into the part before its first whole cluster, the whole clusters, and the rest. The last cluster of a
/// disk counts as whole.
fn split(tables: &Tables, range: Range<u64>) -> (Range<u64>, Range<u64>, Range<u64>) {
    let cluster = tables.header.cluster;
    let start = range.start.next_multiple_of(cluster.bytes());
    let end = match range.end == tables.header.size {
        true => range.end,
        false => range.end - cluster.within(range.end),
    };
    match start < end {
        true => (range.start..start, start..end, end..range.end),
        false => (range.clone(), range.end..range.end, range.end..range.end),
    }
}

//! Reads and writes that do not wait. Any thread, above all IOThreads.
//!
//! Reads take no lock: they look at the tables, read, and look again. Writes to clusters that have valid data hold the
//! slice of the L2 table. If the image is on a file system in memory, where no write waits for a device, clusters are
//! allocated here as well, as long as nothing has to be copied.

use smallvec::SmallVec;

use super::cache::HeldSlice;
use super::disk::{Backing, Qcow2Disk};
use super::tables::Tables;
use crate::io::IoVecs;
use crate::qcow2::{Entry, Place, Target};
use crate::storage::Nowait;

impl Qcow2Disk {
    /// Like [`read`](Self::read), but never waits. Returns false if it would have to wait, if the data is in several
    /// places, or after an error.
    pub fn try_read(&self, iov: &IoVecs, guest: u64) -> bool {
        self.try_tables()
            .is_some_and(|tables| self.try_read_from(&tables, iov, guest))
    }

    /// As [`try_read`](Self::try_read), with `tables` that the caller has locked.
    pub(super) fn try_read_from(&self, tables: &Tables, iov: &IoVecs, guest: u64) -> bool {
        let len = iov.len() as u64;
        if guest.checked_add(len).is_none_or(|end| end > tables.header.size) {
            return false;
        }
        let found = tables.find_cached(guest, len);
        let Some((extent, slice)) = found.filter(|(extent, _)| extent.len == len) else {
            return false;
        };
        match (extent.place, &self.backing) {
            (Place::Data(offset), _) => {
                // A cluster may be taken away while it is read.
                self.data().try_read_growing(iov, offset) && slice.is_none_or(|slice| slice.is_right())
            }
            (Place::Zero, _) | (Place::Backing, Backing::None) => {
                iov.write_zeroes();
                !iov.has_lost()
            }
            (Place::Backing, Backing::Raw(file)) => file.try_readv(iov, guest),
            (Place::Backing, Backing::Qcow2(below)) => below.try_read(iov, guest),
            (Place::Compressed(..), _) => false,
        }
    }

    /// Writes `memory` from a guest offset on, unless that would have to wait. Returns false then, or after an error, and
    /// a part may have been written. `tables` are those of this image.
    pub(super) fn try_write(&self, tables: &Tables, memory: &IoVecs, guest: u64) -> bool {
        let len = memory.len() as u64;
        let end = guest.checked_add(len).filter(|end| *end <= tables.header.size);
        if end.is_none() || self.check_writable().is_err() {
            return false;
        }
        let Ok(Some(offset)) = tables.slice_offset(guest) else {
            return false;
        };
        let Some(slice) = tables.try_slice(guest, offset) else {
            return false;
        };
        match slice.in_place(guest, len) {
            Ok(Some((host, found))) if found == len => self.data().try_write_growing(memory, host),
            Ok(None) => self.try_map(tables, memory, guest, &slice, offset),
            _ => false,
        }
    }

    /// Writes `memory` to a new cluster if nothing has to be copied or made stable before. `held` is the slice for the
    /// guest offset, which begins at `offset` in the image.
    fn try_map(
        &self,
        tables: &Tables,
        memory: &IoVecs,
        guest: u64,
        held: &HeldSlice<'_>,
        offset: u64,
    ) -> bool {
        let (layout, cluster) = (tables.layout, tables.header.cluster);
        let within = cluster.within(guest);
        let end = within + memory.len() as u64;
        let reads_as_zeroes = |entry: Entry| {
            entry.is_vacant(layout) && (matches!(self.backing, Backing::None) || entry.is_zero(layout))
        };
        if self.data_file.is_some()
            || self.file.nowait() != Nowait::Memory
            || end > cluster.bytes()
            || !tables.l1_entry(guest).is_copied()
            || !reads_as_zeroes(held.entry(guest))
        {
            return false;
        }
        let number = guest >> cluster.bits();
        let Some(_claim) = self.state.claims.try_take(number..number + 1) else {
            return false;
        };
        // Somebody may have had a claim before.
        let old = held.entry(guest);
        if !reads_as_zeroes(old) {
            return false;
        }
        let Some(run) = self.try_allocate(tables) else {
            return false;
        };
        let host = run.first << cluster.bits();
        // The new cluster reads as zeroes, so nothing is written around the data, and no order of writes is needed.
        if !self.data().try_write_growing(memory, host + within) {
            // No entry points to it yet. If it cannot be released, it is leaked.
            let clusters = run.first..run.first + run.count;
            let _ = self.release(tables, vec![clusters]);
            return false;
        }
        let entry = old.written(layout, host, old.copied_part(layout, &(within..end), Target::New));
        let bytes: SmallVec<[u8; 16]> = entry.to_bytes(layout).collect();
        let place = offset + layout.entry_in_slice(guest);
        if self.file.write_bytes(&bytes, place).is_err() {
            return false;
        }
        held.set(guest, entry);
        true
    }
}

//! Writes: in place, or to new clusters. Workers only.
//!
//! A write to clusters that have valid data of their own is nothing but that write. All others claim their clusters, so
//! that nobody else maps them meanwhile, and end with the new L2 entries, which are written last.

use std::io;
use std::ops::Range;

use super::claims::Claim;
use super::disk::{Backing, Qcow2Disk};
use super::read_whole::read_whole;
use super::tables::{Tables, corrupt};
use crate::io::IoVecs;
use crate::qcow2::{Entry, L1Entry, Place, Slice, SliceLayout, Target};
use crate::storage::Gathered;

/// The memory of a request from some byte on.
#[derive(Clone, Copy, Debug)]
struct Source<'a> {
    memory: &'a IoVecs,
    at: usize,
}

/// Consecutive clusters that are mapped anew in one step.
#[derive(Debug)]
struct Step {
    /// The bytes of the disk that the guest writes.
    guest: Range<u64>,
    /// The bytes of the disk that are written: the guest's, and what is copied around them.
    written: Range<u64>,
    /// The offset in the data file of the first cluster.
    host: u64,
    /// The first byte of the disk in the first cluster.
    first: u64,
    /// The new clusters read as zeroes.
    fresh: bool,
    /// The clusters of the image that were allocated for this step.
    allocated: Range<u64>,
    old: Vec<Entry>,
}

impl Qcow2Disk {
    /// Writes `memory` from a guest offset on.
    ///
    /// # Errors
    /// The range is not on the disk, the image is read-only or corrupt, or a file cannot be read or written. A part may
    /// have been written.
    pub fn write(&self, memory: &IoVecs, guest: u64) -> io::Result<()> {
        self.check_writable()?;
        let tables = self.tables();
        let len = memory.len() as u64;
        let end = guest.checked_add(len).filter(|end| *end <= tables.header.size);
        let end = end.ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::InvalidInput,
                "the range ends past the end of the disk",
            )
        })?;
        self.write_range(&tables, memory, guest..end)
    }

    /// Writes `memory` to a range of the disk of the same length.
    pub(super) fn write_range(&self, tables: &Tables, memory: &IoVecs, range: Range<u64>) -> io::Result<()> {
        let mut guest = range.start;
        while guest < range.end {
            let at = usize::try_from(guest - range.start).expect("within the memory");
            let source = Source { memory, at };
            let done = match self.overwrite(tables, source, guest..range.end)? {
                0 => self.map_and_write(tables, source, guest..range.end)?,
                done => done,
            };
            guest += done;
        }
        Ok(())
    }

    /// Writes as much of the range as is in place. Returns the number of bytes.
    fn overwrite(&self, tables: &Tables, source: Source<'_>, range: Range<u64>) -> io::Result<u64> {
        let Some(offset) = tables.slice_offset(range.start)? else {
            return Ok(0);
        };
        let slice = tables.slice(&self.file, range.start, offset)?;
        let found = slice.in_place(range.start, range.end - range.start);
        let Some((host, len)) = found.map_err(corrupt)? else {
            return Ok(0);
        };
        let data = Gathered {
            before: &[],
            memory: source.memory,
            at: source.at,
            len: usize::try_from(len).expect("within the memory"),
            after: &[],
        };
        // While the slice is held, the cluster stays that of this entry.
        self.data().write_gathered(&data, host)?;
        Ok(len)
    }

    /// Maps the first clusters of the range anew, and writes their data. Returns the number of bytes: 0 if they have been
    /// mapped meanwhile.
    fn map_and_write(&self, tables: &Tables, source: Source<'_>, range: Range<u64>) -> io::Result<u64> {
        let layout = tables.layout;
        let slice_end = range.start - range.start % layout.bytes_per_slice() + layout.bytes_per_slice();
        let range = range.start..range.end.min(slice_end);
        let bits = tables.header.cluster.bits();
        let mut claim = self
            .state
            .claims
            .take(range.start >> bits..((range.end - 1) >> bits) + 1);
        let offset = self.own_table(tables, range.start)?;
        let Some(step) = self.plan(tables, range, offset)? else {
            return Ok(0);
        };
        claim.shorten(((step.guest.end - 1) >> bits) + 1);
        if let Err(error) = self.execute_step(tables, source, &step) {
            // No entry points to them yet. If they cannot be released either, they are leaked.
            let _ = self.release(tables, vec![step.allocated]);
            return Err(error);
        }
        self.link(tables, &step, offset, &claim)?;
        Ok(step.guest.end - step.guest.start)
    }

    /// Makes sure that only the active layer uses the L2 table for a guest offset. Returns the offset of the slice.
    pub(super) fn own_table(&self, tables: &Tables, guest: u64) -> io::Result<u64> {
        let own = |tables: &Tables| match tables.l1_entry(guest).is_copied() {
            true => tables.slice_offset(guest),
            false => Ok(None),
        };
        if let Some(offset) = own(tables)? {
            return Ok(offset);
        }
        let _alone = self.state.l1.lock();
        if let Some(offset) = own(tables)? {
            return Ok(offset);
        }
        let cluster = tables.header.cluster;
        let old = tables.l1_entry(guest).l2_table(cluster).map_err(corrupt)?;
        let mut table = vec![0; cluster.in_memory()];
        if let Some(old) = old {
            read_whole(&self.file, &mut table, old)?;
        }
        let new = self.allocate(tables, 1)?.first << cluster.bits();
        // The table is stable before the L1 table points to it.
        let written = self
            .file
            .write_bytes(&table, new)
            .and_then(|()| self.file.flush());
        if let Err(error) = written {
            let first = new >> cluster.bits();
            let unused = first..first + 1;
            let _ = self.release(tables, vec![unused]);
            return Err(error);
        }
        let entry = L1Entry::of_own(new);
        let place = tables.header.l1_table_offset + tables.l1_index(guest) as u64 * 8;
        self.file.write_bytes(&entry.0.to_be_bytes(), place)?;
        tables.set_l1_entry(guest, entry);
        let old = old.map(|old| old >> cluster.bits());
        self.release(tables, old.map(|old| old..old + 1).into_iter().collect())?;
        tables
            .slice_offset(guest)?
            .ok_or_else(|| io::Error::other("the L2 table was just made"))
    }

    /// Decides how the first clusters of the range are mapped. Returns `None` if the first one is in place.
    fn plan(&self, tables: &Tables, range: Range<u64>, offset: u64) -> io::Result<Option<Step>> {
        let (layout, cluster) = (tables.layout, tables.header.cluster);
        let first = range.start - cluster.within(range.start);
        let mut old = Vec::new();
        let mut kind: Option<Target> = None;
        let mut at = first;
        {
            let slice = tables.slice(&self.file, range.start, offset)?;
            while at < range.end {
                let entry = slice.entry(at);
                let within = range.start.max(at) - at..range.end.min(at + cluster.bytes()) - at;
                let target = entry.target(layout, within).map_err(corrupt)?;
                let goes_on = match (kind, target) {
                    (_, Target::InPlace(_)) => false,
                    (None, _) => true,
                    (Some(Target::New), Target::New) => true,
                    (Some(Target::Reserved(host)), Target::Reserved(next)) => host + (at - first) == next,
                    _ => false,
                };
                if !goes_on {
                    break;
                }
                kind = kind.or(Some(target));
                old.push(entry);
                at += cluster.bytes();
            }
        }
        let len = old.len() as u64;
        let (host, count, fresh, allocated) = match (kind, &self.data_file) {
            (None | Some(Target::InPlace(_)), _) => return Ok(None),
            (Some(Target::Reserved(host)), _) => (host, len, false, 0..0),
            // In a data file, data is where it is on the disk.
            (Some(Target::New), Some(_)) => (first, len, false, 0..0),
            (Some(Target::New), None) => {
                let run = self.allocate(tables, len)?;
                let clusters = run.first..run.first + run.count;
                (run.first << cluster.bits(), run.count, run.fresh, clusters)
            }
        };
        old.truncate(usize::try_from(count).expect("no more than there are"));
        let guest = range.start..range.end.min(first + (count << cluster.bits()));
        let written = written_part(layout, &old, first, &guest, kind);
        Ok(Some(Step {
            guest,
            written,
            host,
            first,
            fresh,
            allocated,
            old,
        }))
    }

    /// Writes the data of a step, with what has to be copied around it, in one write.
    fn execute_step(&self, tables: &Tables, source: Source<'_>, step: &Step) -> io::Result<()> {
        let mut before = self.copied(tables, step.written.start..step.guest.start)?;
        let mut after = self.copied(tables, step.guest.end..step.written.end)?;
        // If all of it was zero and the new clusters are, they may reach the disk in any order, and zeroes need not be
        // written.
        let mut in_order = true;
        if step.fresh && before.is_none() && after.is_none() {
            in_order = !self.reads_as_zeroes(tables, step.guest.clone())?;
        } else {
            let zeroes = |range: Range<u64>| vec![0; usize::try_from(range.end - range.start).unwrap_or(0)];
            before.get_or_insert_with(|| zeroes(step.written.start..step.guest.start));
            after.get_or_insert_with(|| zeroes(step.guest.end..step.written.end));
        }
        let before = before.unwrap_or_default();
        let data = Gathered {
            before: &before,
            memory: source.memory,
            at: source.at,
            len: usize::try_from(step.guest.end - step.guest.start).expect("within the memory"),
            after: after.as_deref().unwrap_or_default(),
        };
        let host = step.host + (step.guest.start - step.first) - before.len() as u64;
        self.data().write_gathered(&data, host)?;
        if in_order {
            // After a power cut, the entry must not point to data that is missing.
            self.flush_data()?;
        }
        Ok(())
    }

    /// Reads a range of the disk that is copied to a new cluster. Returns `None` if it is all zero.
    fn copied(&self, tables: &Tables, range: Range<u64>) -> io::Result<Option<Vec<u8>>> {
        if range.is_empty() || self.reads_as_zeroes(tables, range.clone())? {
            return Ok(None);
        }
        let len = usize::try_from(range.end - range.start).map_err(io::Error::other)?;
        let mut bytes = vec![0_u8; len];
        let mut memory = IoVecs::new();
        // SAFETY: the bytes outlive the list, and meanwhile only the list is used to access them.
        unsafe { memory.push(bytes.as_mut_ptr(), len) };
        self.read_from(tables, &memory, 0, len, range.start)?;
        drop(memory);
        let is_zero = bytes.iter().all(|byte| *byte == 0);
        Ok((!is_zero).then_some(bytes))
    }

    /// Returns whether the tables say that a range reads as zeroes.
    pub(super) fn reads_as_zeroes(&self, tables: &Tables, range: Range<u64>) -> io::Result<bool> {
        let mut at = range.start;
        while at < range.end {
            let (extent, _held) = tables.find(&self.file, at, range.end - at)?;
            match (extent.place, &self.backing) {
                (Place::Zero, _) | (Place::Backing, Backing::None) => {}
                _ => return Ok(false),
            }
            at += extent.len;
        }
        Ok(true)
    }

    /// Makes the L2 entries point to the data of a step, and releases the clusters that had it before.
    fn link(&self, tables: &Tables, step: &Step, offset: u64, _claim: &Claim<'_>) -> io::Result<()> {
        let (layout, cluster) = (tables.layout, tables.header.cluster);
        let mut bytes = Vec::with_capacity(step.old.len() * 16);
        let mut new = Vec::with_capacity(step.old.len());
        let mut released = Vec::new();
        for (number, old) in (0..).zip(&step.old) {
            let start = step.first + number * cluster.bytes();
            let host = step.host + number * cluster.bytes();
            let end = start + cluster.bytes();
            let within = step.written.start.max(start) - start..step.written.end.min(end) - start;
            let entry = old.written(layout, host, within);
            if let Some(reference) = old.reference(layout).map_err(corrupt)?
                && reference.clusters != (host >> cluster.bits()..(host >> cluster.bits()) + 1)
            {
                released.push(reference.clusters);
            }
            bytes.extend(entry.to_bytes(layout));
            new.push((start, entry));
        }
        let place = offset + layout.entry_in_slice(step.first);
        let set = |slice: &Slice<'_>| -> io::Result<()> {
            self.file.write_bytes(&bytes, place)?;
            new.iter().for_each(|(start, entry)| slice.set(*start, *entry));
            Ok(())
        };
        match released.is_empty() {
            true => set(&*tables.slice(&self.file, step.first, offset)?)?,
            // Alone: others may be reading the old data in the same clusters, which is released next.
            false => set(&*tables.slice_alone(&self.file, step.first, offset)?)?,
        }
        self.release(tables, released)
    }
}

/// Returns the bytes of the disk that are written: the guest's, and those around them that its clusters need.
fn written_part(
    layout: SliceLayout,
    old: &[Entry],
    first: u64,
    guest: &Range<u64>,
    kind: Option<Target>,
) -> Range<u64> {
    let size = layout.cluster_bytes();
    let part = |number: usize| {
        let start = first + number as u64 * size;
        let within = guest.start.max(start) - start..guest.end.min(start + size) - start;
        let part = old[number].copied_part(layout, &within, kind.unwrap_or(Target::New));
        start + part.start..start + part.end
    };
    part(0).start..part(old.len() - 1).end
}

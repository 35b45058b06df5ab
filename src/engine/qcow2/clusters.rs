//! Allocation of clusters in an image. One thread at a time.
//!
//! Clusters are *reserved* in advance: their refcounts are 1 and stable before an L2 entry may point to one. So an
//! allocation costs no flush, and no order of writes is needed between refcounts and L2 tables. After a crash, reserved
//! clusters are leaked, which the dirty bit announces.
//!
//! A cluster that lost its last entry is *released*: its refcount is lowered only when the lost entry is stable, because
//! after a power cut an old entry must not point to new data.

use std::collections::VecDeque;
use std::io;
use std::mem;
use std::ops::Range;

use super::refcounts::RefcountBlocks;
use super::tables::Tables;
use crate::qcow2::Corruption;
use crate::storage::RawFile;

/// First and largest amount that is reserved at once, in bytes.
const RESERVE: Range<u64> = 1 << 20..64 << 20;
/// Number of parts in which refcounts are searched for one reservation.
const SEARCHED_MAX: u32 = 64;

/// The clusters of an image that is written to.
#[derive(Debug)]
pub(super) struct Clusters {
    pub(super) blocks: RefcountBlocks,
    /// Reserved clusters, in the order of their use.
    reserved: VecDeque<Range<u64>>,
    /// Their number.
    left: u64,
    /// The clusters from this one on were never written to, and read as zeroes.
    fresh_from: u64,
    /// No cluster below is free.
    search_from: u64,
    /// Number of bytes to reserve next.
    next: u64,
    /// A thread is reserving more clusters.
    pub(super) is_growing: bool,
    /// Clusters that have lost an entry which may not be stable.
    released: Vec<Range<u64>>,
}

/// New clusters, side by side.
#[derive(Clone, Copy, Debug)]
pub(super) struct Run {
    pub(super) first: u64,
    pub(super) count: u64,
    /// They read as zeroes.
    pub(super) fresh: bool,
}

impl Clusters {
    /// Reads the refcount table.
    ///
    /// # Errors
    /// The file cannot be read, or the table is invalid.
    pub(super) fn read(file: &RawFile, tables: &Tables) -> io::Result<Self> {
        let cluster = tables.header.cluster;
        Ok(Self {
            blocks: RefcountBlocks::read(file, &tables.header)?,
            reserved: VecDeque::new(),
            left: 0,
            // A block device has old data.
            fresh_from: match file.is_device() {
                true => u64::MAX,
                false => file.end()?.div_ceil(cluster.bytes()),
            },
            search_from: 0,
            next: RESERVE.start,
            is_growing: false,
            released: Vec::new(),
        })
    }

    /// Takes up to `count` reserved clusters that are side by side, if there are any.
    pub(super) fn take(&mut self, count: u64) -> Option<Run> {
        let front = self.reserved.front_mut()?;
        let count = count.min(front.end - front.start);
        let first = front.start;
        front.start += count;
        if front.is_empty() {
            self.reserved.pop_front();
        }
        self.left -= count;
        let fresh = first >= self.fresh_from;
        if self.fresh_from != u64::MAX {
            self.fresh_from = self.fresh_from.max(first + count);
        }
        Some(Run { first, count, fresh })
    }

    /// Takes one reserved cluster that reads as zeroes, if the next one does.
    pub(super) fn take_fresh(&mut self) -> Option<Run> {
        let front = self.reserved.front()?;
        (front.start >= self.fresh_from).then(|| self.take(1)).flatten()
    }

    /// Returns whether no reserved cluster is left.
    pub(super) fn is_empty(&self) -> bool {
        self.reserved.is_empty()
    }

    /// Returns whether it is time to reserve more clusters.
    pub(super) fn is_low(&self, cluster: u64) -> bool {
        self.left * cluster < self.next / 8
    }

    /// Adds clusters that are reserved and stable.
    pub(super) fn add_reserved(&mut self, found: VecDeque<Range<u64>>) {
        self.left += found.iter().map(|run| run.end - run.start).sum::<u64>();
        self.reserved.extend(found);
    }

    /// Reserves free clusters, in the order of the file. They may be used when that is stable.
    ///
    /// # Errors
    /// There is no room, the refcounts are corrupt, or the file cannot be written.
    pub(super) fn reserve(
        &mut self,
        file: &RawFile,
        tables: &Tables,
        least: u64,
    ) -> io::Result<VecDeque<Range<u64>>> {
        let bits = tables.header.cluster.bits();
        let wanted = (self.next >> bits).max(least).max(1);
        self.next = (self.next * 2).min(RESERVE.end);
        let (found, at) = self.find_free(file, bits, wanted)?;
        if found.is_empty() {
            return Err(io::Error::from_raw_os_error(libc::ENOSPC));
        }
        for run in &found {
            self.check_free(tables, run)?;
        }
        self.search_from = at;
        let mut marked = found
            .iter()
            .try_for_each(|run| self.blocks.change(file, run.clone(), |_, _| Ok(1)));
        if marked.is_ok() {
            // An entry must not point past the end of the file, whatever a power cut leaves of the data.
            let end = found.back().map_or(0, |run| run.end);
            marked = file.set_end(end << bits, false);
        }
        match marked {
            Ok(()) => Ok(found),
            Err(error) => {
                self.unreserve(file, &found);
                Err(error)
            }
        }
    }

    /// Finds up to `wanted` free clusters, and at least one if there is one. Returns the cluster after the last one that
    /// was looked at, too.
    fn find_free(
        &mut self,
        file: &RawFile,
        bits: u32,
        wanted: u64,
    ) -> io::Result<(VecDeque<Range<u64>>, u64)> {
        let limit = match file.is_device() {
            true => file.end()? >> bits,
            false => 1 << (55 - bits),
        };
        let (mut found, mut searched, mut at) = (VecDeque::new(), 0, self.search_from);
        let (file_end, mut past_the_end) = (file.end()?.div_ceil(1 << bits), 0);
        let mut left = wanted;
        while left > 0 && searched < SEARCHED_MAX || found.is_empty() {
            if at >= limit {
                break;
            }
            let written = self.blocks.cover(file, at)?;
            self.fresh_from = self.fresh_from.max(written);
            let end = self.blocks.chunk_end(at).min(limit);
            let counts = self.blocks.load(file, &(at..end))?;
            while at < end && left > 0 {
                if counts.get(at) == 0 {
                    add(&mut found, at);
                    left -= 1;
                }
                at += 1;
            }
            searched += 1;
            past_the_end += u32::from(at > file_end);
            if found.is_empty() && past_the_end > SEARCHED_MAX {
                // A hostile image can say that for hours.
                return Err(io::Error::other(Corruption::Refcounts(
                    "clusters past the end of the file are marked as used",
                )));
            }
        }
        Ok((found, at))
    }

    /// Gives up clusters that [`reserve`](Self::reserve) has found, because they cannot be used. What cannot be written is
    /// leaked.
    pub(super) fn unreserve(&mut self, file: &RawFile, found: &VecDeque<Range<u64>>) {
        for run in found {
            self.search_from = self.search_from.min(run.start);
            let _ = self.blocks.change(file, run.clone(), |_, _| Ok(0));
        }
    }

    /// Checks that no table is in clusters whose refcount is 0.
    fn check_free(&self, tables: &Tables, run: &Range<u64>) -> io::Result<()> {
        let header = &tables.header;
        let bits = header.cluster.bits();
        let l1 = header.l1_table_offset >> bits;
        let l1_len = (u64::from(header.l1_size) * 8).div_ceil(header.cluster.bytes());
        let overlaps = |other: Range<u64>| other.start < run.end && run.start < other.end;
        let one = |cluster: u64| overlaps(cluster..cluster + 1);
        let l2 = || {
            let tables = tables
                .l1_entries()
                .filter_map(|entry| entry.l2_table(header.cluster).ok()?);
            tables.map(|offset| offset >> bits)
        };
        let is_used = one(0)
            || overlaps(l1..l1 + l1_len)
            || overlaps(self.blocks.table_clusters.clone())
            || header.snapshots > 0 && one(header.snapshots_offset >> bits)
            || self.blocks.blocks().any(one)
            || l2().any(one);
        match is_used {
            true => Err(io::Error::other(Corruption::Refcounts(
                "a table is in clusters that are marked as free",
            ))),
            false => Ok(()),
        }
    }

    /// Releases clusters that have lost an entry. The image has the new entry already.
    pub(super) fn release(&mut self, clusters: impl IntoIterator<Item = Range<u64>>) {
        self.released.extend(clusters);
    }

    /// Returns the number of releases that wait for a flush.
    pub(super) fn waiting(&self) -> usize {
        self.released.len()
    }

    /// Takes out the releases so far. They may be freed after the next flush.
    pub(super) fn take_released(&mut self) -> Vec<Range<u64>> {
        mem::take(&mut self.released)
    }

    /// Lowers the refcounts of released clusters, whose entries are gone for good. Returns the clusters that nobody uses
    /// now.
    ///
    /// # Errors
    /// The refcounts are corrupt, or the file cannot be written.
    pub(super) fn free(
        &mut self,
        file: &RawFile,
        mut list: Vec<Range<u64>>,
    ) -> io::Result<VecDeque<Range<u64>>> {
        list.sort_by_key(|range| range.start);
        let mut unused = VecDeque::new();
        for range in merged(list) {
            self.blocks.change(file, range, |cluster, count| match count {
                0 => Err(io::Error::other(Corruption::Refcounts(
                    "a cluster in use is marked as free",
                ))),
                1 => {
                    add(&mut unused, cluster);
                    Ok(0)
                }
                more => Ok(more - 1),
            })?;
        }
        for range in &unused {
            self.search_from = self.search_from.min(range.start);
        }
        Ok(unused)
    }

    /// Gives up all clusters that are reserved and not in use, and shortens the file if it ends with them.
    ///
    /// # Errors
    /// The file cannot be written.
    pub(super) fn give_up_reserved(&mut self, file: &RawFile, tables: &Tables) -> io::Result<()> {
        let cluster = tables.header.cluster;
        if let Some(last) = self.reserved.back()
            && file.end()? <= last.end << cluster.bits()
        {
            file.set_end(last.start << cluster.bits(), true)?;
        }
        for range in mem::take(&mut self.reserved) {
            self.search_from = self.search_from.min(range.start);
            self.blocks.change(file, range, |_, _| Ok(0))?;
        }
        (self.next, self.left) = (RESERVE.start, 0);
        Ok(())
    }
}

/// Adds a cluster to ranges in ascending order.
fn add(ranges: &mut VecDeque<Range<u64>>, cluster: u64) {
    match ranges.back_mut() {
        Some(last) if last.end == cluster => last.end += 1,
        _ => ranges.push_back(cluster..cluster + 1),
    }
}

/// Joins ranges that are side by side. Those that overlap stay apart, because each lowers the refcounts once.
fn merged(list: Vec<Range<u64>>) -> Vec<Range<u64>> {
    let mut merged: Vec<Range<u64>> = Vec::new();
    for range in list {
        match merged.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ => merged.push(range),
        }
    }
    merged
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_side_by_side_are_joined() {
        assert_eq!(merged(vec![1..2, 2..4, 4..5, 7..8, 7..8]), [1..5, 7..8, 7..8]);
    }
}

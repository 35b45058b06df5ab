//! L2 entries: the places of clusters and subclusters.
//!
//! L2 tables are read and kept in slices of 4 KiB by default, so that one cluster of 2 MiB does not need a table of 2 MiB
//! in memory.

use std::sync::atomic::{AtomicU64, Ordering};

use super::error::Corruption;

mod entry;
mod extent;
mod layout;

pub use entry::{Entry, Reference, Target};
pub use extent::{Extent, Place};
pub use layout::SliceLayout;

/// A part of an L2 table in memory. Any thread may read it while others change it.
#[derive(Clone, Copy, Debug)]
pub struct Slice<'a> {
    layout: SliceLayout,
    /// The entries. An extended entry is two words: the entry and the bitmap.
    words: &'a [AtomicU64],
}

impl<'a> Slice<'a> {
    /// Makes a slice of the entries in memory, [`SliceLayout::slice_bytes`] long.
    pub fn new(layout: SliceLayout, words: &'a [AtomicU64]) -> Self {
        Self { layout, words }
    }

    /// Replaces the entries by those in the image.
    pub fn load(&self, bytes: &[u8]) {
        let (words, _) = bytes.as_chunks::<8>();
        for (place, word) in self.words.iter().zip(words) {
            place.store(u64::from_be_bytes(*word), Ordering::Relaxed);
        }
    }

    /// Finds the place of up to `len` bytes from a guest offset on, which this slice maps.
    ///
    /// # Errors
    /// The first entry is invalid. An invalid entry further on only ends the extent.
    pub fn find(&self, guest: u64, len: u64) -> Result<Extent, Corruption> {
        let first = self.part(guest)?;
        let mut extent = Extent {
            len: first.len.min(len),
            place: first.place,
        };
        let slice = self.layout.bytes_per_slice();
        let end = (guest & !(slice - 1)) + slice;
        while extent.len < len && guest + extent.len < end {
            match self.part(guest + extent.len) {
                Ok(next) if extent.goes_on_with(&next) => extent.len = (extent.len + next.len).min(len),
                _ => break,
            }
        }
        Ok(extent)
    }

    /// Finds the place of the rest of the cluster or subcluster from a guest offset on.
    fn part(&self, guest: u64) -> Result<Extent, Corruption> {
        let within = self.layout.cluster.within(guest);
        self.entry(guest).part(self.layout, within)
    }

    /// Finds the place where up to `len` bytes from a guest offset on can be written without a change of tables.
    /// Returns its offset and length, or `None` if the first cluster has no such place.
    ///
    /// # Errors
    /// The first entry is invalid.
    pub fn in_place(&self, guest: u64, len: u64) -> Result<Option<(u64, u64)>, Corruption> {
        let (size, within) = (self.layout.cluster.bytes(), self.layout.cluster.within(guest));
        let piece = |at: u64, within: u64, len: u64| {
            let end = size.min(within.saturating_add(len));
            let target = self.entry(at).target(self.layout, within..end)?;
            Ok((target, end - within))
        };
        let (Target::InPlace(host), mut found) = piece(guest, within, len)? else {
            return Ok(None);
        };
        let slice = self.layout.bytes_per_slice();
        let left = slice - (guest & (slice - 1));
        while found < len.min(left) {
            match piece(guest + found, 0, len - found) {
                Ok((Target::InPlace(next), more)) if next == host + within + found => found += more,
                _ => break,
            }
        }
        Ok(Some((host + within, found)))
    }

    /// Returns the entry of the cluster at a guest offset.
    pub fn entry(&self, guest: u64) -> Entry {
        let at = self.layout.word(guest);
        // The bitmap first, because it is stored last: a new bitmap never comes with an old entry. Acquire pairs with the
        // stores in `set`.
        let bitmap = match self.layout.extended {
            true => self
                .words
                .get(at + 1)
                .map_or(0, |word| word.load(Ordering::Acquire)),
            false => 0,
        };
        let word = self.words.get(at).map_or(0, |word| word.load(Ordering::Acquire));
        Entry { word, bitmap }
    }

    /// Replaces the entry of the cluster at a guest offset. The image has the new one already. Only the thread that has
    /// claimed the cluster calls this.
    pub fn set(&self, guest: u64, entry: Entry) {
        let at = self.layout.word(guest);
        // Release: a thread that sees the entry also sees the data that was written before.
        if let Some(word) = self.words.get(at) {
            word.store(entry.word, Ordering::Release);
        }
        if self.layout.extended
            && let Some(bitmap) = self.words.get(at + 1)
        {
            bitmap.store(entry.bitmap, Ordering::Release);
        }
    }
}

#[cfg(test)]
mod tests;

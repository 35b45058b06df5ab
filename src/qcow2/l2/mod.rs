//! L2 entries: the places of clusters and subclusters.
//!
//! L2 tables are read and kept in slices of 4 KiB by default, so that one cluster of 2 MiB does not need a table of 2 MiB
//! in memory.

use std::sync::atomic::{AtomicU64, Ordering};

use super::cluster::ClusterSize;
use super::compressed::CompressedCluster;
use super::error::Corruption;
use super::header::Header;

mod entry;

pub use entry::{Entry, Reference, Target};

/// Bits of the host offset of a cluster.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
const COMPRESSED: u64 = 1 << 62;
const COPIED: u64 = 1 << 63;
/// The cluster reads as zeroes, unless entries are extended.
const ZERO: u64 = 1;
/// Size of a slice in bytes, unless clusters are smaller, or the user chooses another size.
const SLICE_BITS: u32 = 12;
/// Number of subclusters in a cluster with extended entries.
const SUBCLUSTERS: u64 = 32;

/// A range of the disk whose data is in one place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Length in bytes, more than 0.
    pub len: u64,
    /// The place of the data.
    pub place: Place,
}

/// The place of data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In the image or the external data file, from this offset on.
    Data(u64),
    /// Nowhere: it reads as zeroes.
    Zero,
    /// In the backing file, at the same offset as on the disk.
    Backing,
    /// In a compressed cluster, from this byte of the cluster on.
    Compressed(CompressedCluster, u64),
}

/// How L2 tables are cut into slices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SliceLayout {
    cluster: ClusterSize,
    extended: bool,
    external_data: bool,
    /// The size of a slice is 2^`slice_bits` bytes.
    slice_bits: u32,
}

impl SliceLayout {
    pub(super) fn new(header: &Header) -> Self {
        Self {
            cluster: header.cluster,
            extended: header.extended_l2,
            external_data: header.external_data,
            slice_bits: header.cluster.bits().min(SLICE_BITS),
        }
    }

    /// Returns the same layout with slices of this size, if it is a power of two between 512 and the cluster size.
    #[must_use]
    pub fn with_slice_bytes(self, bytes: u64) -> Option<Self> {
        let is_valid = bytes.is_power_of_two() && (512..=self.cluster.bytes()).contains(&bytes);
        is_valid.then_some(Self {
            slice_bits: bytes.trailing_zeros(),
            ..self
        })
    }

    /// Returns the exponent of the length of an entry.
    fn entry_bits(self) -> u32 {
        if self.extended { 4 } else { 3 }
    }

    /// Returns the exponent of the number of bytes of the disk that one slice maps.
    fn mapped_bits(self) -> u32 {
        self.slice_bits - self.entry_bits() + self.cluster.bits()
    }

    /// Returns the exponent of the number of bytes of the disk that one L2 table maps.
    fn table_bits(self) -> u32 {
        2 * self.cluster.bits() - self.entry_bits()
    }

    /// Returns the length of a cluster in bytes.
    pub fn cluster_bytes(self) -> u64 {
        self.cluster.bytes()
    }

    /// Returns the length of an entry in bytes.
    pub fn entry_bytes(self) -> u64 {
        1 << self.entry_bits()
    }

    /// Returns the index of the first word of a guest offset's entry in its slice.
    fn word(self, guest: u64) -> usize {
        let index = (guest & (self.bytes_per_slice() - 1)) >> self.cluster.bits();
        let words = if self.extended { 2 } else { 1 };
        usize::try_from(index).expect("within a slice") * words
    }

    /// Returns the length of a subcluster in bytes.
    fn subcluster(self) -> u64 {
        self.cluster.bytes() / SUBCLUSTERS
    }

    /// Returns the offset in its slice of a guest offset's entry.
    pub fn entry_in_slice(self, guest: u64) -> u64 {
        self.word(guest) as u64 * 8
    }

    /// Returns the number of bytes of the disk that one L2 table maps.
    pub fn bytes_per_table(self) -> u64 {
        1 << self.table_bits()
    }

    /// Returns the number of bytes of the disk that one slice maps.
    pub fn bytes_per_slice(self) -> u64 {
        1 << self.mapped_bits()
    }

    /// Returns the number of the slice for a guest offset, among all slices of the disk.
    pub fn slice_number(self, guest: u64) -> u64 {
        guest >> self.mapped_bits()
    }

    /// Returns the number of the L2 table for a guest offset.
    pub fn table_number(self, guest: u64) -> u64 {
        guest >> self.table_bits()
    }

    /// Returns the length of a slice in bytes.
    pub fn slice_bytes(self) -> usize {
        1 << self.slice_bits
    }

    /// Returns the offset in its L2 table of the slice for a guest offset.
    pub fn slice_in_table(self, guest: u64) -> u64 {
        ((guest & (self.bytes_per_table() - 1)) >> self.mapped_bits()) << self.slice_bits
    }
}

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
    /// The first entry is invalid. An extent ends before an entry that is.
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
                Ok(next) if follows(&extent, &next) => extent.len = (extent.len + next.len).min(len),
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

    /// Finds the place of up to `len` bytes from a guest offset on to which data can be written without a change of
    /// tables. Returns its offset and length, or `None` if the first cluster has none.
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
        // Release: who sees the entry also sees the data that was written before.
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

/// Returns whether `next` continues `extent`.
fn follows(extent: &Extent, next: &Extent) -> bool {
    match (extent.place, next.place) {
        (Place::Data(at), Place::Data(next)) => at + extent.len == next,
        (Place::Zero, Place::Zero) | (Place::Backing, Place::Backing) => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests;

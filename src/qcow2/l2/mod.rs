//! L2 entries: the places of clusters and subclusters.
//!
//! L2 tables are read and kept in slices of at most 4 KiB, so that one cluster of 2 MiB does not need a table of 2 MiB
//! in memory.

use super::cluster::ClusterSize;
use super::compressed::CompressedCluster;
use super::error::Corruption;
use super::header::Header;

/// Bits of the host offset of a cluster.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
const COMPRESSED: u64 = 1 << 62;
const COPIED: u64 = 1 << 63;
/// The cluster reads as zeroes, unless entries are extended.
const ZERO: u64 = 1;
/// Largest slice in bytes.
const SLICE_MAX: u64 = 4096;
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
}

impl SliceLayout {
    pub(super) fn new(header: &Header) -> Self {
        Self {
            cluster: header.cluster,
            extended: header.extended_l2,
            external_data: header.external_data,
        }
    }

    fn entry_bytes(self) -> u64 {
        if self.extended { 16 } else { 8 }
    }

    /// Returns the number of bytes of the disk that one L2 table maps.
    pub fn bytes_per_table(self) -> u64 {
        (self.cluster.bytes() / self.entry_bytes()) << self.cluster.bits()
    }

    /// Returns the number of bytes of the disk that one slice maps.
    pub fn bytes_per_slice(self) -> u64 {
        (self.slice_bytes() as u64 / self.entry_bytes()) << self.cluster.bits()
    }

    /// Returns the length of a slice in bytes.
    pub fn slice_bytes(self) -> usize {
        usize::try_from(SLICE_MAX.min(self.cluster.bytes())).expect("at most 4 KiB")
    }

    /// Returns the offset in its L2 table of the slice for a guest offset.
    pub fn slice_in_table(self, guest: u64) -> u64 {
        guest % self.bytes_per_table() / self.bytes_per_slice() * self.slice_bytes() as u64
    }
}

/// A part of an L2 table.
#[derive(Debug)]
pub struct Slice {
    layout: SliceLayout,
    /// The entries. An extended entry is two words: the entry and the bitmap.
    words: Box<[u64]>,
}

impl Slice {
    /// Makes a slice of its bytes in the image, [`SliceLayout::slice_bytes`] long.
    pub fn parse(layout: SliceLayout, bytes: &[u8]) -> Self {
        let (words, _) = bytes.as_chunks::<8>();
        Self {
            layout,
            words: words.iter().map(|word| u64::from_be_bytes(*word)).collect(),
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
        let end = guest - guest % self.layout.bytes_per_slice() + self.layout.bytes_per_slice();
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
        let (cluster, within) = (self.layout.cluster, self.layout.cluster.within(guest));
        let index = guest % self.layout.bytes_per_slice() / cluster.bytes();
        let words = if self.layout.extended { 2 } else { 1 };
        let at = usize::try_from(index).expect("within a slice") * words;
        let entry = self.words.get(at).copied().unwrap_or(0);
        if entry & COMPRESSED != 0 {
            return Ok(Extent {
                len: cluster.bytes() - within,
                place: self.compressed(entry, within)?,
            });
        }
        let offset = entry & OFFSET;
        if !cluster.divides(offset) {
            return Err(Corruption::L2Entry(entry));
        }
        // In a data file, a cluster may be at offset 0.
        let is_allocated = offset != 0 || self.layout.external_data && entry & COPIED != 0;
        if !self.layout.extended {
            let place = match (entry & ZERO != 0, is_allocated) {
                (true, _) => Place::Zero,
                (false, true) => Place::Data(offset + within),
                (false, false) => Place::Backing,
            };
            let len = cluster.bytes() - within;
            return Ok(Extent { len, place });
        }
        let bitmap = self.words.get(at + 1).copied().unwrap_or(0);
        let size = cluster.bytes() / SUBCLUSTERS;
        let place = match subcluster(bitmap, within / size, is_allocated)? {
            Subcluster::Zero => Place::Zero,
            Subcluster::Data => Place::Data(offset + within),
            Subcluster::Unallocated => Place::Backing,
        };
        let len = size - within % size;
        Ok(Extent { len, place })
    }

    fn compressed(&self, entry: u64, within: u64) -> Result<Place, Corruption> {
        match self.layout.external_data {
            // Compressed clusters are not allowed with a data file.
            true => Err(Corruption::L2Entry(entry)),
            false => Ok(Place::Compressed(
                CompressedCluster::of_entry(entry, self.layout.cluster),
                within,
            )),
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

enum Subcluster {
    Zero,
    Data,
    Unallocated,
}

/// Reads the state of a subcluster: the low half of the bitmap says what is allocated, the high half what is zero.
fn subcluster(bitmap: u64, index: u64, is_allocated: bool) -> Result<Subcluster, Corruption> {
    match (bitmap >> index & 1, bitmap >> (index + SUBCLUSTERS) & 1) {
        (1, 1) => Err(Corruption::Bitmap(bitmap)),
        (1, _) if !is_allocated => Err(Corruption::Bitmap(bitmap)),
        (1, _) => Ok(Subcluster::Data),
        (_, 1) => Ok(Subcluster::Zero),
        _ => Ok(Subcluster::Unallocated),
    }
}

#[cfg(test)]
mod tests;

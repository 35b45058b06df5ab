//! One entry of an L2 table, and what writes make of it.

use std::ops::Range;

use super::extent::{Extent, Place};
use super::layout::{SUBCLUSTERS, SliceLayout};
use crate::qcow2::compressed::CompressedCluster;
use crate::qcow2::error::Corruption;

/// Bits of the host offset of a cluster.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
pub(super) const COMPRESSED: u64 = 1 << 62;
pub(super) const COPIED: u64 = 1 << 63;
/// The cluster reads as zeroes, unless entries are extended.
pub(super) const ZERO: u64 = 1;
/// The bits of a bitmap that say which subclusters are allocated.
const ALLOCATED: u64 = 0xffff_ffff;

/// An entry of an L2 table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Entry {
    /// The entry itself.
    pub word: u64,
    /// The states of the subclusters: 0 without extended entries.
    pub bitmap: u64,
}

/// The place to which data of a cluster is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// To the cluster at this offset, which only this entry uses and whose data is valid.
    InPlace(u64),
    /// To the cluster at this offset, which only this entry uses. Its data is not valid yet.
    Reserved(u64),
    /// To a new cluster.
    New,
}

/// Clusters of the image that an entry refers to, with their refcounts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    /// The numbers of the clusters: several only for compressed data.
    pub clusters: Range<u64>,
}

impl Entry {
    /// Returns the entry in the image.
    pub fn to_bytes(self, layout: SliceLayout) -> impl Iterator<Item = u8> {
        let bitmap = layout.extended.then_some(self.bitmap);
        [Some(self.word), bitmap]
            .into_iter()
            .flatten()
            .flat_map(u64::to_be_bytes)
    }

    /// Returns the offset of the cluster that is allocated for this entry.
    ///
    /// # Errors
    /// The offset is not a multiple of the cluster size.
    fn host(self, layout: SliceLayout) -> Result<Option<u64>, Corruption> {
        let offset = self.word & OFFSET;
        if !layout.cluster.divides(offset) {
            return Err(Corruption::L2Entry(self.word));
        }
        // In a data file, a cluster may be at offset 0.
        let is_allocated = offset != 0 || layout.external_data && self.word & COPIED != 0;
        Ok(is_allocated.then_some(offset))
    }

    /// Finds the place of the rest of the cluster or subcluster from its byte `within` on.
    pub(super) fn part(self, layout: SliceLayout, within: u64) -> Result<Extent, Corruption> {
        let cluster = layout.cluster.bytes();
        if self.word & COMPRESSED != 0 {
            return Ok(Extent {
                len: cluster - within,
                place: Place::Compressed(self.compressed(layout)?, within),
            });
        }
        let host = self.host(layout)?;
        if !layout.extended {
            let place = match (self.word & ZERO != 0, host) {
                (true, _) => Place::Zero,
                (false, Some(offset)) => Place::Data(offset + within),
                (false, None) => Place::Backing,
            };
            let len = cluster - within;
            return Ok(Extent { len, place });
        }
        let size = layout.subcluster();
        let place = match (self.subcluster(within / size)?, host) {
            (Subcluster::Zero, _) => Place::Zero,
            (Subcluster::Data, Some(offset)) => Place::Data(offset + within),
            (Subcluster::Data, None) => return Err(Corruption::Bitmap(self.bitmap)),
            (Subcluster::Unallocated, _) => Place::Backing,
        };
        let len = size - within % size;
        Ok(Extent { len, place })
    }

    fn compressed(self, layout: SliceLayout) -> Result<CompressedCluster, Corruption> {
        match layout.external_data {
            // Compressed clusters are not allowed with a data file.
            true => Err(Corruption::L2Entry(self.word)),
            false => Ok(CompressedCluster::of_entry(self.word, layout.cluster)),
        }
    }

    /// Reads the state of a subcluster: the low half of the bitmap says what is allocated, the high half what is zero.
    fn subcluster(self, index: u64) -> Result<Subcluster, Corruption> {
        match (self.bitmap >> index & 1, self.bitmap >> (index + SUBCLUSTERS) & 1) {
            (1, 1) => Err(Corruption::Bitmap(self.bitmap)),
            (1, _) => Ok(Subcluster::Data),
            (_, 1) => Ok(Subcluster::Zero),
            _ => Ok(Subcluster::Unallocated),
        }
    }

    /// Returns where the bytes `within` the cluster are written to.
    ///
    /// # Errors
    /// The entry is invalid.
    pub fn target(self, layout: SliceLayout, within: Range<u64>) -> Result<Target, Corruption> {
        if self.word & COMPRESSED != 0 {
            self.compressed(layout)?;
            return Ok(Target::New);
        }
        let Some(host) = self.host(layout)?.filter(|_| self.word & COPIED != 0) else {
            return Ok(Target::New);
        };
        let is_valid = match layout.extended {
            false => self.word & ZERO == 0,
            true => {
                let written = allocated(layout, within);
                self.bitmap & written == written
            }
        };
        Ok(match is_valid {
            true => Target::InPlace(host),
            false => Target::Reserved(host),
        })
    }

    /// Returns the bytes of the cluster that have to be written so that the bytes `within` can be: whole clusters or
    /// subclusters, but not those whose data is valid in the same place.
    pub fn copied_part(self, layout: SliceLayout, within: &Range<u64>, target: Target) -> Range<u64> {
        if !layout.extended || target == Target::New && self.has_data() {
            return 0..layout.cluster.bytes();
        }
        let size = layout.subcluster();
        let is_valid = |at: u64| target != Target::New && self.bitmap >> (at / size) & 1 == 1;
        let (first, last) = (within.start, within.end - 1);
        let start = if is_valid(first) {
            first
        } else {
            first - first % size
        };
        let end = if is_valid(last) {
            within.end
        } else {
            last - last % size + size
        };
        start..end
    }

    /// Returns whether the entry has data that must be copied to a new cluster.
    fn has_data(self) -> bool {
        self.word & COMPRESSED != 0 || self.bitmap & ALLOCATED != 0
    }

    /// Returns whether no cluster is allocated for the entry.
    pub fn is_vacant(self, layout: SliceLayout) -> bool {
        let is_mapped = self.word & (COMPRESSED | COPIED | OFFSET) != 0;
        !is_mapped && (!layout.extended || self.bitmap & ALLOCATED == 0)
    }

    /// Returns whether the entry says that the whole cluster reads as zeroes.
    pub fn is_zero(self, layout: SliceLayout) -> bool {
        match layout.extended {
            false => self.word & (COMPRESSED | ZERO) == ZERO,
            true => self.word & COMPRESSED == 0 && self.bitmap == ALLOCATED << SUBCLUSTERS,
        }
    }

    /// Returns the entry after the bytes `written` of the cluster have been written to the cluster at `host`, which only
    /// this entry uses.
    #[must_use]
    pub fn written(self, layout: SliceLayout, host: u64, written: Range<u64>) -> Self {
        let new = allocated(layout, written);
        // What was valid in another place was copied, and is in `written`.
        let bitmap = (self.bitmap | new) & !(new << SUBCLUSTERS);
        Self {
            word: host | COPIED,
            bitmap: if layout.extended { bitmap } else { 0 },
        }
    }

    /// Returns the entry of a cluster that reads as zeroes. `keep`: a cluster that only this entry uses stays allocated.
    #[must_use]
    pub fn zeroed(self, layout: SliceLayout, keep: bool) -> Self {
        let own = match self.word & COMPRESSED == 0 && self.word & COPIED != 0 && keep {
            true => self.word & (OFFSET | COPIED),
            false => 0,
        };
        match layout.extended {
            true => Self {
                word: own,
                bitmap: ALLOCATED << SUBCLUSTERS,
            },
            false => Self {
                word: own | ZERO,
                bitmap: 0,
            },
        }
    }

    /// Returns the clusters that the entry refers to in the image.
    ///
    /// # Errors
    /// The entry is invalid.
    pub fn reference(self, layout: SliceLayout) -> Result<Option<Reference>, Corruption> {
        let bits = layout.cluster.bits();
        if self.word & COMPRESSED != 0 {
            let compressed = self.compressed(layout)?;
            let end = compressed.offset + compressed.len as u64;
            let clusters = compressed.offset >> bits..end.div_ceil(layout.cluster.bytes());
            return Ok(Some(Reference { clusters }));
        }
        let host = self.host(layout)?.filter(|_| !layout.external_data);
        Ok(host.map(|host| Reference {
            clusters: host >> bits..(host >> bits) + 1,
        }))
    }

    /// Returns whether the entry says that nobody else uses its cluster.
    pub fn is_copied(self) -> bool {
        self.word & COPIED != 0 && self.word & COMPRESSED == 0
    }

    /// Returns the entry with the flag that says whether nobody else uses its cluster. Compressed data never has it.
    #[must_use]
    pub fn with_copied(self, is_copied: bool) -> Self {
        let flag = match is_copied && self.word & COMPRESSED == 0 {
            true => COPIED,
            false => 0,
        };
        Self {
            word: self.word & !COPIED | flag,
            ..self
        }
    }
}

enum Subcluster {
    Zero,
    Data,
    Unallocated,
}

/// Returns the bits of the subclusters that a range of a cluster touches.
fn allocated(layout: SliceLayout, within: Range<u64>) -> u64 {
    let size = layout.subcluster();
    let (first, end) = (within.start / size, within.end.div_ceil(size));
    let below = |bit: u64| (1_u64 << bit) - 1;
    below(end) & !below(first)
}

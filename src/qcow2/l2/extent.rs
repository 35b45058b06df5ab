//! The places of ranges of the disk.

use crate::qcow2::compressed::CompressedCluster;

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

impl Extent {
    /// Returns whether `next` continues this extent.
    pub(super) fn goes_on_with(&self, next: &Self) -> bool {
        match (self.place, next.place) {
            (Place::Data(at), Place::Data(next)) => at + self.len == next,
            (Place::Zero, Place::Zero) | (Place::Backing, Place::Backing) => true,
            _ => false,
        }
    }
}

//! The layout of L2 tables, which are read and kept in slices.

use crate::qcow2::cluster::ClusterSize;

/// Size of a slice in bytes, unless clusters are smaller, or the user chooses another size.
const SLICE_BITS: u32 = 12;
/// Number of subclusters in a cluster with extended entries.
pub(super) const SUBCLUSTERS: u64 = 32;

/// How L2 tables are cut into slices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SliceLayout {
    pub(super) cluster: ClusterSize,
    pub(super) extended: bool,
    pub(super) external_data: bool,
    /// The size of a slice is 2^`slice_bits` bytes.
    slice_bits: u32,
}

impl SliceLayout {
    /// Makes the layout of an image. `extended`: its entries have bitmaps. `external_data`: its clusters are in another file.
    pub(in crate::qcow2) fn new(cluster: ClusterSize, extended: bool, external_data: bool) -> Self {
        Self {
            cluster,
            extended,
            external_data,
            slice_bits: cluster.bits().min(SLICE_BITS),
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
    pub(super) fn word(self, guest: u64) -> usize {
        let index = (guest & (self.bytes_per_slice() - 1)) >> self.cluster.bits();
        let words = if self.extended { 2 } else { 1 };
        usize::try_from(index).expect("within a slice") * words
    }

    /// Returns the length of a subcluster in bytes.
    pub(super) fn subcluster(self) -> u64 {
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

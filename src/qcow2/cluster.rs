//! Sizes of clusters, and what follows from them.

/// The size of a cluster: a power of two from 512 bytes to 2 MiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClusterSize {
    bits: u32,
}

impl ClusterSize {
    /// Returns the size of 2^`bits` bytes, or `None` if clusters cannot have it.
    pub fn from_bits(bits: u32) -> Option<Self> {
        (9..=21).contains(&bits).then_some(Self { bits })
    }

    /// Returns the exponent of the size.
    pub fn bits(self) -> u32 {
        self.bits
    }

    /// Returns the size in bytes.
    pub fn bytes(self) -> u64 {
        1 << self.bits
    }

    /// Returns the size in bytes, for memory.
    pub fn in_memory(self) -> usize {
        1 << self.bits
    }

    /// Returns whether an offset is a multiple of the size.
    pub fn divides(self, offset: u64) -> bool {
        offset & (self.bytes() - 1) == 0
    }

    /// Returns the part of an offset that is within its cluster.
    pub fn within(self, offset: u64) -> u64 {
        offset & (self.bytes() - 1)
    }
}

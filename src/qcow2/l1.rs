//! L1 entries: the places of the L2 tables.

use super::cluster::ClusterSize;
use super::error::Corruption;

/// Bits of the offset of an L2 table.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;

/// An entry of the L1 table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct L1Entry(pub u64);

const COPIED: u64 = 1 << 63;

impl L1Entry {
    /// Makes the entry of an L2 table that only this L1 table uses.
    pub fn of_own(l2_table: u64) -> Self {
        Self(l2_table | COPIED)
    }

    /// Returns whether the entry says that no snapshot uses the L2 table.
    pub fn is_copied(self) -> bool {
        self.0 & COPIED != 0
    }

    /// Returns the entry with the flag that says whether no snapshot uses the L2 table.
    #[must_use]
    pub fn with_copied(self, is_copied: bool) -> Self {
        let flag = if is_copied { COPIED } else { 0 };
        Self(self.0 & !COPIED | flag)
    }

    /// Returns the offset of the L2 table, or `None` if all its clusters are unallocated.
    ///
    /// # Errors
    /// The offset is not a multiple of the cluster size.
    pub fn l2_table(self, cluster: ClusterSize) -> Result<Option<u64>, Corruption> {
        match self.0 & OFFSET {
            0 => Ok(None),
            offset if cluster.divides(offset) => Ok(Some(offset)),
            _ => Err(Corruption::L1Entry(self.0)),
        }
    }
}

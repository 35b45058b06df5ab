//! Entries of the snapshot table.

/// The places in the image that a snapshot refers to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SnapshotEntry {
    /// The offset of its L1 table.
    pub l1_offset: u64,
    /// The number of entries of its L1 table.
    pub l1_size: u32,
    /// The length of the entry in bytes, with the texts at its end.
    pub len: u64,
}

impl SnapshotEntry {
    /// Length in bytes of the part that all entries have.
    pub const FIXED: usize = 40;

    /// Parses an entry. Its texts are not read.
    pub fn parse(bytes: &[u8; Self::FIXED]) -> Self {
        let number = |at: usize, len: usize| {
            let bytes = bytes[at..at + len].iter();
            bytes.fold(0_u64, |value, byte| value << 8 | u64::from(*byte))
        };
        let (id, name, extra) = (number(12, 2), number(14, 2), number(36, 4));
        let len = Self::FIXED as u64 + extra + id + name;
        Self {
            l1_offset: number(0, 8),
            l1_size: u32::try_from(number(8, 4)).expect("four bytes"),
            len: len.next_multiple_of(8),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_padded() {
        let mut bytes = [0; SnapshotEntry::FIXED];
        (bytes[6], bytes[11], bytes[13], bytes[15], bytes[39]) = (1, 3, 1, 2, 16);
        let expected = SnapshotEntry {
            l1_offset: 256,
            l1_size: 3,
            len: 64,
        };
        assert_eq!(SnapshotEntry::parse(&bytes), expected);
    }
}

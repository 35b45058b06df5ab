//! The parts of a read that have come. A server may send them in any order, but none twice.

use std::collections::BTreeMap;

use super::reply::ProtocolError;

/// The largest number of separate parts. Blocks of 512 bytes of the longest read cannot have more.
const PARTS_MAX: usize = 1 << 16;

/// The parts of one read that have come.
#[derive(Debug, Default)]
pub(crate) struct Coverage {
    /// Number of bytes in all.
    bytes: u32,
    /// The parts that do not touch each other: first byte, and the byte after the last one. Empty while all bytes that
    /// have come are the first ones of the read, as with every server that sends them in order.
    parts: BTreeMap<u32, u32>,
}

impl Coverage {
    /// Returns the number of bytes that have come.
    pub(crate) fn bytes(&self) -> u32 {
        self.bytes
    }

    /// Adds `len` bytes from byte `at` of the read on.
    ///
    /// # Errors
    /// Some of the bytes have come before, or the parts are too many.
    #[inline]
    pub(crate) fn add(&mut self, at: u32, len: u32) -> Result<(), ProtocolError> {
        let bytes = self.bytes.checked_add(len).ok_or(ProtocolError::Range)?;
        if at != self.bytes || !self.parts.is_empty() {
            self.add_part(at, len)?;
        }
        self.bytes = bytes;
        Ok(())
    }

    #[cold]
    fn add_part(&mut self, mut at: u32, len: u32) -> Result<(), ProtocolError> {
        if self.parts.is_empty() && self.bytes > 0 {
            self.parts.insert(0, self.bytes);
        }
        let mut end = at.checked_add(len).ok_or(ProtocolError::Range)?;
        if let Some((first, after)) = self.parts.range(..end).next_back() {
            if *after > at {
                return Err(ProtocolError::Overlap);
            }
            if *after == at {
                at = *first;
            }
        }
        if let Some(after) = self.parts.remove(&end) {
            end = after;
        }
        self.parts.insert(at, end);
        match self.parts.len() {
            ..=PARTS_MAX => Ok(()),
            _ => Err(ProtocolError::Parts),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn parts_in_order_need_no_list() {
        let mut coverage = Coverage::default();
        for at in [0, 512, 1024] {
            assert_eq!(coverage.add(at, 512), Ok(()));
        }
        assert_eq!((coverage.bytes(), coverage.parts.len()), (1536, 0));
        assert_eq!(coverage.add(1535, 1), Err(ProtocolError::Overlap));
    }

    #[test]
    fn separate_parts_are_limited() {
        let mut coverage = Coverage::default();
        let added = (1..)
            .map(|part| coverage.add(part * 2, 1))
            .position(|added| added.is_err());
        assert_eq!(added, Some(PARTS_MAX));
    }

    proptest! {
        #[test]
        fn each_byte_is_counted_once(parts in proptest::collection::vec((0_u32..64, 1_u32..16), 1..40)) {
            let (mut coverage, mut disk) = (Coverage::default(), [false; 80]);
            for (at, len) in parts {
                let part = &mut disk[at as usize..][..len as usize];
                let is_new = !part.contains(&true);
                if is_new {
                    part.fill(true);
                }
                let expected = if is_new { Ok(()) } else { Err(ProtocolError::Overlap) };
                prop_assert_eq!(coverage.add(at, len), expected);
                let bytes = disk.iter().filter(|byte| **byte).count();
                prop_assert_eq!(coverage.bytes() as usize, bytes);
            }
        }
    }
}

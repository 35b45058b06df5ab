//! Options and checks that disks on other machines share. Any thread.

use crate::storage::{Limits, format_of_footer, format_of_header};

/// The options with which such a disk is opened.
#[derive(Clone, Copy, Debug, Default)]
pub struct RemoteOptions {
    /// Refuse writes.
    pub read_only: bool,
    /// Refuse writes where the other side does, instead of the disk.
    pub auto_read_only: bool,
    /// Pass discards on.
    pub unmap: bool,
    /// Ignore flushes.
    pub no_flush: bool,
    /// Check whether the disk has an image of another format than raw.
    pub look: bool,
}

impl RemoteOptions {
    /// Returns the limits of a disk that is opened like this.
    pub(super) fn apply(&self, limits: Limits) -> Limits {
        match self.read_only {
            true => limits.read_only(),
            false => limits,
        }
    }
}

/// Returns the format of the image on a disk, or `None` if it seems to be raw. `read` returns the bytes from an offset on,
/// whole blocks, or `None` if they cannot be read.
pub(super) fn foreign_format(
    size: u64,
    block: u32,
    mut read: impl FnMut(u64, u32) -> Option<Vec<u8>>,
) -> Option<&'static str> {
    let header = format_of_header(&read(0, block)?);
    header.or_else(|| format_of_footer(&read(size.checked_sub(block.into())?, block)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_are_found_at_both_ends() {
        let found = |disk: &[u8]| {
            let read = |offset, len: u32| {
                disk.get(usize::try_from(offset).ok()?..)?
                    .get(..len as usize)
                    .map(<[u8]>::to_vec)
            };
            foreign_format(disk.len() as u64, 4096, read)
        };
        let mut disk = vec![0; 64 << 10];
        assert_eq!(found(&disk), None);
        let end = disk.len() - 512;
        disk[end..end + 8].copy_from_slice(b"conectix");
        assert_eq!(found(&disk), Some("VHD"));
        disk[..4].copy_from_slice(b"QFI\xfb");
        assert_eq!(found(&disk), Some("qcow2"));
        assert_eq!(found(&disk[..512]), None, "it cannot be read");
    }
}

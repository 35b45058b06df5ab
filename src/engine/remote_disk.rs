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
    /// The look for the format of the image on the disk.
    pub look: Look,
}

/// Whether the format of the image on a disk is looked for when the disk is opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Look {
    /// The disk is not read.
    #[default]
    Skip,
    /// For a warning only: the format is given, and a disk that cannot be read is opened all the same.
    Warn,
    /// The format is not given: a disk that cannot be read is refused, because its image may be of any format.
    Insist,
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

/// Returns the format of the image on a disk of whole blocks, or `None` if it seems to be raw. `read` returns the bytes
/// from an offset on.
///
/// # Errors
/// The first block cannot be read, or the last one.
pub(super) fn foreign_format<E>(
    size: u64,
    block: u32,
    mut read: impl FnMut(u64, u32) -> Result<Vec<u8>, E>,
) -> Result<Option<&'static str>, E> {
    match format_of_header(&read(0, block)?) {
        None => Ok(format_of_footer(&read(size.saturating_sub(block.into()), block)?)),
        format => Ok(format),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_are_found_at_both_ends() {
        let found = |disk: &[u8]| {
            let read = |offset, len: u32| {
                let rest = usize::try_from(offset).ok().and_then(|offset| disk.get(offset..));
                let bytes = rest.and_then(|rest| rest.get(..len as usize));
                bytes.map(<[u8]>::to_vec).ok_or(offset)
            };
            foreign_format(disk.len() as u64, 4096, read)
        };
        let mut disk = vec![0; 64 << 10];
        assert_eq!(found(&disk), Ok(None));
        let end = disk.len() - 512;
        disk[end..end + 8].copy_from_slice(b"conectix");
        assert_eq!(found(&disk), Ok(Some("VHD")));
        disk[..4].copy_from_slice(b"QFI\xfb");
        assert_eq!(found(&disk), Ok(Some("qcow2")));
        assert_eq!(found(&disk[..512]), Err(0), "it cannot be read");
    }
}

//! The alignment that O_DIRECT requires on a file.

use std::fs::File;
use std::io;

use rustix::fs::{AtFlags, StatxFlags, fstatfs, statx};

use super::bounce::AlignedBuffer;
use super::transfer::retry;
use crate::sys::vectored;

/// Alignment to assume if it is unknown: the page size of most machines, and the largest sector of ordinary drives.
const SAFE: u32 = 4096;

/// File systems that support O_DIRECT with any alignment.
const UNRESTRICTED: [libc::c_long; 2] = [libc::NFS_SUPER_MAGIC, libc::TMPFS_MAGIC];

/// The alignment of direct I/O on a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct DioAlign {
    /// Alignment of buffer addresses, or 0 if the file does not support direct I/O.
    pub(super) memory: u32,
    /// Alignment of offsets and lengths, or 0 if the file does not support direct I/O.
    pub(super) offset: u32,
}

/// Returns the alignment of direct I/O on `file`, which is open with O_DIRECT. `block` is the logical block size of a
/// block device.
///
/// The sources are `statx`, then the type of the file system, then trial reads.
///
/// # Errors
/// `Unsupported`: the kernel says that the file does not support direct I/O, although it can be opened for it.
/// (Some file systems then silently use the page cache.)
pub(super) fn alignment(file: &File, block: Option<u32>) -> io::Result<DioAlign> {
    if let Some(align) = dio_align(file) {
        return match align {
            DioAlign { memory: 0, .. } | DioAlign { offset: 0, .. } => Err(io::ErrorKind::Unsupported.into()),
            DioAlign { memory, offset } => Ok(both(memory, offset.max(block.unwrap_or(0)))),
        };
    }
    if let Some(block) = block {
        return Ok(both(block, block));
    }
    if UNRESTRICTED.contains(&fstatfs(file)?.f_type) {
        return Ok(both(1, 1));
    }
    let buffer = AlignedBuffer::new(SAFE as usize, SAFE as usize)?;
    let offset = probe(|len| retry(|| vectored::preadv(file, &buffer.range(len as usize), 0)).is_ok());
    Ok(both(offset, offset))
}

/// Returns the alignment according to `statx`, or `None` if the kernel or the file system does not report it.
fn dio_align(file: &File) -> Option<DioAlign> {
    let stat = statx(file, c"", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN).ok()?;
    let known = StatxFlags::from_bits_retain(stat.stx_mask).contains(StatxFlags::DIOALIGN);
    known.then_some(DioAlign {
        memory: stat.stx_dio_mem_align,
        offset: stat.stx_dio_offset_align,
    })
}

fn both(memory: u32, offset: u32) -> DioAlign {
    DioAlign {
        memory: memory.next_power_of_two(),
        offset: offset.next_power_of_two(),
    }
}

/// Returns the smallest length that `read` accepts, or `SAFE` if this cannot be determined.
fn probe(mut read: impl FnMut(u32) -> bool) -> u32 {
    if read(1) {
        // The length was not checked, perhaps because a hole needs no access to the device. Writes may be more strict.
        return SAFE;
    }
    [512, 1024, 2048]
        .into_iter()
        .find(|&len| read(len))
        .unwrap_or(SAFE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probing_finds_the_smallest_valid_length() {
        for least in [512, 1024, 2048, 4096, 8192] {
            assert_eq!(probe(|len| len >= least), least.min(SAFE), "{least}");
        }
    }

    #[test]
    fn an_unchecked_length_means_the_safe_alignment() {
        assert_eq!(probe(|_| true), SAFE);
    }
}

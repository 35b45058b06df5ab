//! What O_DIRECT asks of requests on a given file.

use std::fs::File;
use std::io;

use rustix::fs::{AtFlags, StatxFlags, fstatfs, statx};

use super::bounce::AlignedBuffer;
use super::transfer::retry;
use crate::sys::vectored;

/// Assumed where nobody says: the page size of most machines and the largest sector of ordinary drives.
const SAFE: u32 = 4096;

/// These take O_DIRECT and any alignment.
const UNRESTRICTED: [libc::c_long; 2] = [libc::NFS_SUPER_MAGIC, libc::TMPFS_MAGIC];

/// What direct I/O on a file must be aligned to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct DioAlign {
    /// Alignment of buffer addresses; 0: no direct I/O on this file.
    pub(super) memory: u32,
    /// Alignment of offsets and lengths; 0: no direct I/O on this file.
    pub(super) offset: u32,
}

/// The alignment of direct I/O on `file`, which is open with O_DIRECT; `block` is the logical block size of a block
/// device.
///
/// Asks `statx`, then the file system's name, then tries.
///
/// # Errors
/// `Unsupported` if the kernel knows that there is no direct I/O on this file, though it may be opened for it (some
/// file systems then silently use the page cache).
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

/// The alignment that `statx` asks of direct I/O; `None` if kernel or file system does not say.
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

/// The smallest length that `read` takes; `SAFE` if that tells nothing.
fn probe(mut read: impl FnMut(u32) -> bool) -> u32 {
    if read(1) {
        // Nobody looked: a hole, perhaps, that is filled without asking the device. Writes may meet a stricter answer.
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
    fn probing_finds_the_smallest_length_that_works() {
        for least in [512, 1024, 2048, 4096, 8192] {
            assert_eq!(probe(|len| len >= least), least.min(SAFE), "{least}");
        }
    }

    #[test]
    fn a_read_of_one_byte_tells_nothing() {
        assert_eq!(probe(|_| true), SAFE);
    }
}

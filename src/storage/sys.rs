//! The system calls of raw files and block devices, each as one safe function.
//!
//! Nothing here decides anything: one call, one result, `errno` as an [`io::Error`]. Retrying is the caller's.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use crate::status::status;

/// `BLKROGET`, `BLKDISCARD`, `BLKGETSIZE64` of `linux/fs.h`; the `libc` crate has only the others.
const BLKROGET: libc::Ioctl = 0x125e;
const BLKDISCARD: libc::Ioctl = 0x1277;
const BLKGETSIZE64: libc::Ioctl = 0x8008_1272;

/// What `statx` says about O_DIRECT on a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct DioAlign {
    /// Alignment of buffer addresses; 0: no direct I/O on this file.
    pub(super) memory: u32,
    /// Alignment of offsets and lengths; 0: no direct I/O on this file.
    pub(super) offset: u32,
}

/// `preadv`: bytes read, 0 at the end of the file.
pub(super) fn preadv(file: &File, iov: &[libc::iovec], offset: u64) -> io::Result<usize> {
    let (count, offset) = (iov_count(iov)?, file_offset(offset)?);
    // SAFETY: the list comes from an `IoVecs` (or points to a buffer of ours), whose owner vouches for the memory.
    transferred(unsafe { libc::preadv(file.as_raw_fd(), iov.as_ptr(), count, offset) })
}

/// `preadv` without memory to read into, which fails at the latest when the kernel wants to use it.
pub(super) fn read_nothing(file: &File, offset: u64, len: u64) -> io::Result<usize> {
    let iov = libc::iovec {
        iov_base: std::ptr::null_mut(),
        iov_len: usize::try_from(len).map_err(io::Error::other)?,
    };
    preadv(file, &[iov], offset)
}

/// `pwritev`: bytes written.
pub(super) fn pwritev(file: &File, iov: &[libc::iovec], offset: u64) -> io::Result<usize> {
    let (count, offset) = (iov_count(iov)?, file_offset(offset)?);
    // SAFETY: as in `preadv`; the kernel only reads the memory.
    transferred(unsafe { libc::pwritev(file.as_raw_fd(), iov.as_ptr(), count, offset) })
}

/// `pwritev2` with `RWF_DSYNC`: bytes written and stable.
pub(super) fn pwritev_dsync(file: &File, iov: &[libc::iovec], offset: u64) -> io::Result<usize> {
    let (count, offset) = (iov_count(iov)?, file_offset(offset)?);
    // SAFETY: as in `pwritev`.
    transferred(unsafe { libc::pwritev2(file.as_raw_fd(), iov.as_ptr(), count, offset, libc::RWF_DSYNC) })
}

/// `preadv2` with `RWF_NOWAIT`: bytes read, EAGAIN if it would have to wait.
pub(super) fn preadv_nowait(file: &File, iov: &[libc::iovec], offset: u64) -> io::Result<usize> {
    let (count, offset) = (iov_count(iov)?, file_offset(offset)?);
    // SAFETY: as in `preadv`.
    transferred(unsafe { libc::preadv2(file.as_raw_fd(), iov.as_ptr(), count, offset, libc::RWF_NOWAIT) })
}

/// `pwritev2` with `RWF_NOWAIT`: bytes written, EAGAIN if it would have to wait.
pub(super) fn pwritev_nowait(file: &File, iov: &[libc::iovec], offset: u64) -> io::Result<usize> {
    let (count, offset) = (iov_count(iov)?, file_offset(offset)?);
    // SAFETY: as in `pwritev`.
    transferred(unsafe { libc::pwritev2(file.as_raw_fd(), iov.as_ptr(), count, offset, libc::RWF_NOWAIT) })
}

/// `syncfs`: writes back the whole file system, and fails if it has lost anything since `file` was opened, or since
/// somebody asked.
pub(super) fn syncfs(file: &File) -> io::Result<()> {
    // SAFETY: takes a number only.
    status(unsafe { libc::syncfs(file.as_raw_fd()) })
}

/// `sync_file_range` that takes the kernel's report of failed writes and does nothing else: its range is beyond all
/// pages, so it waits for none.
pub(super) fn take_writeback_error(file: &File) -> io::Result<()> {
    const BEYOND_ALL: i64 = i64::MAX - 1;
    // SAFETY: takes numbers only.
    status(unsafe {
        libc::sync_file_range(file.as_raw_fd(), BEYOND_ALL, 1, libc::SYNC_FILE_RANGE_WAIT_BEFORE)
    })
}

/// `posix_fadvise` with `POSIX_FADV_DONTNEED` for the whole file: drops what is cached of it and not dirty.
pub(super) fn drop_cache(file: &File) -> io::Result<()> {
    // SAFETY: takes numbers only.
    match unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) } {
        0 => Ok(()),
        errno => Err(io::Error::from_raw_os_error(errno)),
    }
}

/// `fallocate`, always with `KEEP_SIZE`.
pub(super) fn fallocate(file: &File, mode: libc::c_int, offset: u64, len: u64) -> io::Result<()> {
    let (offset, len) = (file_offset(offset)?, file_offset(len)?);
    let mode = mode | libc::FALLOC_FL_KEEP_SIZE;
    // SAFETY: takes numbers only.
    status(unsafe { libc::fallocate(file.as_raw_fd(), mode, offset, len) })
}

/// `lseek` to the end: bytes of a regular file. (The position is nobody's; and a worker may not ask for a file's status,
/// which takes a path as well.)
pub(super) fn end_of(file: &File) -> io::Result<u64> {
    // SAFETY: takes numbers only.
    let end = unsafe { libc::lseek(file.as_raw_fd(), 0, libc::SEEK_END) };
    u64::try_from(end).map_err(|_| io::Error::last_os_error())
}

/// `BLKDISCARD` of a byte range.
pub(super) fn blkdiscard(file: &File, offset: u64, len: u64) -> io::Result<()> {
    let range: [u64; 2] = [offset, len];
    // SAFETY: BLKDISCARD reads two u64 through the pointer.
    status(unsafe { libc::ioctl(file.as_raw_fd(), BLKDISCARD, range.as_ptr()) })
}

/// `BLKGETSIZE64`: bytes of a block device.
pub(super) fn blkgetsize64(file: &File) -> io::Result<u64> {
    let mut size = 0u64;
    // SAFETY: BLKGETSIZE64 writes one u64 through the pointer.
    status(unsafe { libc::ioctl(file.as_raw_fd(), BLKGETSIZE64, &raw mut size) })?;
    Ok(size)
}

/// `BLKSSZGET`: logical block size.
pub(super) fn blksszget(file: &File) -> io::Result<u32> {
    ioctl_u32(file, libc::BLKSSZGET)
}

/// `BLKPBSZGET`: physical block size.
pub(super) fn blkpbszget(file: &File) -> io::Result<u32> {
    ioctl_u32(file, libc::BLKPBSZGET)
}

/// `BLKIOOPT`: optimal I/O size, 0 if the device gives none.
pub(super) fn blkioopt(file: &File) -> io::Result<u32> {
    ioctl_u32(file, libc::BLKIOOPT)
}

/// `BLKROGET`: true if the block device is set read-only.
pub(super) fn blkroget(file: &File) -> io::Result<bool> {
    Ok(ioctl_u32(file, BLKROGET)? != 0)
}

/// The alignment that `statx` asks of direct I/O; `None` if kernel or file system does not say.
pub(super) fn dio_align(file: &File) -> Option<DioAlign> {
    // SAFETY: all-zero bytes are a valid `struct statx`.
    let mut stx: libc::statx = unsafe { std::mem::zeroed() };
    let flags = libc::AT_EMPTY_PATH;
    // SAFETY: the path is an empty C string and `stx` outlives the call.
    let rc = unsafe {
        libc::statx(
            file.as_raw_fd(),
            c"".as_ptr(),
            flags,
            libc::STATX_DIOALIGN,
            &raw mut stx,
        )
    };
    (rc == 0 && stx.stx_mask & libc::STATX_DIOALIGN != 0).then_some(DioAlign {
        memory: stx.stx_dio_mem_align,
        offset: stx.stx_dio_offset_align,
    })
}

/// The magic number of the file system that `file` is on.
pub(super) fn file_system_magic(file: &File) -> io::Result<libc::c_long> {
    // SAFETY: all-zero bytes are a valid `struct statfs`.
    let mut stat: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: `stat` outlives the call.
    status(unsafe { libc::fstatfs(file.as_raw_fd(), &raw mut stat) })?;
    Ok(stat.f_type)
}

/// `F_OFD_SETLK` of `len` bytes at `start`: `kind` is `F_RDLCK` or `F_UNLCK`. Never waits.
pub(super) fn ofd_set_lock(fd: BorrowedFd<'_>, kind: i32, start: i64, len: i64) -> io::Result<()> {
    let lock = flock(kind, start, len)?;
    // SAFETY: F_OFD_SETLK reads one `struct flock` through the pointer.
    status(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) })
}

/// `F_OFD_GETLK`: true if somebody else holds any lock on the byte at `start`.
pub(super) fn ofd_is_locked(fd: BorrowedFd<'_>, start: i64) -> io::Result<bool> {
    let mut lock = flock(libc::F_WRLCK, start, 1)?;
    // SAFETY: F_OFD_GETLK reads and writes one `struct flock` through the pointer.
    status(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_OFD_GETLK, &raw mut lock) })?;
    Ok(i32::from(lock.l_type) != libc::F_UNLCK)
}

fn flock(kind: i32, start: i64, len: i64) -> io::Result<libc::flock> {
    // SAFETY: all-zero bytes are a valid `struct flock`; OFD locks require `l_pid` to be zero.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = small(kind)?;
    lock.l_whence = small(libc::SEEK_SET)?;
    lock.l_start = start;
    lock.l_len = len;
    Ok(lock)
}

fn ioctl_u32(file: &File, request: libc::Ioctl) -> io::Result<u32> {
    // An int or an unsigned int, depending on the request; both have 32 bits and no value here is negative.
    let mut value = 0u32;
    // SAFETY: all requests passed to this function write one 32-bit integer through the pointer.
    status(unsafe { libc::ioctl(file.as_raw_fd(), request, &raw mut value) })?;
    Ok(value)
}

fn small(value: i32) -> io::Result<libc::c_short> {
    libc::c_short::try_from(value).map_err(|_| io::ErrorKind::InvalidInput.into())
}

fn iov_count(iov: &[libc::iovec]) -> io::Result<libc::c_int> {
    libc::c_int::try_from(iov.len()).map_err(|_| io::ErrorKind::InvalidInput.into())
}

fn file_offset(bytes: u64) -> io::Result<libc::off_t> {
    libc::off_t::try_from(bytes).map_err(|_| io::ErrorKind::InvalidInput.into())
}

fn transferred(rc: libc::ssize_t) -> io::Result<usize> {
    usize::try_from(rc).map_err(|_| io::Error::last_os_error())
}

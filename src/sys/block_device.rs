//! `ioctl` calls on block devices.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use super::status;

/// Request numbers in `linux/fs.h` that the `libc` crate lacks.
const BLKROGET: libc::Ioctl = 0x125e;
const BLKDISCARD: libc::Ioctl = 0x1277;
const BLKGETSIZE64: libc::Ioctl = 0x8008_1272;

/// `BLKDISCARD`: discards a range of bytes.
pub(crate) fn discard(file: &File, offset: u64, len: u64) -> io::Result<()> {
    let range: [u64; 2] = [offset, len];
    // SAFETY: BLKDISCARD reads two u64 through the pointer.
    status(unsafe { libc::ioctl(file.as_raw_fd(), BLKDISCARD, range.as_ptr()) })
}

/// `BLKGETSIZE64`: returns the size in bytes.
pub(crate) fn size(file: &File) -> io::Result<u64> {
    let mut size = 0u64;
    // SAFETY: BLKGETSIZE64 writes one u64 through the pointer.
    status(unsafe { libc::ioctl(file.as_raw_fd(), BLKGETSIZE64, &raw mut size) })?;
    Ok(size)
}

/// `BLKIOOPT`: returns the optimal I/O size in bytes, or 0 if the device does not report one.
pub(crate) fn optimal_io_size(file: &File) -> io::Result<u32> {
    ioctl_u32(file, libc::BLKIOOPT)
}

/// `BLKROGET`: returns whether the device is read-only.
pub(crate) fn is_read_only(file: &File) -> io::Result<bool> {
    Ok(ioctl_u32(file, BLKROGET)? != 0)
}

fn ioctl_u32(file: &File, request: libc::Ioctl) -> io::Result<u32> {
    // An int or an unsigned int, depending on the request. Both have 32 bits, and no value is negative.
    let mut value = 0u32;
    // SAFETY: all requests passed to this function write one 32-bit integer through the pointer.
    status(unsafe { libc::ioctl(file.as_raw_fd(), request, &raw mut value) })?;
    Ok(value)
}

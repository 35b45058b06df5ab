//! Writes become stable at the right time, according to the kernel's page cache statistics.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use crate::support::{Buffers, Image, On, write};
use testkit::skip::skipped;

/// `struct cachestat` of `linux/mman.h`: numbers of a file's pages.
#[repr(C)]
#[derive(Debug, Default)]
pub(crate) struct CacheStat {
    pub(crate) cached: u64,
    pub(crate) dirty: u64,
    pub(crate) writeback: u64,
    evicted: u64,
    recently_evicted: u64,
}

/// Calls `cachestat` (Linux 6.5) for a whole file.
pub(crate) fn cachestat(file: &File) -> io::Result<CacheStat> {
    /// The number is the same on all architectures.
    const SYS_CACHESTAT: libc::c_long = 451;
    let whole = [0u64; 2];
    let mut stat = CacheStat::default();
    // SAFETY: reads two u64 and writes one `struct cachestat` through the pointers.
    let rc = unsafe { libc::syscall(SYS_CACHESTAT, file.as_raw_fd(), whole.as_ptr(), &raw mut stat, 0) };
    match rc {
        0 => Ok(stat),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Whether the kernel counts a file's pages. This needs Linux 6.5 and a file system that owns the pages. An overlay, as
/// in a container, has no pages of its own.
pub(crate) fn pages_are_counted(image: &Image) -> bool {
    let file = tempfile::tempfile_in(image.dir()).unwrap();
    file.write_all_at(&[1; 4096], 0).unwrap();
    match cachestat(&file) {
        Ok(stat) if stat.cached > 0 => return true,
        Ok(_) => skipped("the file system hides its page cache (overlay)"),
        Err(error) => skipped(format_args!("cachestat: {error}")),
    }
    false
}

/// Returns the number of pages that a power failure would lose.
fn unstable(image: &Image) -> io::Result<u64> {
    let stat = cachestat(&image.file())?;
    Ok(stat.dirty + stat.writeback)
}

#[test]
fn a_flush_makes_earlier_writes_stable() {
    let image = Image::new(On::Disk, 1 << 20);
    if !pages_are_counted(&image) {
        return;
    }
    let storage = image.open();
    write(&storage, 0, &[1; 65536]).unwrap();
    assert!(
        unstable(&image).unwrap() > 0,
        "written back before it was asked for"
    );
    storage.flush().unwrap();
    assert_eq!(unstable(&image).unwrap(), 0);
}

#[test]
fn a_durable_write_is_stable_when_it_returns() {
    let image = Image::new(On::Disk, 1 << 20);
    if !pages_are_counted(&image) {
        return;
    }
    for storage in [image.open(), image.open_direct()] {
        let mut buffers = Buffers::with(&[1; 65536]);
        storage.writev_durable(&buffers.iov(), 4096).unwrap();
        assert_eq!(unstable(&image).unwrap(), 0);
        assert!(image.contents()[4096..4096 + 65536].iter().all(|&byte| byte == 1));
    }
}

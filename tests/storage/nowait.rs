//! Reads and writes that must not wait.

use std::fs::File;
use std::os::fd::AsRawFd;

use vhost_user_blk::storage::{Nowait, RawFile};

use crate::support::{Buffers, Image, On};
use testkit::skip::skipped;

const MIB: u64 = 1 << 20;

/// Makes the kernel drop its cache of a file.
fn drop_cache(file: &File) {
    file.sync_all().unwrap();
    // SAFETY: takes numbers only.
    let rc = unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
    assert_eq!(rc, 0);
}

#[test]
fn memory_is_read_and_written_at_once() {
    let image = Image::filled(On::Tmpfs, MIB, 7);
    let storage = image.open();
    assert_eq!(storage.nowait(), Nowait::Memory);
    assert!(storage.try_writev(&Buffers::with(&[9; 512]).iov(), 4096));
    let mut buffers = Buffers::with(&[0; 1024]);
    assert!(storage.try_readv(&buffers.iov(), 4096));
    assert!(buffers.bytes() == [[9; 512], [7; 512]].concat());
}

#[test]
fn cached_data_is_read_at_once() {
    let image = Image::filled(On::Disk, MIB, 7);
    let storage = image.open();
    assert_eq!(storage.nowait(), Nowait::PageCache);
    let mut buffers = Buffers::with(&[0; 4096]);
    if !storage.try_readv(&buffers.iov(), 4096) {
        return skipped("the file system refuses RWF_NOWAIT");
    }
    assert!(buffers.bytes() == [7; 4096]);
}

#[test]
fn uncached_data_is_not_waited_for() {
    let image = Image::filled(On::Disk, MIB, 7);
    let storage = image.open();
    let mut buffers = Buffers::with(&[0; 4096]);
    drop_cache(&image.file());
    // The attempt may have started readahead, so only the first one is sure to miss.
    if storage.try_readv(&buffers.iov(), 0) {
        return skipped("the pages of the file stay in the cache");
    }
    storage.readv(&buffers.iov(), 0).unwrap();
    assert!(buffers.bytes() == [7; 4096]);
}

#[test]
fn direct_io_is_never_tried() {
    let image = Image::filled(On::Disk, MIB, 7);
    let storage = image.open_direct();
    assert_eq!(storage.nowait(), Nowait::No);
    assert!(!storage.try_readv(&Buffers::with(&[0; 4096]).iov(), 0));
    assert!(!storage.try_writev(&Buffers::with(&[9; 4096]).iov(), 0));
    assert!(image.contents() == vec![7; 1 << 20]);
}

#[test]
fn errors_are_left_to_the_blocking_operations() {
    let image = Image::filled(On::Tmpfs, MIB, 7);
    let storage = image.open();
    let write = |storage: &RawFile, offset| storage.try_writev(&Buffers::with(&[9; 1024]).iov(), offset);
    assert!(!write(&storage, MIB - 512));
    assert!(!write(&storage, u64::MAX - 511));
    assert!(!write(&image.open_read_only(), 0));
    assert!(image.contents() == vec![7; 1 << 20]);
    image.file().set_len(4096).unwrap();
    assert!(!storage.try_readv(&Buffers::with(&[0; 1024]).iov(), 4096 - 512));
}

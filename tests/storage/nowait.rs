//! Reads and writes that must not wait.

use std::fs::File;
use std::io::ErrorKind;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::time::SystemTime;

use vhost_user_blk::storage::{Nowait, RawFile};

use crate::support::{self, Buffers, Image, On, write};
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

/// Writes a block at once.
fn try_write(storage: &RawFile, offset: u64, byte: u8) -> bool {
    storage.try_writev(&Buffers::with(&[byte; 4096]).iov(), offset)
}

/// Reads a block at once.
fn try_read(storage: &RawFile, offset: u64) -> Option<Vec<u8>> {
    let mut buffers = Buffers::new(0, &[1000, 3096]);
    let done = storage.try_readv(&buffers.iov(), offset);
    done.then(|| buffers.bytes().to_vec())
}

#[test]
fn mapped_reads_see_every_write() {
    let image = Image::filled(On::Tmpfs, MIB, 7);
    let storage = image.open();
    // The first read finds out that the page exists, the others are copies.
    for byte in 1..10 {
        image.file().write_all_at(&[byte; 4096], 8192).unwrap();
        assert_eq!(try_read(&storage, 8192).unwrap(), [byte; 4096]);
        write(&storage, 8192, &[byte + 100; 4096]).unwrap();
        assert_eq!(try_read(&storage, 8192).unwrap(), [byte + 100; 4096]);
    }
}

#[test]
fn mapped_writes_reach_the_file() {
    let image = Image::filled(On::Tmpfs, MIB, 7);
    let storage = image.open();
    for byte in 1..10 {
        for offset in [8192, 12288 + 512, MIB - 4096] {
            assert!(try_write(&storage, offset, byte));
            let mut now = [0; 4096];
            image.file().read_exact_at(&mut now, offset).unwrap();
            assert_eq!(now, [byte; 4096]);
            assert_eq!(try_read(&storage, offset).unwrap(), [byte; 4096]);
        }
    }
    let mut expected = vec![7; 1 << 20];
    for range in [8192..12288, 12800..16896, (1 << 20) - 4096..1 << 20] {
        expected[range].fill(9);
    }
    assert!(image.contents() == expected);
}

#[test]
fn mapped_writes_change_no_time_stamp() {
    // A write with a system call would.
    let image = Image::filled(On::Tmpfs, MIB, 7);
    let storage = image.open();
    assert!(try_write(&storage, 8192, 8));
    assert!(try_write(&storage, 8192, 9));
    image.file().set_modified(SystemTime::UNIX_EPOCH).unwrap();
    assert!(try_write(&storage, 8192, 10));
    let modified = image.file().metadata().unwrap().modified().unwrap();
    assert_eq!(modified, SystemTime::UNIX_EPOCH);
}

#[test]
fn a_mapped_write_past_the_end_extends_the_file() {
    for cut in [MIB / 2, MIB / 2 + 512, MIB / 2 + 3 * 4096] {
        let image = Image::filled(On::Tmpfs, MIB, 7);
        let storage = image.open();
        for _ in 0..2 {
            assert!((0..256).all(|block| try_write(&storage, block * 4096, 8)));
        }
        image.file().set_len(cut).unwrap();
        assert!(try_write(&storage, MIB / 2, 9));
        let len = cut.max(MIB / 2 + 4096);
        assert_eq!(image.file().metadata().unwrap().len(), len);
        assert!(image.contents()[1 << 19..][..4096] == [9; 4096], "{cut}");
    }
}

#[test]
fn a_read_only_file_is_only_read_in_its_mapping() {
    let image = Image::filled(On::Tmpfs, MIB, 7);
    let storage = image.open_read_only();
    for _ in 0..2 {
        assert_eq!(try_read(&storage, 4096).unwrap(), [7; 4096]);
        assert!(!try_write(&storage, 4096, 8));
    }
    assert!(image.contents() == vec![7; 1 << 20]);
}

#[test]
fn writes_of_holes_allocate_only_their_blocks() {
    let image = Image::new(On::Tmpfs, MIB);
    let storage = image.open();
    for round in 1..4 {
        assert!(
            (0..256)
                .step_by(4)
                .all(|block| try_write(&storage, block * 4096, round))
        );
        assert_eq!(image.allocated(), MIB / 4);
    }
    assert!((0..256).all(|block| try_read(&storage, block * 4096).is_some()));
    assert_eq!(image.allocated(), MIB / 4);
}

#[test]
fn reads_of_holes_allocate_nothing() {
    let image = Image::new(On::Tmpfs, MIB);
    let storage = image.open();
    let read_all = || (0..256).all(|block| try_read(&storage, block * 4096) == Some(vec![0; 4096]));
    assert!(read_all() && read_all());
    assert_eq!(image.allocated(), 0);
    write(&storage, 0, &[9; 1 << 20]).unwrap();
    for _ in 0..2 {
        assert_eq!(try_read(&storage, 4096).unwrap(), [9; 4096]);
    }
    storage.discard(0, MIB / 2).unwrap();
    storage.write_zeroes(MIB / 2, MIB / 2, true).unwrap();
    assert!(read_all() && read_all());
    assert_eq!(
        image.allocated(),
        0,
        "a read of a discarded block has allocated it"
    );
}

#[test]
fn a_truncated_file_is_not_read_in_its_mapping() {
    let image = Image::filled(On::Tmpfs, MIB, 7);
    let storage = image.open();
    let read = || {
        (0..256)
            .map(|block| try_read(&storage, block * 4096))
            .collect::<Vec<_>>()
    };
    let whole = vec![Some(vec![7; 4096]); 256];
    assert!(read() == whole && read() == whole);
    image.file().set_len(MIB / 2).unwrap();
    let half = [&whole[..128], &vec![None; 128]].concat();
    assert!(read() == half && read() == half);
    let error = support::read(&storage, MIB / 2, 4096).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::UnexpectedEof);
    // Pages that were lost once are read with system calls.
    image.file().set_len(MIB).unwrap();
    image.file().write_all_at(&[8; 1 << 19], MIB / 2).unwrap();
    let new = [&whole[..128], &vec![Some(vec![8; 4096]); 128]].concat();
    assert!(read() == new && read() == new);
}

#[test]
fn a_page_that_was_cut_in_two_is_not_read_in_its_mapping() {
    let image = Image::filled(On::Tmpfs, MIB, 7);
    let storage = image.open();
    for _ in 0..2 {
        assert!((0..256).all(|block| try_read(&storage, block * 4096).is_some()));
    }
    image.file().set_len(MIB / 2 + 512).unwrap();
    assert_eq!(try_read(&storage, MIB / 2), None);
    let error = support::read(&storage, MIB / 2, 4096).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::UnexpectedEof);
    assert_eq!(support::read(&storage, MIB / 2, 512).unwrap(), [7; 512]);
}

#[test]
fn a_file_may_outgrow_its_mapping() {
    let image = Image::filled(On::Tmpfs, MIB, 7);
    let storage = image.open();
    storage.resize(8 * MIB).unwrap();
    for offset in [MIB - 4096, MIB, 2 * MIB - 4096, 2 * MIB, 8 * MIB - 4096] {
        write(&storage, offset, &[9; 4096]).unwrap();
        for _ in 0..2 {
            assert_eq!(try_read(&storage, offset).unwrap(), [9; 4096], "{offset}");
        }
    }
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

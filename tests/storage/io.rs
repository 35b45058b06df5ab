//! Requests: data transferred, requests refused, and effects on the file.

use std::io::ErrorKind;

use vhost_user_blk::storage::{OpenOptions, RawFile};

use crate::durability::{cachestat, pages_are_counted};
use crate::support::{Buffers, Image, On, read, write};
use testkit::skip::skipped;

const MIB: u64 = 1 << 20;

#[test]
fn nothing_is_done_beyond_the_end() {
    let image = Image::filled(On::Disk, MIB, 7);
    let ranges = [
        (MIB, 512),
        (MIB - 512, 1024),
        (u64::MAX - 511, 512),
        (u64::MAX - 511, 1024),
        (1 << 63, 512),
    ];
    for storage in [image.open(), image.open_direct()] {
        for (offset, len) in ranges {
            let bytes = vec![9; len];
            let len = len as u64;
            let results = [
                read(&storage, offset, bytes.len()).map(drop),
                write(&storage, offset, &bytes),
                storage.writev_durable(&Buffers::with(&bytes).iov(), offset),
                storage.discard(offset, len),
                storage.write_zeroes(offset, len, true),
                storage.write_zeroes(offset, len, false),
            ];
            for (i, result) in results.into_iter().enumerate() {
                let error = result.unwrap_err();
                assert_eq!(error.kind(), ErrorKind::InvalidInput);
                // The daemon detects this, not the kernel.
                assert_eq!(
                    error.to_string(),
                    "the range ends past the end of the disk",
                    "{i}: {len} at {offset}"
                );
            }
        }
    }
    assert!(image.contents() == vec![7; 1 << 20]);
}

#[test]
fn the_last_block_can_be_accessed() {
    let image = Image::filled(On::Disk, MIB, 7);
    for storage in [image.open(), image.open_direct()] {
        let last = MIB - u64::from(storage.limits().request_alignment.max(512));
        let len = usize::try_from(MIB - last).unwrap();
        write(&storage, last, &vec![8; len]).unwrap();
        assert_eq!(read(&storage, last, len).unwrap(), vec![8; len]);
        storage.write_zeroes(last, MIB - last, false).unwrap();
        assert_eq!(read(&storage, last, len).unwrap(), vec![0; len]);
        storage.discard(last, MIB - last).unwrap();
        assert_eq!(image.contents().len(), 1 << 20);
    }
}

#[test]
fn an_empty_request_does_nothing() {
    let image = Image::filled(On::Disk, MIB, 7);
    let storage = image.open();
    for offset in [0, 512, MIB] {
        read(&storage, offset, 0).unwrap();
        write(&storage, offset, &[]).unwrap();
        storage.writev_durable(&Buffers::with(&[]).iov(), offset).unwrap();
        storage.discard(offset, 0).unwrap();
        storage.write_zeroes(offset, 0, true).unwrap();
    }
    assert!(image.contents() == vec![7; 1 << 20]);
}

#[test]
fn read_only_storage_is_not_written() {
    let image = Image::filled(On::Disk, MIB, 7);
    let storage = image.open_read_only();
    let limits = storage.limits();
    assert!(limits.read_only && !limits.write_zeroes && limits.discard_granularity == 0);
    let results = [
        write(&storage, 0, &[1; 512]),
        storage.writev_durable(&Buffers::with(&[1; 512]).iov(), 0),
        storage.discard(0, 4096),
        storage.write_zeroes(0, 4096, true),
        storage.write_zeroes(0, 4096, false),
    ];
    for result in results {
        assert_eq!(result.unwrap_err().raw_os_error(), Some(libc::EROFS));
    }
    assert_eq!(read(&storage, 512, 512).unwrap(), vec![7; 512]);
    storage.flush().unwrap();
    assert!(image.contents() == vec![7; 1 << 20]);
}

#[test]
fn reading_past_a_truncated_file_is_an_error() {
    let image = Image::filled(On::Disk, MIB, 7);
    for storage in [image.open(), image.open_direct()] {
        image.file().set_len(4096).unwrap();
        for offset in [0, 4096, 8192] {
            let error = read(&storage, offset, 8192).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::UnexpectedEof, "at {offset}");
        }
        assert_eq!(read(&storage, 0, 4096).unwrap(), vec![7; 4096]);
        assert_eq!(image.contents().len(), 4096);
        image.file().set_len(MIB).unwrap();
    }
}

#[test]
fn requests_may_have_more_buffers_than_iov_max() {
    let image = Image::new(On::Disk, 4 * MIB);
    for (storage, skew) in [
        (image.open(), 1),
        (image.open_direct(), 0),
        (image.open_direct(), 1),
    ] {
        let mut written = Buffers::new(skew, &[512; 3000]);
        for (i, byte) in written.bytes_mut().iter_mut().enumerate() {
            *byte = (i / 512 % 255).to_le_bytes()[0] ^ 0x55;
        }
        storage.writev(&written.iov(), 4096).unwrap();
        let mut back = Buffers::new(skew, &[512; 3000]);
        storage.readv(&back.iov(), 4096).unwrap();
        assert!(back.bytes() == written.bytes());
    }
}

#[test]
fn only_buffers_that_need_it_are_bounced() {
    let image = Image::new(On::Disk, MIB);
    let (cached, direct) = (image.open(), image.open_direct());
    let (memory, request) = (
        direct.limits().memory_alignment,
        direct.limits().request_alignment,
    );
    let (memory, request) = (memory as usize, request as usize);
    if request < 512 {
        return skipped("O_DIRECT needs no alignment on this file system");
    }

    let mut aligned = Buffers::new(memory, &[request, 2 * request]);
    let mut skewed = Buffers::new(1, &[request]);
    let mut uneven = Buffers::new(0, &[request / 2, request / 2]);
    assert!(direct.takes_as_is(&aligned.iov(), 0, true));
    assert!(!direct.takes_as_is(&skewed.iov(), 0, true));
    assert!(!direct.takes_as_is(&uneven.iov(), 0, true));
    for buffers in [&mut aligned, &mut skewed, &mut uneven] {
        assert!(cached.takes_as_is(&buffers.iov(), 0, true));
    }
}

#[test]
fn direct_io_takes_only_whole_blocks() {
    let image = Image::filled(On::Disk, MIB, 7);
    let storage = image.open_direct();
    let half = u64::from(storage.limits().request_alignment / 2);
    for (offset, len) in [(half, 2 * half), (0, half), (2 * half, 3 * half)] {
        let bytes = vec![1; usize::try_from(len).unwrap()];
        let results = [
            read(&storage, offset, bytes.len()).map(drop),
            write(&storage, offset, &bytes),
            storage.discard(offset, len),
            storage.write_zeroes(offset, len, false),
        ];
        for result in results {
            assert_eq!(result.unwrap_err().kind(), ErrorKind::InvalidInput);
        }
    }
    assert!(image.contents() == vec![7; 1 << 20]);
}

#[test]
fn direct_io_bypasses_the_page_cache() {
    let image = Image::filled(On::Disk, MIB, 7);
    let storage = image.open_direct();
    if !pages_are_counted(&image) {
        return;
    }
    assert!(cached_pages(&image) > 0, "the image was just written");
    write(&storage, 0, &vec![1; 1 << 20]).unwrap();
    read(&storage, 0, 1 << 20).unwrap();
    assert_eq!(cached_pages(&image), 0);
}

fn cached_pages(image: &Image) -> u64 {
    cachestat(&image.file()).unwrap().cached
}

#[test]
fn direct_io_on_tmpfs_works_or_is_refused() {
    let image = Image::new(On::Tmpfs, MIB + 512);
    let direct = true;
    match RawFile::open(&OpenOptions {
        direct,
        ..image.options()
    }) {
        Ok(storage) => {
            // No alignment is required, so a guest can keep its 512-byte blocks.
            assert_eq!(storage.limits().logical_block_size, 512);
            write(&storage, 512, &[5; 1536]).unwrap();
            assert_eq!(image.contents()[512..2048], [5; 1536]);
        }
        Err(e) => {
            let text = crate::support::message(&e);
            assert!(
                text.contains(image.path.to_str().unwrap()) && text.contains("does not support direct I/O"),
                "{text}"
            );
        }
    }
}

#[test]
fn discard_gives_space_back_and_reads_zero() {
    for on in [On::Disk, On::Tmpfs] {
        let image = Image::filled(on, MIB, 7);
        let storage = image.open();
        let granularity = storage.limits().discard_granularity;
        assert!(
            granularity.is_power_of_two() && granularity >= 512,
            "{on:?}: {granularity}"
        );
        let full = image.allocated();
        // The range does not consist of whole blocks of the file system. Its edges are zeroed and the rest is freed.
        storage.discard(512, MIB / 2).unwrap();
        assert!(
            image.allocated() <= full - MIB / 4,
            "{on:?}: {} of {full}",
            image.allocated()
        );
        let contents = image.contents();
        assert!(contents[512..512 + (1 << 19)].iter().all(|&b| b == 0), "{on:?}");
        assert!(
            contents[..512]
                .iter()
                .chain(&contents[512 + (1 << 19)..])
                .all(|&b| b == 7),
            "{on:?}"
        );
        assert_eq!(contents.len(), 1 << 20);
    }
}

#[test]
fn only_unmapping_write_zeroes_frees_space() {
    // Whether tmpfs supports O_DIRECT depends on the kernel.
    for (on, direct) in [(On::Disk, false), (On::Disk, true), (On::Tmpfs, false)] {
        let image = Image::filled(on, 4 * MIB, 7);
        let storage = if direct { image.open_direct() } else { image.open() };
        let full = image.allocated();
        storage.write_zeroes(MIB, MIB, false).unwrap();
        assert!(
            image.allocated() >= full,
            "{on:?}: {} of {full}",
            image.allocated()
        );
        storage.write_zeroes(2 * MIB, MIB, true).unwrap();
        assert!(
            image.allocated() <= full - MIB / 2,
            "{on:?}: {} of {full}",
            image.allocated()
        );
        let contents = image.contents();
        assert!(contents[1 << 20..3 << 20].iter().all(|&b| b == 0), "{on:?}");
        assert!(
            contents[..1 << 20]
                .iter()
                .chain(&contents[3 << 20..])
                .all(|&b| b == 7),
            "{on:?}"
        );
    }
}

#[test]
fn reading_leaves_a_sparse_file_sparse() {
    let image = Image::new(On::Disk, 1 << 40);
    let storage = image.open();
    assert_eq!(storage.size(), 1 << 40);
    write(&storage, 1 << 39, &[3; 4096]).unwrap();
    assert_eq!(
        read(&storage, (1 << 39) - 4096, 8192).unwrap(),
        [[0; 4096], [3; 4096]].concat()
    );
    storage.flush().unwrap();
    assert!(image.allocated() < MIB);
}

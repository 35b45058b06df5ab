//! Files in memory that grow and shrink while they are mapped.

use std::time::SystemTime;

use vhost_user_blk::storage::RawFile;

use crate::support::{Buffers, Image, On};

const MIB: u64 = 1 << 20;

fn try_write(storage: &RawFile, offset: u64, bytes: &[u8]) -> bool {
    storage.try_write_growing(&Buffers::with(bytes).iov(), offset)
}

fn try_read(storage: &RawFile, offset: u64) -> Option<Vec<u8>> {
    let mut buffers = Buffers::new(0, &[4096]);
    let done = storage.try_read_growing(&buffers.iov(), offset);
    done.then(|| buffers.bytes().to_vec())
}

#[test]
fn a_file_is_mapped_where_it_has_grown() {
    let image = Image::filled(On::Tmpfs, MIB, 7);
    let storage = image.open();
    for offset in [0, MIB, 2 * MIB, 3 * MIB, 5 * MIB, 100 * MIB, 3 << 30] {
        // With the page after it, which a mapped access needs.
        assert!(try_write(&storage, offset, &[8; 8192]), "{offset}");
        // The first access to a page of the mapping changes the time stamp as well.
        assert!(try_write(&storage, offset, &[8; 4096]), "{offset}");
        // A write with a system call would change it now.
        image.file().set_modified(SystemTime::UNIX_EPOCH).unwrap();
        assert!(try_write(&storage, offset, &[9; 4096]), "{offset}");
        let modified = image.file().metadata().unwrap().modified().unwrap();
        assert_eq!(modified, SystemTime::UNIX_EPOCH, "{offset}");
        assert_eq!(try_read(&storage, offset).unwrap(), [9; 4096], "{offset}");
        assert_eq!(try_read(&storage, offset + 4096).unwrap(), [8; 4096], "{offset}");
    }
    assert_eq!(image.file().metadata().unwrap().len(), (3 << 30) + 8192);
    assert!(image.allocated() < 2 * MIB, "what lies between is still a hole");
}

#[test]
fn parts_of_a_mapped_file_meet_without_a_gap() {
    let image = Image::filled(On::Tmpfs, MIB, 7);
    let storage = image.open();
    // The first part ends at 2 MiB, the second one at 4 MiB.
    for round in 1..4 {
        for end in [2 * MIB, 4 * MIB] {
            let offset = end - 6144;
            assert!(try_write(&storage, offset, &[round; 12288]));
            for at in (offset..end + 2048).step_by(512) {
                assert_eq!(try_read(&storage, at).unwrap(), [round; 4096], "{at}");
            }
        }
    }
}

#[test]
fn a_file_that_was_made_shorter_is_not_accessed_past_its_end() {
    let image = Image::filled(On::Tmpfs, MIB, 7);
    let storage = image.open();
    let read_all = || {
        (0..1024)
            .filter(|page| try_read(&storage, page * 4096).is_some())
            .count()
    };
    assert!(try_write(&storage, MIB, &[8; 3 << 20]));
    assert_eq!((read_all(), read_all()), (1024, 1024));
    storage.set_end(3 * MIB + 512, true).unwrap();
    assert_eq!((read_all(), read_all()), (768, 768));
    storage.set_end(4 * MIB, false).unwrap();
    assert_eq!(try_read(&storage, 4 * MIB - 4096).unwrap(), [0; 4096]);
    assert_eq!(&try_read(&storage, 3 * MIB).unwrap()[510..514], [8, 8, 0, 0]);
    assert!(try_write(&storage, 4 * MIB - 4096, &[9; 4096]));
    assert_eq!(try_read(&storage, 4 * MIB - 4096).unwrap(), [9; 4096]);
    assert_eq!(image.allocated(), 3 * MIB + 8192, "holes are not allocated");
}

#[test]
fn space_that_is_given_back_stays_free() {
    let image = Image::filled(On::Tmpfs, MIB, 7);
    let storage = image.open();
    assert!(try_write(&storage, MIB, &[8; 3 << 20]));
    for _ in 0..2 {
        assert_eq!(try_read(&storage, 2 * MIB).unwrap(), [8; 4096]);
    }
    storage.give_back(MIB / 2, 3 * MIB).unwrap();
    for page in 0..1024 {
        let byte = match page {
            0..128 => 7,
            128..896 => 0,
            _ => 8,
        };
        assert_eq!(try_read(&storage, page * 4096).unwrap(), [byte; 4096], "{page}");
    }
    assert_eq!(image.allocated(), MIB);
}

//! Slices of a file in which each entry is an offset of its own.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use super::*;
use crate::qcow2::{Header, Place as DataPlace};
use crate::storage::OpenOptions;

/// Makes a file of L2 entries, each with another cluster. Returns it with the layout of an image whose clusters have 4 KiB.
fn file(dir: &Path) -> (RawFile, SliceLayout) {
    let path = dir.join("tables");
    let mut bytes = Vec::new();
    for number in 0..64 * 512_u64 {
        bytes.extend(((number + 1) << 12).to_be_bytes());
    }
    File::create(&path).unwrap().write_all(&bytes).unwrap();
    let options = OpenOptions {
        path,
        ..OpenOptions::default()
    };
    let mut header = vec![0; 4096];
    header[..4].copy_from_slice(b"QFI\xfb");
    for (at, word) in [
        (4, 2_u32),
        (20, 12),
        (28, 1 << 20),
        (36, 1),
        (44, 4096),
        (52, 4096),
        (56, 1),
    ] {
        header[at..at + 4].copy_from_slice(&word.to_be_bytes());
    }
    let header = Header::parse(&header, true).unwrap();
    (RawFile::open(&options).unwrap(), header.slices())
}

#[test]
fn the_budget_limits_what_is_in_memory() {
    let dir = tempfile::tempdir().unwrap();
    let (file, layout) = file(dir.path());
    let per_slice = layout.bytes_per_slice();
    let cache = Cache::new(layout, 60 * per_slice, 8 * 4096);
    for number in 0..60 {
        let (guest, offset) = (number * per_slice + 4096, (number + 1) * 4096);
        assert!(cache.look(guest, offset).is_none());
        let held = cache.hold(&file, guest, offset).unwrap();
        let place = held.find(guest, 4096).unwrap().place;
        assert_eq!(place, DataPlace::Data(((number + 1) * 512 + 2) << 12));
        drop(held);
        assert!(cache.look(guest, offset).unwrap().is_right());
        assert!(cache.len() <= 8);
    }
    assert_eq!(cache.memory.len(), 9 * 512);
}

#[test]
fn a_look_is_wrong_after_a_loss() {
    let dir = tempfile::tempdir().unwrap();
    let (file, layout) = file(dir.path());
    let cache = Cache::new(layout, layout.bytes_per_slice(), 4096);
    drop(cache.hold(&file, 0, 4096).unwrap());
    let look = cache.look(0, 4096).unwrap();
    assert!(look.is_right());
    let held = cache.try_hold(0, 4096).unwrap();
    assert!(look.is_right(), "data is written where the slice says");
    drop(held);
    let alone = cache.alone(&file, 0, 4096).unwrap();
    assert!(!look.is_right() && cache.look(0, 4096).is_none() && cache.try_hold(0, 4096).is_none());
    drop(alone);
    assert!(!look.is_right());
    assert!(cache.look(0, 4096).unwrap().is_right());
}

#[test]
fn cleaning_gives_up_what_was_not_used() {
    let dir = tempfile::tempdir().unwrap();
    let (file, layout) = file(dir.path());
    for slice in [512, 4096] {
        let layout = layout.with_slice_bytes(slice).unwrap();
        let per_slice = layout.bytes_per_slice();
        let cache = Cache::new(layout, 16 * per_slice, 1 << 20);
        for number in 0..16 {
            drop(
                cache
                    .hold(&file, number * per_slice, (number + 1) * 4096)
                    .unwrap(),
            );
        }
        cache.clean();
        assert_eq!(cache.len(), 16, "all were used since the start");
        let look = cache.look(per_slice, 2 * 4096).unwrap();
        let other = cache.look(15 * per_slice, 16 * 4096).unwrap();
        other.place.used.store(false, Ordering::Relaxed);
        cache.clean();
        // A page has several small slices.
        assert_eq!(cache.len(), if slice == 512 { 8 } else { 1 });
        assert!(look.is_right() && !other.is_right());
        let held = cache.hold(&file, 15 * per_slice, 16 * 4096).unwrap();
        assert_eq!(
            held.find(15 * per_slice, 1).unwrap().place,
            DataPlace::Data((15 * 512 + 513) << 12)
        );
    }
}

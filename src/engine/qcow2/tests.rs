//! Compressed clusters that are read and written at the same time.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::thread;

use flate2::Compression;
use flate2::write::DeflateEncoder;

use super::{Qcow2Disk, Qcow2Options};
use crate::engine::node::BlockNode;
use crate::qcow2::Place;
use crate::storage::{OpenOptions, RawFile, zero_memory};

const CLUSTER: usize = 4096;

fn pattern() -> Vec<u8> {
    (0..CLUSTER)
        .map(|at| u8::try_from(at / 5 % 251).unwrap())
        .collect()
}

/// Makes an image with one compressed cluster, and opens it.
fn compressed_image(dir: &Path) -> Qcow2Disk {
    let mut encoder = DeflateEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(&pattern()).unwrap();
    let data = encoder.finish().unwrap();
    // The header, the refcount table, a refcount block, the L1 table, the L2 table, and the data.
    let mut image = vec![0; 6 * CLUSTER];
    image[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03");
    for (at, word) in [(20, 12_u32), (36, 1), (56, 1), (96, 4), (100, 104)] {
        image[at..at + 4].copy_from_slice(&word.to_be_bytes());
    }
    let sectors = data.len().div_ceil(512) as u64 - 1;
    for (at, word) in [
        (24, CLUSTER as u64),
        (40, 3 * 4096),
        (48, 4096),
        (4096, 2 * 4096),
        (3 * 4096, (4 * 4096) | (1 << 63)),
        (4 * 4096, (5 * 4096) | (sectors << 58) | (1 << 62)),
    ] {
        image[at..at + 8].copy_from_slice(&word.to_be_bytes());
    }
    (0..6).for_each(|cluster| image[2 * CLUSTER + cluster * 2 + 1] = 1);
    image[5 * CLUSTER..][..data.len()].copy_from_slice(&data);
    let path = dir.join("image");
    fs::write(&path, image).unwrap();
    let options = OpenOptions {
        path,
        ..OpenOptions::default()
    };
    let file = Arc::new(BlockNode::File(Arc::new(RawFile::open(&options).unwrap())));
    Qcow2Disk::open(&file, &Qcow2Options::default()).unwrap()
}

#[test]
fn compressed_data_stays_while_it_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let disk = compressed_image(dir.path());
    let tables = disk.tables();
    let len = CLUSTER as u64;
    // As a reader, before it reads the data.
    let (extent, held) = tables.find(&disk.file, 0, len).unwrap();
    let (_, look) = tables.find_cached(0, len).unwrap();
    let (held, look) = (held.unwrap(), look.unwrap());
    let Place::Compressed(compressed, 0) = extent.place else {
        panic!("{extent:?}");
    };
    let data = || {
        let mut data = vec![0; compressed.len];
        disk.file.read_bytes(&mut data, compressed.offset).unwrap();
        data
    };
    let before = data();
    let offset = tables.slice_offset(0).unwrap().unwrap();
    thread::scope(|scope| {
        let writer = scope.spawn(|| {
            disk.write(&zero_memory(512), 0).unwrap();
            // Frees the compressed data.
            disk.flush().unwrap();
        });
        // A slice for which a writer waits gets no more readers.
        while !writer.is_finished() && tables.try_slice(0, offset).is_some() {
            thread::yield_now();
        }
        assert!(data() == before, "the data was freed");
        assert_eq!(held.find(0, len), Ok(extent));
        drop(held);
    });
    assert!(!look.is_right(), "a reader without a lock sees the change");
    let (extent, _held) = tables.find(&disk.file, 0, len).unwrap();
    let Place::Data(host) = extent.place else {
        panic!("{extent:?}");
    };
    let mut found = vec![1; CLUSTER];
    disk.file.read_bytes(&mut found, host).unwrap();
    assert!(found[..512] == [0; 512] && found[512..] == pattern()[512..]);
}

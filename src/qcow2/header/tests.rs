//! Headers of every kind, and headers that are wrong.

use proptest::prelude::*;

use super::*;
use crate::qcow2::BackingFormat;

/// Makes a header of version 3 with clusters of 64 KiB and a disk of 1 MiB.
fn version_3() -> Vec<u8> {
    let mut bytes = vec![0; 65536];
    bytes[..4].copy_from_slice(&MAGIC);
    let words: [(usize, u32); 6] = [(4, 3), (20, 16), (36, 1), (56, 1), (96, 4), (100, 104)];
    for (at, word) in words {
        bytes[at..at + 4].copy_from_slice(&word.to_be_bytes());
    }
    let longs: [(usize, u64); 3] = [(24, 1 << 20), (40, 3 << 16), (48, 1 << 16)];
    for (at, long) in longs {
        bytes[at..at + 8].copy_from_slice(&long.to_be_bytes());
    }
    bytes
}

/// Adds an extension after the header, and those in `bytes` already.
fn extension(bytes: &mut [u8], at: usize, kind: u32, data: &[u8]) -> usize {
    bytes[at..at + 4].copy_from_slice(&kind.to_be_bytes());
    bytes[at + 4..at + 8].copy_from_slice(&u32::try_from(data.len()).unwrap().to_be_bytes());
    bytes[at + 8..at + 8 + data.len()].copy_from_slice(data);
    at + 8 + data.len().next_multiple_of(8)
}

#[test]
fn a_header_of_version_3_is_read() {
    let header = Header::parse(&version_3(), false).unwrap();
    assert_eq!((header.version, header.size, header.l1_entries), (3, 1 << 20, 1));
    assert_eq!(
        (header.l1_table_offset, header.refcount_table_offset),
        (3 << 16, 1 << 16)
    );
    assert_eq!(
        (header.backing_file, header.compression),
        (None, CompressionType::Zlib)
    );
}

#[test]
fn version_2_has_no_features() {
    let mut bytes = version_3();
    bytes[7] = 2;
    // These fields do not exist.
    bytes[72..104].fill(0xff);
    // The extensions begin earlier.
    bytes[72..80].fill(0);
    let header = Header::parse(&bytes, false).unwrap();
    assert_eq!(
        (header.version, header.refcount_order, header.extended_l2),
        (2, 4, false)
    );
}

#[test]
fn extensions_and_the_backing_file_are_read() {
    let mut bytes = version_3();
    let next = extension(&mut bytes, 104, 0xe279_2aca, b"qcow2");
    let next = extension(&mut bytes, next, 0x1234_5678, b"unknown");
    let next = extension(&mut bytes, next, 0x4441_5441, b"data");
    bytes[next + 8..next + 12].copy_from_slice(b"base");
    bytes[8..16].copy_from_slice(&(next as u64 + 8).to_be_bytes());
    bytes[16..20].copy_from_slice(&4_u32.to_be_bytes());
    let header = Header::parse(&bytes, false).unwrap();
    assert_eq!(header.backing_file.as_deref(), Some("base"));
    assert_eq!(header.extensions.backing_format, Some(BackingFormat::Qcow2));
    assert_eq!(header.extensions.data_file.as_deref(), Some("data"));
}

#[test]
fn a_corrupt_image_is_only_read() {
    let mut bytes = version_3();
    bytes[79] = 2;
    assert_eq!(Header::parse(&bytes, false), Err(HeaderError::Corrupt));
    assert!(Header::parse(&bytes, true).unwrap().corrupt);
}

#[test]
fn unknown_features_are_named() {
    let mut bytes = version_3();
    bytes[78] = 3;
    let mut table = [0; 96];
    table[1] = 9;
    table[2..9].copy_from_slice(b"new\nbit");
    // Bit 8 as a compatible feature is another one.
    (table[48], table[49], table[50]) = (1, 8, b'x');
    extension(&mut bytes, 104, 0x6803_f857, &table);
    let error = Header::parse(&bytes, true).unwrap_err();
    assert_eq!(error, HeaderError::Features("bit 8, bit 9 (newbit)".to_owned()));
}

#[test]
fn sizes_have_bounds() {
    let with = |at: usize, value: u64| {
        let mut bytes = version_3();
        bytes[at..at + 8].copy_from_slice(&value.to_be_bytes());
        Header::parse(&bytes, true)
    };
    assert_eq!(with(24, 0), Err(HeaderError::DiskSize(0)));
    assert_eq!(with(24, 1000), Err(HeaderError::DiskSize(1000)));
    // 2^22 tables of 512 MiB.
    assert_eq!(with(24, 1 << 51), Err(HeaderError::L1Size));
    assert_eq!(
        with(24, (1 << 51) + 512),
        Err(HeaderError::DiskTooLarge((1 << 51) + 512))
    );
    assert_eq!(with(40, 0), Err(HeaderError::Place("L1 table")));
    assert_eq!(with(40, 512), Err(HeaderError::Place("L1 table")));
    assert_eq!(with(40, u64::MAX << 16), Err(HeaderError::Place("L1 table")));
    assert_eq!(with(48, 512), Err(HeaderError::Place("refcount table")));
    assert_eq!(with(8, 65535).unwrap().backing_file, None);
}

proptest! {
    #[test]
    fn no_header_is_taken_past_its_bounds(
        bytes in proptest::collection::vec(any::<u8>(), 0..300),
        places in proptest::collection::vec((0_usize..200, any::<u8>()), 0..6),
    ) {
        let mut near = version_3();
        for (at, byte) in places {
            near[at] = byte;
        }
        for bytes in [bytes, near] {
            if let Ok(header) = Header::parse(&bytes, true) {
                prop_assert!(u64::from(header.l1_entries) * header.slices().bytes_per_table() >= header.size);
                prop_assert!(u64::from(header.l1_entries) * 8 <= L1_MAX);
                prop_assert!(header.cluster.divides(header.l1_table_offset));
            }
        }
    }
}

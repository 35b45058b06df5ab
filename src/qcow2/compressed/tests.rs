//! Compressed data, whole and damaged.

use std::io::Write;

use flate2::Compression;
use flate2::write::DeflateEncoder;
use proptest::prelude::*;

use super::*;

fn deflated(data: &[u8]) -> Vec<u8> {
    let mut encoder = DeflateEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

fn zstd(data: &[u8]) -> Vec<u8> {
    ruzstd::encoding::compress_to_vec(data, ruzstd::encoding::CompressionLevel::Fastest)
}

fn pattern(len: usize) -> Vec<u8> {
    let byte = |at: usize| u8::try_from(at / 7 % 251).unwrap();
    (0..len).map(byte).collect()
}

#[test]
fn clusters_of_all_sizes_are_decompressed() {
    for bits in [9, 12, 16, 21] {
        let cluster = pattern(1 << bits);
        for (method, mut data) in [
            (CompressionType::Zlib, deflated(&cluster)),
            (CompressionType::Zstd, zstd(&cluster)),
        ] {
            // What follows in the last sector belongs to others.
            data.extend([0xa5; 100]);
            let mut found = vec![0; cluster.len()];
            decompress(method, &data, &mut found).unwrap();
            assert!(found == cluster, "{method:?} {bits}");
        }
    }
}

#[test]
fn data_that_does_not_fill_a_cluster_is_refused() {
    let half = pattern(2048);
    for (method, data) in [
        (CompressionType::Zlib, deflated(&half)),
        (CompressionType::Zstd, zstd(&half)),
        (CompressionType::Zlib, Vec::new()),
        (CompressionType::Zstd, Vec::new()),
    ] {
        let refused = decompress(method, &data, &mut [0; 4096]);
        assert_eq!(refused, Err(Corruption::Compressed), "{method:?}");
    }
}

#[test]
fn large_windows_of_zstd_are_refused() {
    // A frame without a content size, whose window is 2^31 bytes: the decoder would allocate that.
    let frame = [0x28, 0xb5, 0x2f, 0xfd, 0x00, 21 << 3, 0x01, 0x00, 0x00];
    let refused = decompress(CompressionType::Zstd, &frame, &mut [0; 512]);
    assert_eq!(refused, Err(Corruption::Compressed));
}

proptest! {
    #[test]
    fn damaged_data_is_harmless(
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8),
        noise in proptest::collection::vec(any::<u8>(), 0..300),
    ) {
        let cluster = pattern(4096);
        for (method, data) in [
            (CompressionType::Zlib, deflated(&cluster)),
            (CompressionType::Zstd, zstd(&cluster)),
        ] {
            let mut damaged = data.clone();
            for (at, byte) in &damage {
                let at = at.index(damaged.len());
                damaged[at] = *byte;
            }
            let _ = decompress(method, &damaged, &mut [0; 4096]);
            let _ = decompress(method, &noise, &mut [0; 4096]);
        }
    }
}

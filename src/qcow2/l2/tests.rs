//! Entries of L2 tables.

use proptest::prelude::*;

use super::entry::{COMPRESSED, COPIED, ZERO};
use super::layout::SUBCLUSTERS;
use super::*;
use crate::qcow2::{ClusterSize, CompressedCluster};

const KIB_64: u64 = 1 << 16;

fn layout(bits: u32, extended: bool, external_data: bool) -> SliceLayout {
    SliceLayout::new(ClusterSize::from_bits(bits).unwrap(), extended, external_data)
}

/// Makes a slice with these words at its start. Its memory is never freed.
fn slice(layout: SliceLayout, words: &[u64]) -> Slice<'static> {
    let memory: Vec<AtomicU64> = (0..layout.slice_bytes() / 8).map(|_| AtomicU64::new(0)).collect();
    let slice = Slice::new(layout, memory.leak());
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_be_bytes()).collect();
    slice.load(&bytes);
    slice
}

fn found(len: u64, place: Place) -> Result<Extent, Corruption> {
    Ok(Extent { len, place })
}

#[test]
fn adjacent_clusters_are_one_extent() {
    let slice = slice(
        layout(16, false, false),
        &[COPIED | 5 << 16, COPIED | 6 << 16, 9 << 16, ZERO, ZERO | 7 << 16],
    );
    assert_eq!(
        slice.find(512, 1 << 20),
        found(2 * KIB_64 - 512, Place::Data((5 << 16) + 512))
    );
    assert_eq!(slice.find(512, 1024), found(1024, Place::Data((5 << 16) + 512)));
    assert_eq!(
        slice.find(2 * KIB_64, 1 << 20),
        found(KIB_64, Place::Data(9 << 16))
    );
    // A zero cluster may have a preallocated cluster.
    assert_eq!(slice.find(3 * KIB_64, 1 << 20), found(2 * KIB_64, Place::Zero));
    // An extent ends with the slice.
    let whole = slice.layout.bytes_per_slice();
    assert_eq!(
        slice.find(5 * KIB_64, u64::MAX),
        found(whole - 5 * KIB_64, Place::Backing)
    );
    assert_eq!(slice.find(whole + KIB_64, 1), found(1, Place::Data(6 << 16)));
}

#[test]
fn invalid_entries_fail_alone() {
    let bad = COPIED | ((5 << 16) + 512);
    let slice = slice(layout(16, false, false), &[4 << 16, bad, 6 << 16]);
    assert_eq!(slice.find(0, 1 << 20), found(KIB_64, Place::Data(4 << 16)));
    assert_eq!(slice.find(KIB_64, 1), Err(Corruption::L2Entry(bad)));
    assert_eq!(slice.find(2 * KIB_64, 1), found(1, Place::Data(6 << 16)));
}

#[test]
fn the_first_cluster_of_a_data_file_is_data() {
    let words = [COPIED, 0];
    let with_data_file = slice(layout(16, false, true), &words);
    assert_eq!(with_data_file.find(0, 512), found(512, Place::Data(0)));
    assert_eq!(with_data_file.find(KIB_64, 512), found(512, Place::Backing));
    let compressed = slice(layout(16, false, true), &[COMPRESSED]);
    assert_eq!(compressed.find(0, 512), Err(Corruption::L2Entry(COMPRESSED)));
    assert_eq!(
        slice(layout(16, false, false), &words).find(0, 512),
        found(512, Place::Backing)
    );
}

#[test]
fn a_compressed_cluster_has_sectors() {
    let cluster = ClusterSize::from_bits(16).unwrap();
    // 62 - (16 - 8) bits of offset, then the number of further sectors.
    let entry = COMPRESSED | 3 << 54 | 0x12345;
    let compressed = CompressedCluster::of_entry(entry, cluster);
    assert_eq!((compressed.offset, compressed.len), (0x12345, 4 * 512 - 0x145));
    let slice = slice(layout(16, false, false), &[entry, entry]);
    assert_eq!(
        slice.find(100, KIB_64),
        found(KIB_64 - 100, Place::Compressed(compressed, 100))
    );
}

#[test]
fn subclusters_have_places_of_their_own() {
    let sub = KIB_64 / SUBCLUSTERS;
    // Two with data, one that is zero, one that is unallocated, one that is invalid.
    let bitmap = 0b10011 | 0b10100 << 32;
    let slice = slice(layout(16, true, false), &[5 << 16, bitmap, 0, 1 << 33, 0, 1]);
    assert_eq!(slice.find(0, KIB_64), found(2 * sub, Place::Data(5 << 16)));
    assert_eq!(slice.find(2 * sub + 1, KIB_64), found(sub - 1, Place::Zero));
    assert_eq!(slice.find(3 * sub, KIB_64), found(sub, Place::Backing));
    assert_eq!(slice.find(4 * sub, KIB_64), Err(Corruption::Bitmap(bitmap)));
    // Without a cluster, a subcluster may be zero, but cannot have data.
    assert_eq!(slice.find(KIB_64 + sub, sub), found(sub, Place::Zero));
    assert_eq!(slice.find(2 * KIB_64, sub), Err(Corruption::Bitmap(1)));
}

proptest! {
    #[test]
    fn every_slice_maps_within_bounds(
        bits in 9_u32..=21,
        extended in any::<bool>(),
        external in any::<bool>(),
        words in proptest::collection::vec(any::<u64>(), 0..64),
        places in proptest::collection::vec((any::<u64>(), 1_u64..1 << 24), 1..20),
    ) {
        let layout = layout(bits, extended && bits >= 14, external);
        let slice = slice(layout, &words);
        for (guest, len) in places {
            let guest = guest >> 8;
            if let Ok(extent) = slice.find(guest, len) {
                prop_assert!(extent.len > 0 && extent.len <= len);
                let left = layout.bytes_per_slice() - guest % layout.bytes_per_slice();
                prop_assert!(extent.len <= left);
                match extent.place {
                    Place::Data(at) => prop_assert!(at < 1 << 57),
                    Place::Compressed(compressed, within) => {
                        prop_assert!(compressed.len <= 2 << bits);
                        prop_assert!(within + extent.len <= 1 << bits);
                    }
                    _ => {}
                }
            }
        }
    }
}

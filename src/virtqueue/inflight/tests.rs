//! Recovery from in-flight regions, and the refusal of invalid ones.

use std::fs::File;
use std::os::unix::fs::FileExt;

use super::*;

const QUEUE_SIZE: u16 = 8;
const FAIR: [(u16, u64); 2] = [(3, 100), (1, 99)];

/// A region for two queues, the second of which has chains 1 and 3 in flight, in this order, and used index 7.
struct Fixture {
    file: File,
    layout: RegionLayout,
}

impl Fixture {
    fn new() -> Self {
        let (layout, file) = InflightRegion::create(2, QUEUE_SIZE).unwrap();
        let fixture = Self { file, layout };
        fixture.put(VERSION, &1u16.to_ne_bytes());
        fixture.put(DESC_NUM, &QUEUE_SIZE.to_ne_bytes());
        fixture.put(USED_IDX, &7u16.to_ne_bytes());
        for (head, counter) in FAIR {
            fixture.put(entry(head), &[1]);
            fixture.put(entry(head) + COUNTER, &counter.to_ne_bytes());
        }
        fixture
    }

    /// Writes into the second queue's part.
    fn put(&self, offset: usize, bytes: &[u8]) {
        // 16 bytes of header and 16 for each of eight descriptors, up to the next multiple of 64.
        self.file.write_all_at(bytes, 192 + offset as u64).unwrap();
    }

    fn map(&self) -> Result<InflightRegion, RegionError> {
        InflightRegion::map(&self.file, self.layout)
    }

    /// Recovers the second queue, on a ring with this used index.
    fn recover(&self, ring_size: u16, used_idx: u16) -> Result<Recovered, InflightError> {
        let area = match self.map().and_then(|region| region.queue(1, ring_size.into())) {
            Ok(area) => area,
            Err(RegionError::Corrupt { queue: 1, source }) => return Err(source),
            Err(other) => panic!("{other}"),
        };
        Inflight::resume(area, ring_size, used_idx).map(|(_, recovered)| recovered)
    }
}

fn entry(head: u16) -> usize {
    HEADER_LEN + ENTRY_LEN * usize::from(head)
}

#[test]
fn chains_are_recovered_in_counter_order() {
    let recovered = Fixture::new().recover(QUEUE_SIZE, 7).unwrap();
    assert_eq!((recovered.heads, recovered.resumed), (vec![3, 1], true));
}

#[test]
fn layout_follows_the_protocol() {
    let (layout, file) = InflightRegion::create(3, 128).unwrap();
    assert_eq!((layout.size, layout.offset), (3 * 2112 + 64 + 3 * 16448, 0));
    assert!(
        file.set_len(0).is_err() && file.set_len(1 << 20).is_err(),
        "sealed"
    );
}

#[test]
fn device_state_is_kept_in_own_regions_only() {
    let fixture = Fixture::new();
    assert_eq!(fixture.map().unwrap().device_state(), None);
    for state in [0, 1, 127] {
        fixture.map().unwrap().set_device_state(state);
        assert_eq!(fixture.map().unwrap().device_state(), Some(state));
    }
    for spare in [0, 1] {
        assert_eq!(fixture.map().unwrap().spare(spare).unwrap().get(), 0);
        fixture.map().unwrap().spare(spare).unwrap().set(1);
    }
    assert_eq!(fixture.map().unwrap().device_state(), Some(127));
    let foreign = Fixture {
        layout: RegionLayout {
            size: 2 * 192,
            ..fixture.layout
        },
        ..fixture
    };
    let region = foreign.map().unwrap();
    region.set_device_state(1);
    assert_eq!(region.device_state(), None);
    assert!(region.spare(0).is_none());
}

#[test]
fn impossible_headers_are_refused() {
    for (offset, bytes, expected) in [
        (FEATURES, &1u64.to_ne_bytes()[..], InflightError::Features(1)),
        (VERSION, &2u16.to_ne_bytes(), InflightError::Version(2)),
        (
            DESC_NUM,
            &16u16.to_ne_bytes(),
            InflightError::Size {
                found: 16,
                expected: 8,
            },
        ),
        // An unused part with a chain in flight.
        (
            VERSION,
            &0u16.to_ne_bytes(),
            InflightError::Mark { head: 1, mark: 1 },
        ),
    ] {
        let fixture = Fixture::new();
        fixture.put(offset, bytes);
        assert_eq!(fixture.recover(QUEUE_SIZE, 7), Err(expected));
    }
}

#[test]
fn impossible_entries_are_refused() {
    for (offset, bytes, expected) in [
        (entry(2), &[2][..], InflightError::Mark { head: 2, mark: 2 }),
        (
            entry(1) + COUNTER,
            &100u64.to_ne_bytes(),
            InflightError::Counter {
                head: 3,
                counter: 100,
            },
        ),
        (
            entry(1) + COUNTER,
            &[0xff; 8],
            InflightError::Counter {
                head: 1,
                counter: u64::MAX,
            },
        ),
    ] {
        let fixture = Fixture::new();
        fixture.put(offset, bytes);
        assert_eq!(fixture.recover(QUEUE_SIZE, 7), Err(expected));
    }
    let beyond = Fixture::new().recover(2, 7);
    assert_eq!(beyond, Err(InflightError::Mark { head: 3, mark: 1 }));
}

#[test]
fn invalid_last_batches_are_refused() {
    let fixture = Fixture::new();
    fixture.put(LAST_BATCH_HEAD, &5u16.to_ne_bytes());
    fixture.put(entry(5) + NEXT, &3u16.to_ne_bytes());
    let used = |ring| InflightError::UsedIndex { recorded: 7, ring };
    assert_eq!(fixture.recover(QUEUE_SIZE, 6), Err(used(6)));
    assert_eq!(fixture.recover(QUEUE_SIZE, 16), Err(used(16)));
    assert_eq!(fixture.recover(QUEUE_SIZE, 9).unwrap().heads, [1]);

    let fixture = Fixture::new();
    fixture.put(LAST_BATCH_HEAD, &5u16.to_ne_bytes());
    fixture.put(entry(5) + NEXT, &5u16.to_ne_bytes());
    assert_eq!(fixture.recover(QUEUE_SIZE, 9), Err(InflightError::BatchList(5)));
    fixture.put(LAST_BATCH_HEAD, &8u16.to_ne_bytes());
    assert_eq!(fixture.recover(QUEUE_SIZE, 8), Err(InflightError::BatchList(8)));
}

#[test]
fn idle_queues_accept_any_used_index() {
    let fixture = Fixture::new();
    FAIR.iter().for_each(|&(head, _)| fixture.put(entry(head), &[0]));
    assert!(fixture.recover(QUEUE_SIZE, 0).unwrap().heads.is_empty());
}

#[test]
fn invalid_queue_counts_and_sizes_are_refused() {
    for (queues, queue_size) in [(0, 8), (1, 0), (1, 7), (1, 2048)] {
        assert!(matches!(
            InflightRegion::create(queues, queue_size),
            Err(RegionError::Queues { .. })
        ));
    }
    let layout = RegionLayout {
        size: 2 * 192 + 64,
        ..Fixture::new().layout
    };
    let foreign = Fixture {
        layout,
        ..Fixture::new()
    };
    let too_large = foreign.recover(16, 7);
    assert!(matches!(too_large, Err(InflightError::Size { found: 8, .. })));
}

#[test]
fn larger_rings_have_their_own_parts() {
    let fixture = Fixture::new();
    assert!(!fixture.recover(16, 7).unwrap().resumed);
    let area = fixture.map().unwrap().queue(1, 16).unwrap();
    let (mut inflight, _) = Inflight::resume(area, 16, 7).unwrap();
    inflight.take(15);
    drop(inflight);
    let recovered = fixture.recover(16, 7).unwrap();
    assert_eq!((recovered.heads, recovered.resumed), (vec![15], true));
    assert_eq!(
        fixture.recover(QUEUE_SIZE, 7).unwrap().heads,
        [3, 1],
        "the other part"
    );
}

#[test]
fn region_must_fit_its_file_and_queues() {
    let fixture = Fixture::new();
    let file = || fixture.file.try_clone().unwrap();
    let layout = fixture.layout;
    for (size, offset) in [
        (layout.size, 1),
        (u64::MAX, 1),
        (layout.size + 1, 0),
        (1 << 40, 0),
    ] {
        let layout = RegionLayout {
            size,
            offset,
            ..layout
        };
        let mapped = InflightRegion::map(&file(), layout);
        assert!(matches!(mapped, Err(RegionError::BeyondEof { .. })), "{layout:?}");
    }
    // Without the trailer and the large parts.
    let layout = RegionLayout {
        size: 2 * 192,
        ..layout
    };
    for layout in [
        RegionLayout { queues: 3, ..layout },
        RegionLayout {
            queue_size: 16,
            ..layout
        },
        RegionLayout { size: 0, ..layout },
    ] {
        let mapped = InflightRegion::map(&file(), layout);
        assert!(matches!(mapped, Err(RegionError::TooSmall { .. })), "{layout:?}");
    }
}

#[test]
fn files_that_cannot_be_sealed_are_accepted() {
    let layout = Fixture::new().layout;
    let file = tempfile::tempfile_in("/dev/shm").unwrap();
    file.set_len(layout.size).unwrap();
    let region = InflightRegion::map(&file, layout).unwrap();
    let area = region.queue(0, 8).unwrap();
    file.set_len(0).unwrap();
    let (inflight, _) = Inflight::resume(area, 8, 0).unwrap();
    assert!(inflight.is_lost(), "the loss of memory is noticed");
}

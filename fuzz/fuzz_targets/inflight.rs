//! In-flight regions of arbitrary bytes: refused, or recovered as the protocol says, and nothing else is touched.
#![no_main]

use std::os::unix::fs::FileExt;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use vhost_user_blk::virtqueue::{InflightRegion, RegionLayout, RingAddresses, RingFeatures, SplitRing};
use vhost_user_blk_fuzz::guest::{APART, Guest, RINGS, memfd};

const AVAIL: u64 = 0;
const USED: u64 = 0x1000;
/// A part's header, and each of its entries (vhost-user, "Inflight I/O tracking": queue_region_split).
const HEADER: usize = 16;
const ENTRY: usize = 16;

#[derive(Arbitrary, Debug)]
struct Input {
    fresh: bool,
    layout: Layout,
    queue: u8,
    ring_size: u8,
    used_idx: u16,
    fill: u8,
    header: Header,
    marks: Vec<Mark>,
    patches: Vec<(u16, u8)>,
    steps: Vec<Step>,
}

#[derive(Arbitrary, Debug)]
struct Layout {
    queues: u8,
    queue_size: u8,
    /// Instead of what is needed.
    odd: Option<(u64, u64, u16, u16)>,
    pages_before: u8,
}

/// What an honest predecessor would leave, or nearly.
#[derive(Arbitrary, Debug)]
struct Header {
    features: u8,
    version: u8,
    desc_num_off: u8,
    last_batch_head: u16,
    used_idx_behind: u16,
}

#[derive(Arbitrary, Debug)]
struct Mark {
    head: u16,
    mark: u8,
    next: u16,
    counter: u64,
}

#[derive(Arbitrary, Debug)]
enum Step {
    Pop,
    Push(u8),
    Publish,
}

#[derive(Debug, PartialEq, Eq)]
struct Recovery {
    /// In the order in which they are to be submitted again.
    heads: Vec<u16>,
    resumed: bool,
}

fuzz_target!(|input: Input| {
    let ring_size = 1u16 << (input.ring_size % 11);
    let queues = u16::from(input.layout.queues % 4) + 1;
    let queue_size = 1u16 << (input.layout.queue_size % 11);
    let stride = (HEADER + ENTRY * usize::from(queue_size)).next_multiple_of(64);
    let offset = u64::from(input.layout.pages_before % 3) * 4096;
    let mut layout = RegionLayout {
        size: (stride * usize::from(queues)) as u64 + 64,
        offset,
        queues,
        queue_size,
    };
    let len = offset + layout.size;
    if let Some((size, offset, queues, queue_size)) = input.layout.odd {
        layout = RegionLayout {
            size,
            offset,
            queues,
            queue_size,
        };
    }
    let queue = usize::from(input.queue) % usize::from(queues);
    let part = offset as usize + queue * stride;
    let mut bytes = vec![0; len as usize];
    if !input.fresh {
        fill(&mut bytes[part..part + stride], &input, queue_size);
    }
    for &(at, byte) in input.patches.iter().take(64) {
        let at = usize::from(at) % bytes.len();
        bytes[at] = byte;
    }
    let file = memfd(len);
    file.write_all_at(&bytes, 0).expect("write the region");
    let region = match InflightRegion::map(&file, layout) {
        Ok(region) => region,
        Err(_) => {
            unchanged(&file, &bytes);
            return;
        }
    };
    assert!(
        region
            .queue(usize::from(layout.queues), ring_size.into())
            .is_err()
    );
    if input.layout.odd.is_some() {
        return;
    }
    let expected = recover(&bytes[part..part + stride], queue_size, ring_size, input.used_idx);
    let guest = Guest::new();
    let mut ring = ring(&guest, ring_size, input.used_idx);
    let area = region
        .queue(queue, ring_size.into())
        .expect("it was checked with the region");
    match (ring.track(area), expected) {
        (Ok(resumed), Some(expected)) => {
            assert_eq!(resumed, expected.resumed);
            run(&mut ring, &guest, expected, &input.steps);
        }
        (Err(_), None) => {}
        (found, expected) => panic!("{found:?} and not {expected:?}"),
    }
    // Other queues' parts and what is around them are as they were.
    let mut now = vec![0; bytes.len()];
    file.read_exact_at(&mut now, 0).expect("read the region");
    now[part..part + stride].copy_from_slice(&bytes[part..part + stride]);
    assert!(now == bytes, "a byte outside the queue's part was changed");
});

fn fill(part: &mut [u8], input: &Input, queue_size: u16) {
    part.fill(input.fill);
    if input.fill > 1 {
        return;
    }
    part.fill(0);
    let h = &input.header;
    part[0] = u8::from(h.features == 0xff);
    part[8..10].copy_from_slice(&u16::from(h.version % 8 != 7).to_le_bytes());
    let desc_num = queue_size.wrapping_add(u16::from(h.desc_num_off == 0xff));
    part[10..12].copy_from_slice(&desc_num.to_le_bytes());
    part[12..14].copy_from_slice(&h.last_batch_head.to_le_bytes());
    let recorded = input.used_idx.wrapping_sub(h.used_idx_behind);
    part[14..16].copy_from_slice(&recorded.to_le_bytes());
    for m in input.marks.iter().take(64) {
        let at = HEADER + ENTRY * usize::from(m.head % queue_size);
        part[at] = if m.mark == 0xff { 2 } else { m.mark % 2 };
        part[at + 6..at + 8].copy_from_slice(&m.next.to_le_bytes());
        part[at + 8..at + 16].copy_from_slice(&m.counter.to_le_bytes());
    }
}

fn ring(guest: &Guest, size: u16, used_idx: u16) -> SplitRing {
    guest.write(USED + 2, &used_idx.to_le_bytes());
    guest.write(AVAIL + 2, &used_idx.to_le_bytes());
    let addresses = RingAddresses {
        desc: APART.user,
        avail: RINGS.user + AVAIL,
        used: RINGS.user + USED,
    };
    let features = RingFeatures::default();
    SplitRing::new(&guest.table(), addresses, size.into(), used_idx, features).expect("a good ring")
}

fn unchanged(file: &std::fs::File, bytes: &[u8]) {
    let mut now = vec![0; bytes.len()];
    file.read_exact_at(&mut now, 0).expect("read the region");
    assert!(now == bytes, "a region that was refused was changed");
}

/// What the protocol says about a part that a backend which was killed has left; nothing if no backend can have.
fn recover(part: &[u8], queue_size: u16, ring_size: u16, used_idx: u16) -> Option<Recovery> {
    let u16_at = |at: usize| u16::from_le_bytes([part[at], part[at + 1]]);
    let counter = |head: u16| {
        let at = HEADER + ENTRY * usize::from(head) + 8;
        u64::from_le_bytes(part[at..at + 8].try_into().expect("eight bytes"))
    };
    let next = |head: u16| u16_at(HEADER + ENTRY * usize::from(head) + 6);
    let mut marks: Vec<u8> = (0..queue_size)
        .map(|head| part[HEADER + ENTRY * usize::from(head)])
        .collect();
    let (version, desc_num) = (u16_at(8), u16_at(10));
    if part[..8] != [0; 8] || queue_size < ring_size || version > 1 {
        return None;
    }
    if version == 0 {
        let fresh = Recovery {
            heads: Vec::new(),
            resumed: false,
        };
        return marks.iter().all(|&m| m == 0).then_some(fresh);
    }
    let beyond = &marks[usize::from(ring_size)..];
    if desc_num != queue_size || marks.iter().any(|&m| m > 1) || beyond.contains(&1) {
        return None;
    }
    if marks.contains(&1) {
        // The batch that was published, perhaps, after the index was recorded: no longer in flight.
        let batch = used_idx.wrapping_sub(u16_at(14));
        if batch > ring_size {
            return None;
        }
        let (mut head, mut seen) = (u16_at(12), Vec::new());
        for _ in 0..batch {
            if head >= ring_size || seen.contains(&head) {
                return None;
            }
            marks[usize::from(head)] = 0;
            seen.push(head);
            head = next(head);
        }
    }
    let mut heads: Vec<u16> = (0..ring_size).filter(|&h| marks[usize::from(h)] == 1).collect();
    heads.sort_by_key(|&h| counter(h));
    let twice = heads.windows(2).any(|pair| counter(pair[0]) == counter(pair[1]));
    let at_the_end = heads.last().is_some_and(|&h| counter(h) == u64::MAX);
    (!twice && !at_the_end).then_some(Recovery { heads, resumed: true })
}

/// What was in flight comes first; then the ring goes on, and no chain is out twice.
fn run(ring: &mut SplitRing, guest: &Guest, recovery: Recovery, steps: &[Step]) {
    let mut held = Vec::new();
    for head in recovery.heads {
        assert_eq!(ring.pop(), Ok(Some(head)));
        held.push(head);
    }
    if !recovery.resumed {
        assert_eq!(ring.pop(), Ok(None));
    }
    // All entries name descriptor 0, then 1, and so on.
    for slot in 0..ring.size() {
        guest.write(AVAIL + 4 + 2 * u64::from(slot), &slot.to_le_bytes());
    }
    let idx = ring.next_avail().wrapping_add(ring.size());
    guest.write(AVAIL + 2, &idx.to_le_bytes());
    let mut waiting = Vec::new();
    for step in steps.iter().take(200) {
        match *step {
            Step::Pop => match ring.pop() {
                Ok(Some(head)) => {
                    assert!(
                        !held.contains(&head) && !waiting.contains(&head),
                        "{head} is out twice"
                    );
                    held.push(head);
                }
                Ok(None) => {}
                Err(_) => return,
            },
            Step::Push(pick) if !held.is_empty() => {
                let head = held.swap_remove(usize::from(pick) % held.len());
                ring.push_used(head, 1);
                waiting.push(head);
            }
            Step::Push(_) => {}
            Step::Publish => {
                ring.publish();
                waiting.clear();
            }
        }
    }
}

//! Passes in-flight regions of arbitrary bytes to the daemon's code, which must refuse them or recover from them as the
//! protocol says. Nothing else may change.
#![no_main]

use std::ops::Range;
use std::os::unix::fs::FileExt;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use testkit::inflight::stride;
use testkit::ring::{DriverRing, RingMemory};
use vhost_user_blk::virtqueue::{
    InflightArea, InflightRegion, RegionLayout, RingAddresses, RingFeatures, SplitRing,
};
use vhost_user_blk_fuzz::guest::{APART, Guest, RINGS, memfd};

const AVAIL: u64 = 0;
const USED: u64 = 0x1000;
/// Length of a part's header and of each entry, in bytes (vhost-user, "Inflight I/O tracking": queue_region_split).
const HEADER: usize = testkit::inflight::HEADER as usize;
const ENTRY: usize = testkit::inflight::ENTRY as usize;
/// Length of the trailer that follows the protocol's parts in the daemon's own regions: a magic and spare bytes.
const TRAILER: u64 = 64;
const MAGIC: [u8; 8] = *b"vublk-01";
/// The size of the largest ring. Each queue has a second part for it after the trailer.
const LARGEST: u16 = 1024;
/// Bits of `pages_before`: the file has large parts; the size that the frontend claims leaves them out.
const LARGE: u8 = 0x80;
const CUT: u8 = 0x40;

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
    /// The size, offset, number of queues and queue size to claim instead of the right ones.
    odd: Option<(u64, u64, u16, u16)>,
    pages_before: u8,
}

/// A header as a well-behaved predecessor would leave it, or nearly.
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
    /// The chains to submit again, in order.
    heads: Vec<u16>,
    resumed: bool,
}

fuzz_target!(|input: Input| {
    let ring_size = 1u16 << (input.ring_size % 11);
    let (layout, len) = layout(&input);
    let queue = u16::from(input.queue) % layout.queues;
    let (bytes, parts) = content(&input, layout, len, queue, ring_size);
    let file = memfd(len);
    file.write_all_at(&bytes, 0).expect("write the region");
    let odd = |(size, offset, queues, queue_size)| RegionLayout {
        size,
        offset,
        queues,
        queue_size,
    };
    let claimed = input.layout.odd.map_or(layout, odd);
    let Ok(region) = InflightRegion::map(&file, claimed) else {
        return unchanged(&file, &bytes);
    };
    assert!(
        region
            .queue(usize::from(claimed.queues), ring_size.into())
            .is_err()
    );
    if input.layout.odd.is_some() {
        return;
    }
    let part = parts.of(queue);
    let expected = recover(&bytes[part.clone()], parts.size(), ring_size, input.used_idx);
    let area = match region.queue(queue.into(), ring_size.into()) {
        Ok(area) => area,
        // The daemon checks only the protocol's parts together with the region.
        Err(_) if parts.is_large && expected.is_none() => return unchanged(&file, &bytes),
        Err(error) => panic!("{error:?} and not {expected:?}"),
    };
    track(area, expected, ring_size, &input);
    // The other queues' parts and the bytes around the parts are unchanged.
    let mut now = vec![0; bytes.len()];
    file.read_exact_at(&mut now, 0).expect("read the region");
    now[part.clone()].copy_from_slice(&bytes[part]);
    assert!(now == bytes, "a byte outside the queue's part was changed");
});

/// Returns a good layout, and the length of the file.
fn layout(input: &Input) -> (RegionLayout, u64) {
    let queues = u16::from(input.layout.queues % 4) + 1;
    let queue_size = 1u16 << (input.layout.queue_size % 11);
    let mut layout = RegionLayout {
        size: needed(queues, queue_size) + TRAILER,
        offset: u64::from(input.layout.pages_before % 3) * 4096,
        queues,
        queue_size,
    };
    let mut len = layout.offset + layout.size;
    if input.layout.has(LARGE) && queue_size < LARGEST {
        len += needed(queues, LARGEST);
        if !input.layout.has(CUT) {
            layout.size = len - layout.offset;
        }
    }
    (layout, len)
}

/// Returns the content of the file, and the location of the parts that the ring uses.
fn content(input: &Input, layout: RegionLayout, len: u64, queue: u16, ring_size: u16) -> (Vec<u8>, Parts) {
    let RegionLayout {
        offset,
        queues,
        queue_size,
        ..
    } = layout;
    let has = |bit| input.layout.has(bit);
    let mut bytes = vec![0; len as usize];
    let mut parts = Parts {
        start: offset as usize,
        trailer: (offset + needed(queues, queue_size)) as usize,
        is_large: ring_size > queue_size && has(LARGE) && !has(CUT),
        queue_size,
    };
    if has(LARGE) {
        bytes[parts.trailer..][..MAGIC.len()].copy_from_slice(&MAGIC);
    }
    if !input.fresh {
        fill(&mut bytes[parts.of(queue)], input, parts.size());
    }
    for &(at, byte) in input.patches.iter().take(64) {
        let at = usize::from(at) % bytes.len();
        bytes[at] = byte;
    }
    parts.is_large &= bytes[parts.trailer..].starts_with(&MAGIC);
    (bytes, parts)
}

/// Makes a ring continue from a part. The ring must recover as expected, or fail if nothing is expected.
fn track(area: InflightArea, expected: Option<Recovery>, ring_size: u16, input: &Input) {
    let guest = Guest::new();
    let mut driver = DriverRing::new(ring_size, APART.guest as usize, AVAIL as usize, USED as usize);
    driver.continue_at(&guest, input.used_idx);
    let mut ring = ring(&guest, ring_size, input.used_idx);
    match (ring.track(area), expected) {
        (Ok(resumed), Some(expected)) => {
            assert_eq!(resumed, expected.resumed);
            run(&mut ring, &guest, driver, expected, &input.steps);
        }
        (Err(_), None) => {}
        (found, expected) => panic!("{found:?} and not {expected:?}"),
    }
}

impl Layout {
    fn has(&self, bit: u8) -> bool {
        self.pages_before & bit != 0
    }
}

/// Returns the length of all queues' parts.
fn needed(queues: u16, queue_size: u16) -> u64 {
    u64::from(queues) * stride(queue_size)
}

/// The parts that the ring uses: the protocol's own parts, or the large ones after the trailer.
struct Parts {
    start: usize,
    trailer: usize,
    is_large: bool,
    queue_size: u16,
}

impl Parts {
    /// Returns the number of descriptors that a part has room for.
    fn size(&self) -> u16 {
        if self.is_large { LARGEST } else { self.queue_size }
    }

    /// Returns the range of a queue's part.
    fn of(&self, queue: u16) -> Range<usize> {
        let len = stride(self.size()) as usize;
        let first = if self.is_large {
            self.trailer + TRAILER as usize
        } else {
            self.start
        };
        let start = first + usize::from(queue) * len;
        start..start + len
    }
}

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

/// Recovers from a part as the protocol says. Returns `None` if no killed backend can have left such a part.
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
        // The predecessor may have published a batch without recording the new index. Such a batch is not in flight.
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

/// Checks that the chains in flight are popped first, that the ring then continues, and that no chain is popped twice.
fn run(ring: &mut SplitRing, guest: &Guest, mut driver: DriverRing, recovery: Recovery, steps: &[Step]) {
    let mut held = Vec::new();
    for head in recovery.heads {
        assert_eq!(ring.pop(), Ok(Some(head)));
        held.push(head);
    }
    if !recovery.resumed {
        assert_eq!(ring.pop(), Ok(None));
    }
    // Entry `n` names descriptor `n`.
    for slot in 0..ring.size() {
        guest.store_u16(driver.avail_entry(slot), slot);
    }
    driver.avail_idx = ring.next_avail();
    driver.advance(guest, ring.size());
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

//! The driver's side of a split ring.

pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;
pub const INDIRECT: u16 = 4;
/// A flag of the available ring: the driver wants no interrupts.
pub const NO_INTERRUPT: u16 = 1;
/// A flag of the used ring: the device wants no kicks.
pub const NO_NOTIFY: u16 = 1;

/// Bytes of a descriptor.
pub const DESC_LEN: usize = 16;

/// A descriptor, byte for byte.
#[derive(Clone, Copy, Debug, Default)]
pub struct Desc {
    pub addr: u64,
    pub len: u32,
    pub flags: u16,
    pub next: u16,
}

/// A descriptor that the device reads.
pub const fn readable(addr: u64, len: u32) -> Desc {
    Desc {
        addr,
        len,
        flags: 0,
        next: 0,
    }
}

/// A descriptor that the device writes.
pub const fn writable(addr: u64, len: u32) -> Desc {
    readable(addr, len).flag(WRITE)
}

/// A descriptor that points to an indirect table.
pub const fn indirect(addr: u64, len: u32) -> Desc {
    readable(addr, len).flag(INDIRECT)
}

impl Desc {
    pub const fn flag(self, flag: u16) -> Self {
        Self {
            flags: self.flags | flag,
            ..self
        }
    }

    pub const fn len(self, len: u32) -> Self {
        Self { len, ..self }
    }

    pub const fn next(self, next: u16) -> Self {
        Self { next, ..self }.flag(NEXT)
    }

    pub fn bytes(self) -> [u8; DESC_LEN] {
        let mut bytes = [0; DESC_LEN];
        bytes[..8].copy_from_slice(&self.addr.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.len.to_le_bytes());
        bytes[12..14].copy_from_slice(&self.flags.to_le_bytes());
        bytes[14..].copy_from_slice(&self.next.to_le_bytes());
        bytes
    }
}

/// Links descriptors to a chain, in their order. The first one is at index `first`.
pub fn linked(first: u16, descs: &[Desc]) -> Vec<Desc> {
    let mut chain = descs.to_vec();
    let last = chain.len().saturating_sub(1);
    for (desc, next) in chain[..last].iter_mut().zip(first + 1..) {
        *desc = desc.next(next);
    }
    chain
}

/// The bytes of a descriptor table.
pub fn table(descs: &[Desc]) -> Vec<u8> {
    descs.iter().flat_map(|desc| desc.bytes()).collect()
}

/// Memory that holds a ring. Offsets are the ring's own: a guest address, or the distance from the memory's start.
pub trait RingMemory {
    fn read<const N: usize>(&self, offset: usize) -> [u8; N];
    fn write(&self, offset: usize, bytes: &[u8]);
    /// Reads an index. What the device wrote before is visible afterwards.
    fn load_u16(&self, offset: usize) -> u16;
    /// Publishes an index, and with it everything written before.
    fn store_u16(&self, offset: usize, value: u16);
}

/// A split ring as its driver sees it: the offsets of its parts, and how far the driver has got.
#[derive(Clone, Copy, Debug)]
pub struct DriverRing {
    pub size: u16,
    pub desc: usize,
    pub avail: usize,
    pub used: usize,
    /// Index of the next entry that the driver makes available.
    pub avail_idx: u16,
    /// Index of the next used element that the driver takes.
    pub used_idx: u16,
}

impl DriverRing {
    /// A ring of `size` entries whose parts are at these offsets.
    pub const fn new(size: u16, desc: usize, avail: usize, used: usize) -> Self {
        Self {
            size,
            desc,
            avail,
            used,
            avail_idx: 0,
            used_idx: 0,
        }
    }

    /// Makes the ring continue at `index`, as if both sides had got that far.
    pub fn continue_at(&mut self, memory: &impl RingMemory, index: u16) {
        (self.avail_idx, self.used_idx) = (index, index);
        memory.store_u16(self.avail_idx_at(), index);
        memory.store_u16(self.used_idx_at(), index);
    }

    /// Writes descriptors into the table, from index `first`.
    pub fn put_descs(&self, memory: &impl RingMemory, first: u16, descs: &[Desc]) {
        memory.write(self.desc + usize::from(first) * DESC_LEN, &table(descs));
    }

    /// Offset of the entry of the available ring for `index`.
    pub fn avail_entry(&self, index: u16) -> usize {
        self.avail + 4 + usize::from(index % self.size) * 2
    }

    /// Makes the chain at `head` available.
    pub fn offer(&mut self, memory: &impl RingMemory, head: u16) {
        memory.write(self.avail_entry(self.avail_idx), &head.to_le_bytes());
        self.advance(memory, 1);
    }

    /// Makes the next `count` entries of the available ring available, whatever they contain.
    pub fn advance(&mut self, memory: &impl RingMemory, count: u16) {
        self.avail_idx = self.avail_idx.wrapping_add(count);
        memory.store_u16(self.avail_idx_at(), self.avail_idx);
    }

    /// Returns the used index that the device has published.
    pub fn published(&self, memory: &impl RingMemory) -> u16 {
        memory.load_u16(self.used_idx_at())
    }

    /// Takes the next used element, if there is one: its id and its length.
    pub fn take_used(&mut self, memory: &impl RingMemory) -> Option<(u32, u32)> {
        if self.published(memory) == self.used_idx {
            return None;
        }
        let at = self.used_element(self.used_idx);
        let [id, len] = [at, at + 4].map(|at| u32::from_le_bytes(memory.read(at)));
        self.used_idx = self.used_idx.wrapping_add(1);
        Some((id, len))
    }

    pub fn set_avail_flags(&self, memory: &impl RingMemory, flags: u16) {
        memory.store_u16(self.avail, flags);
    }

    pub fn used_flags(&self, memory: &impl RingMemory) -> u16 {
        memory.load_u16(self.used)
    }

    pub fn set_used_flags(&self, memory: &impl RingMemory, flags: u16) {
        memory.store_u16(self.used, flags);
    }

    /// Offset of the available index.
    pub fn avail_idx_at(&self) -> usize {
        self.avail + 2
    }

    /// Offset of the used index.
    pub fn used_idx_at(&self) -> usize {
        self.used + 2
    }

    /// Offset of the element of the used ring for `index`.
    pub fn used_element(&self, index: u16) -> usize {
        self.used + 4 + usize::from(index % self.size) * 8
    }

    /// Offset of the used index that the driver wants a notification for.
    pub fn used_event_at(&self) -> usize {
        self.avail + 4 + usize::from(self.size) * 2
    }

    /// Offset of the available index that the device wants a kick for.
    pub fn avail_event_at(&self) -> usize {
        self.used + 4 + usize::from(self.size) * 8
    }

    /// Asks for a notification of the used element with this index.
    pub fn set_used_event(&self, memory: &impl RingMemory, index: u16) {
        memory.store_u16(self.used_event_at(), index);
    }

    /// Returns the available index that the device wants a kick for.
    pub fn avail_event(&self, memory: &impl RingMemory) -> u16 {
        memory.load_u16(self.avail_event_at())
    }

    pub fn set_avail_event(&self, memory: &impl RingMemory, index: u16) {
        memory.store_u16(self.avail_event_at(), index);
    }

    /// Returns whether the device wants a kick for the entries made available since the available index was `old`.
    pub fn wants_kick(&self, memory: &impl RingMemory, old: u16, event_idx: bool) -> bool {
        let new = self.avail_idx;
        if event_idx {
            let event = self.avail_event(memory);
            new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
        } else {
            new != old && self.used_flags(memory) & NO_NOTIFY == 0
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::SharedMemory;

    fn ring() -> (SharedMemory, DriverRing) {
        (SharedMemory::new(0x1000), DriverRing::new(4, 0, 0x100, 0x200))
    }

    #[test]
    fn entries_and_indices_wrap() {
        let (memory, mut ring) = ring();
        ring.continue_at(&memory, 0xffff);
        ring.offer(&memory, 2);
        ring.offer(&memory, 1);
        assert_eq!(memory.load_u16(0x102), 1);
        assert_eq!(memory.read(0x104, 8), [1, 0, 0, 0, 0, 0, 2, 0]);
    }

    #[test]
    fn used_elements_are_taken_once_in_order() {
        let (memory, mut ring) = ring();
        assert_eq!(ring.take_used(&memory), None);
        memory.write(
            0x204,
            &[[3, 513], [0, 1]]
                .as_flattened()
                .iter()
                .flat_map(|n: &u32| n.to_le_bytes())
                .collect::<Vec<_>>(),
        );
        memory.store_u16(0x202, 2);
        assert_eq!(ring.take_used(&memory), Some((3, 513)));
        assert_eq!(ring.take_used(&memory), Some((0, 1)));
        assert_eq!(ring.take_used(&memory), None);
    }

    #[test]
    fn passing_the_event_index_requires_a_kick() {
        let (memory, mut ring) = ring();
        ring.set_avail_event(&memory, 1);
        ring.offer(&memory, 0);
        assert!(!ring.wants_kick(&memory, 0, true));
        ring.offer(&memory, 1);
        assert!(ring.wants_kick(&memory, 1, true));
        assert!(ring.wants_kick(&memory, 1, false));
        ring.set_used_flags(&memory, NO_NOTIFY);
        assert!(!ring.wants_kick(&memory, 1, false));
    }

    #[test]
    fn chains_are_linked_from_their_first_index() {
        let chain = linked(5, &[readable(1, 2), writable(3, 4)]);
        assert_eq!((chain[0].flags, chain[0].next), (NEXT, 6));
        assert_eq!((chain[1].flags, chain[1].next), (WRITE, 0));
        assert!(linked(0, &[]).is_empty());
    }
}

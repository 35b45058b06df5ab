//! Brings a ring into any state that a driver can cause, and compares the device's side with a model.
#![no_main]

use std::cell::RefCell;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use testkit::ring::{DriverRing, NO_INTERRUPT, NO_NOTIFY, RingMemory};
use vhost_user_blk::virtqueue::{MAX_QUEUE_SIZE, RingAddresses, RingError, RingFeatures, SplitRing};
use vhost_user_blk_fuzz::guest::{APART, Guest, Image, REGIONS, RINGS};

const AVAIL: u64 = 0;
const USED: u64 = 0x1000;

#[derive(Arbitrary, Debug)]
struct Input {
    size: u8,
    base: u16,
    used: u16,
    event_idx: bool,
    place: Option<Place>,
    steps: Vec<Step>,
}

/// A ring of any size at any addresses.
#[derive(Arbitrary, Debug)]
struct Place {
    size: u32,
    desc: Where,
    avail: Where,
    used: Where,
}

#[derive(Arbitrary, Debug)]
enum Where {
    /// The region, whether to count from its end, and the distance.
    In(u8, bool, u16),
    Any(u64),
}

#[derive(Arbitrary, Debug)]
enum Step {
    /// The driver makes entries available as it should: their number, and the first head.
    Offer(u8, u16),
    /// The driver stores an arbitrary value.
    AvailIdx(u16),
    Entry(u16, u16),
    Flags(u16),
    UsedEvent(u16),
    /// The event relative to the published index.
    UsedEventNear(i8),
    Pop,
    HasWork,
    Push(u16, u32),
    Publish,
    EnableKicks,
    DisableKicks,
    Missed,
    SetNotified,
    Force,
    Remap,
}

/// A model of the device's side, which counts without wrapping arithmetic.
struct Model {
    image: Image,
    layout: DriverRing,
    size: u64,
    event_idx: bool,
    /// Positions that never wrap.
    avail: u64,
    seen: u64,
    used: u64,
    published: u64,
    signalled: Option<u64>,
    notified: u64,
}

fuzz_target!(|input: Input| {
    if let Some(place) = &input.place {
        try_anywhere(place);
        return;
    }
    let guest = Guest::new();
    let size = 1u16 << (input.size % 11);
    // The table may have 1024 entries, so it lies in a region of its own.
    let layout = DriverRing::new(size, APART.guest as usize, AVAIL as usize, USED as usize);
    guest.store_u16(layout.used_idx_at(), input.used);
    let memory = guest.table();
    let features = RingFeatures {
        event_idx: input.event_idx,
        indirect: false,
    };
    let mut ring =
        SplitRing::new(&memory, addresses(), size.into(), input.base, features).expect("a good ring");
    // Positions start far from zero, so that none is ever negative.
    let position = |idx: u16| (1 << 32) + u64::from(idx);
    let mut model = Model {
        image: guest.image(),
        layout,
        size: size.into(),
        event_idx: input.event_idx,
        avail: position(input.base),
        seen: position(input.base),
        used: position(input.used),
        published: position(input.used),
        signalled: None,
        notified: position(input.used),
    };
    for step in input.steps.iter().take(300) {
        if !model.step(step, &mut ring, &guest, &memory) {
            break;
        }
    }
    guest.image().assert_is(&model.image, &[]);
});

fn addresses() -> RingAddresses {
    RingAddresses {
        desc: APART.user,
        avail: RINGS.user + AVAIL,
        used: RINGS.user + USED,
    }
}

impl Where {
    fn user(&self) -> u64 {
        match *self {
            Self::In(region, from_end, at) => {
                let region = REGIONS[usize::from(region) % REGIONS.len()];
                let offset = u64::from(at);
                if from_end {
                    (region.user + region.len).wrapping_sub(offset)
                } else {
                    region.user + offset
                }
            }
            Self::Any(at) => at,
        }
    }
}

/// Checks that a ring can be made exactly if its size is allowed and each part is aligned and inside one region.
fn try_anywhere(place: &Place) {
    let guest = Guest::new();
    let [desc, avail, used] = [&place.desc, &place.avail, &place.used].map(Where::user);
    let ring = SplitRing::new(
        &guest.table(),
        RingAddresses { desc, avail, used },
        place.size,
        0,
        RingFeatures::default(),
    );
    let size = u64::from(place.size);
    let good_size = (0..=10).any(|n| size == 1 << n) && size <= MAX_QUEUE_SIZE.into();
    // The host maps regions at page boundaries, so the offset in the region decides the alignment.
    let good = |at: u64, len: u64, align: u64| {
        let covers = |r: &&vhost_user_blk::memory::RegionInfo| {
            u128::from(at) >= u128::from(r.user)
                && u128::from(at) + u128::from(len) <= u128::from(r.user) + u128::from(r.len)
        };
        REGIONS
            .iter()
            .find(covers)
            .is_some_and(|r| (at - r.user).is_multiple_of(align))
    };
    let good =
        good_size && good(desc, 16 * size, 16) && good(avail, 6 + 2 * size, 2) && good(used, 6 + 8 * size, 4);
    assert_eq!(ring.is_ok(), good, "{place:?}: {:?}", ring.err());
    guest.image().assert_is(&Image::new(), &[]);
}

/// The guest's memory and its image. The driver writes the same bytes to both.
struct Both<'a> {
    guest: &'a Guest,
    image: RefCell<&'a mut Image>,
}

impl RingMemory for Both<'_> {
    fn read<const N: usize>(&self, at: usize) -> [u8; N] {
        RingMemory::read(self.guest, at)
    }

    fn write(&self, at: usize, bytes: &[u8]) {
        self.image.borrow_mut().write(at as u64, bytes);
        self.guest.write(at as u64, bytes);
    }

    fn load_u16(&self, at: usize) -> u16 {
        self.guest.load_u16(at)
    }

    fn store_u16(&self, at: usize, value: u16) {
        RingMemory::write(self, at, &value.to_le_bytes());
    }
}

impl Model {
    fn u16(&self, at: usize) -> u16 {
        self.image.u16(at as u64)
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.image.write(at as u64, bytes);
    }

    /// Returns whether the driver's event is among the entries published since `old`.
    fn crossed(&self, old: u64) -> bool {
        let event = self.u16(self.layout.used_event_at());
        // Considers at most 65,535 entries: a driver cannot see further back either.
        let from = old.max(self.published.saturating_sub(0xffff));
        !(self.published - old).is_multiple_of(0x1_0000) && {
            let batch = (self.published - old) % 0x1_0000;
            (self.published - batch..self.published).any(|position| position % 0x1_0000 == u64::from(event))
                && from <= self.published
        }
    }

    /// Performs a step of the driver. Returns `false` if the step is the device's.
    fn drive(&mut self, step: &Step, guest: &Guest) -> bool {
        let mut ring = self.layout;
        ring.avail_idx = self.u16(ring.avail_idx_at());
        let near = |away: i8| (self.published as u16).wrapping_add_signed(away.into());
        let memory = Both {
            guest,
            image: RefCell::new(&mut self.image),
        };
        match *step {
            Step::Offer(count, head) => {
                for i in 0..u16::from(count % 33) {
                    ring.offer(&memory, head.wrapping_add(i) % ring.size);
                }
            }
            Step::AvailIdx(idx) => memory.store_u16(ring.avail_idx_at(), idx),
            Step::Entry(slot, head) => memory.store_u16(ring.avail_entry(slot), head),
            Step::Flags(flags) => ring.set_avail_flags(&memory, flags),
            Step::UsedEvent(event) => ring.set_used_event(&memory, event),
            Step::UsedEventNear(away) => ring.set_used_event(&memory, near(away)),
            _ => return false,
        }
        true
    }

    /// Performs a step on the ring and the model. Returns `false` when the ring is broken.
    fn step(
        &mut self,
        step: &Step,
        ring: &mut SplitRing,
        guest: &Guest,
        memory: &vhost_user_blk::memory::GuestMemory,
    ) -> bool {
        if self.drive(step, guest) {
            return true;
        }
        match *step {
            Step::Pop => return self.pop(ring),
            Step::HasWork => return self.has_work(ring),
            Step::Push(head, len) => {
                let head = head % self.size as u16;
                ring.push_used(head, len);
                let element = [head.into(), len].map(u32::to_le_bytes);
                self.put(self.layout.used_element(self.used as u16), &element.concat());
                self.used += 1;
                assert_eq!(
                    u64::from(ring.unpublished()),
                    (self.used - self.published) % 0x1_0000
                );
            }
            Step::Publish => self.publish(ring),
            Step::EnableKicks => {
                ring.enable_kicks();
                let (at, value) = if self.event_idx {
                    (self.layout.avail_event_at(), self.avail as u16)
                } else {
                    (self.layout.used, 0)
                };
                self.put(at, &value.to_le_bytes());
            }
            Step::DisableKicks => {
                ring.disable_kicks();
                if !self.event_idx {
                    self.put(self.layout.used, &NO_NOTIFY.to_le_bytes());
                }
            }
            Step::Missed => {
                let missed = self.event_idx && self.crossed(self.notified);
                let event = self.u16(self.layout.used_event_at());
                assert_eq!(
                    ring.missed_event(),
                    missed.then_some((event, self.published as u16))
                );
            }
            Step::SetNotified => {
                ring.set_notified();
                self.notified = self.published;
            }
            Step::Force => {
                ring.force_notification();
                self.signalled = None;
            }
            Step::Remap => ring.remap(memory, addresses()).expect("the same memory"),
            _ => unreachable!("the driver's steps are done"),
        }
        true
    }

    /// Reads the driver's index if needed. Returns the number of entries to take, or `None` if the index is invalid.
    fn refresh(&mut self) -> Option<u64> {
        if self.seen == self.avail {
            let idx = u64::from(self.u16(self.layout.avail_idx_at()));
            let ahead = (0..=self.size).find(|ahead| (self.avail + ahead) % 0x1_0000 == idx)?;
            self.seen = self.avail + ahead;
        }
        Some(self.seen - self.avail)
    }

    fn pop(&mut self, ring: &mut SplitRing) -> bool {
        let found = ring.pop();
        match self.refresh() {
            None => {
                assert!(matches!(found, Err(RingError::BadAvailIndex { .. })), "{found:?}");
                return false;
            }
            Some(0) => assert_eq!(found, Ok(None)),
            Some(_) => {
                let head = self.u16(self.layout.avail_entry(self.avail as u16));
                if u64::from(head) >= self.size {
                    assert!(matches!(found, Err(RingError::BadHead { .. })), "{found:?}");
                    return false;
                }
                assert_eq!(found, Ok(Some(head)));
                self.avail += 1;
            }
        }
        assert_eq!(ring.next_avail(), self.avail as u16);
        true
    }

    fn has_work(&mut self, ring: &mut SplitRing) -> bool {
        let found = ring.has_work();
        match self.refresh() {
            None => assert!(matches!(found, Err(RingError::BadAvailIndex { .. })), "{found:?}"),
            Some(entries) => assert_eq!(found, Ok(entries > 0)),
        }
        found.is_ok()
    }

    fn publish(&mut self, ring: &mut SplitRing) {
        let found = ring.publish();
        self.published = self.used;
        self.put(self.layout.used_idx_at(), &(self.used as u16).to_le_bytes());
        let wanted = match self.signalled.replace(self.published) {
            None => true,
            Some(old) if self.event_idx => self.crossed(old),
            Some(_) => self.u16(self.layout.avail) & NO_INTERRUPT == 0,
        };
        if wanted {
            self.notified = self.published;
        }
        assert_eq!(found, wanted, "the notification");
    }
}

//! A model of a driver and a device that is killed repeatedly, between any two stores.

use std::cell::Cell;
use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use proptest::prelude::*;
use testkit::memory::SharedMemory;
use testkit::ring::{DriverRing, NO_INTERRUPT};

use super::{InflightRegion, RegionLayout};
use crate::memory::{GuestMemory, RegionInfo};
use crate::virtqueue::{RingAddresses, RingFeatures, SplitRing};

thread_local! {
    /// Number of stores left before the simulated kill.
    static STORES_LEFT: Cell<Option<u32>> = const { Cell::new(None) };
}

/// The payload that a simulated kill unwinds with; no panic hook runs.
struct Killed;

pub(crate) fn stop_point() {
    match STORES_LEFT.get() {
        Some(0) => resume_unwind(Box::new(Killed)),
        left => STORES_LEFT.set(left.map(|n| n - 1)),
    }
}

/// Runs `f` with a kill after `stores` stores. Returns `None` if it was killed.
fn run_until<T>(stores: Option<u32>, f: impl FnOnce() -> T) -> Option<T> {
    STORES_LEFT.set(stores);
    let result = catch_unwind(AssertUnwindSafe(f));
    STORES_LEFT.set(None);
    match result {
        Ok(value) => Some(value),
        Err(payload) if payload.is::<Killed>() => None,
        Err(payload) => resume_unwind(payload),
    }
}

/// The driver, with the memory that outlives every device.
pub(crate) struct Driver {
    shared: SharedMemory,
    memory: GuestMemory,
    ring: DriverRing,
    event_idx: bool,
    region: File,
    layout: RegionLayout,
    free: Vec<u16>,
    /// Chains made available but not answered, in order.
    outstanding: Vec<u16>,
}

impl Driver {
    pub(crate) fn new(size: u16, start: u16, event_idx: bool) -> Self {
        let n = usize::from(size);
        let (avail, used) = (16 * n, (18 * n + 6).next_multiple_of(4));
        let len = (26 * n + 16).next_multiple_of(4096);
        let shared = SharedMemory::new(len);
        let info = RegionInfo {
            guest: 0,
            len: len as u64,
            user: 0,
            file_offset: 0,
        };
        let memory = GuestMemory::map([(info, shared.file().try_clone().unwrap())]).unwrap();
        let mut ring = DriverRing::new(size, 0, avail, used);
        ring.continue_at(&shared, start);
        let (layout, region) = InflightRegion::create(3, size).unwrap();
        Self {
            shared,
            memory,
            ring,
            event_idx,
            region,
            layout,
            free: (0..size).collect(),
            outstanding: Vec::new(),
        }
    }

    pub(crate) fn submit(&mut self, pick: usize) {
        if self.free.is_empty() {
            return;
        }
        let head = self.free.swap_remove(pick % self.free.len());
        self.ring.offer(&self.shared, head);
        self.outstanding.push(head);
    }

    /// Asks for a notification of the used element with this index.
    pub(crate) fn set_used_event(&self, index: u16) {
        self.ring.set_used_event(&self.shared, index);
    }

    /// Takes the chains that the device has answered.
    pub(crate) fn reap(&mut self) {
        while let Some((id, _)) = self.ring.take_used(&self.shared) {
            let head = u16::try_from(id).unwrap();
            let at = self.outstanding.iter().position(|&h| h == head);
            self.outstanding
                .remove(at.expect("each outstanding chain is answered once, and no other chain"));
            self.free.push(head);
        }
    }

    /// Chains made available but not answered, in order.
    pub(crate) fn outstanding(&self) -> &[u16] {
        &self.outstanding
    }

    /// Makes a ring on the current memory that continues at `base`, with its own in-flight region if `tracked`.
    pub(crate) fn ring(&self, base: u16, tracked: bool) -> SplitRing {
        let (avail, used) = (self.ring.avail as u64, self.ring.used as u64);
        let addresses = RingAddresses { desc: 0, avail, used };
        let features = RingFeatures {
            event_idx: self.event_idx,
            indirect: false,
        };
        let mut ring =
            SplitRing::new(&self.memory, addresses, self.ring.size.into(), base, features).unwrap();
        if tracked {
            let (layout, file) = InflightRegion::create(1, self.ring.size).unwrap();
            let region = InflightRegion::map(&file, layout).unwrap();
            assert!(
                !ring
                    .track(region.queue(0, self.ring.size.into()).unwrap())
                    .unwrap()
            );
        }
        ring
    }

    /// Makes a device on the current memory, as a new process would.
    pub(crate) fn device(&self) -> Device {
        let region = InflightRegion::map(&self.region, self.layout).unwrap();
        // The position that a frontend uses after it lost its backend.
        let base = self.ring.published(&self.shared);
        let mut ring = self.ring(base, false);
        let resumed = ring
            .track(region.queue(1, self.ring.size.into()).unwrap())
            .unwrap();
        Device {
            ring,
            resumed,
            held: Vec::new(),
            pushed: Vec::new(),
        }
    }
}

pub(crate) struct Device {
    pub(crate) ring: SplitRing,
    resumed: bool,
    held: Vec<u16>,
    /// Chains put into the used ring but not published.
    pushed: Vec<u16>,
}

impl Device {
    fn take(&mut self, driver: &Driver) {
        let mut rest = driver.outstanding.iter();
        let next = rest.find(|h| !self.held.contains(h) && !self.pushed.contains(h));
        let head = self.ring.pop().unwrap();
        assert_eq!(head.as_ref(), next, "chains are taken in the driver's order");
        self.held.extend(head);
    }

    /// Pops the next chain, which cannot be executed now.
    fn put_back(&mut self) {
        let left_behind = self.ring.left_in_flight() > 0;
        if let Some(head) = self.ring.pop().unwrap() {
            self.ring.put_back(head, left_behind);
        }
    }

    fn push(&mut self, pick: usize) {
        if !self.held.is_empty() {
            let head = self.held.swap_remove(pick % self.held.len());
            self.pushed.push(head);
            self.ring.push_used(head, 1);
        }
    }

    fn publish(&mut self) -> bool {
        self.pushed.clear();
        self.ring.publish()
    }
}

#[derive(Clone, Copy, Debug)]
enum Op {
    Submit(usize),
    Take,
    PutBack,
    Push(usize),
    Publish,
    Recover,
}

/// Runs an operation on the device, or on a new one if there is none. The device may be killed during the operation.
fn step(driver: &mut Driver, device: &mut Option<Device>, op: Op, stores: Option<u32>) {
    let taken = device.take();
    *device = run_until(stores, || {
        let mut device = taken.unwrap_or_else(|| driver.device());
        match op {
            Op::Submit(pick) => driver.submit(pick),
            Op::Take => device.take(driver),
            Op::PutBack => device.put_back(),
            Op::Push(pick) => device.push(pick),
            Op::Publish => drop(device.publish()),
            Op::Recover => {}
        }
        device
    });
    driver.reap();
}

/// Answers the outstanding chains, and checks that none is left.
fn finish(mut driver: Driver, mut device: Option<Device>) {
    step(&mut driver, &mut device, Op::Recover, None);
    for _ in 0..driver.outstanding.len() {
        step(&mut driver, &mut device, Op::Take, None);
    }
    for _ in 0..driver.outstanding.len() {
        step(&mut driver, &mut device, Op::Push(0), None);
    }
    step(&mut driver, &mut device, Op::Publish, None);
    assert!(driver.outstanding.is_empty(), "every chain is answered");
    assert_eq!(device.map(|d| d.ring.next_avail()), Some(driver.ring.avail_idx));
}

fn operation() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => any::<usize>().prop_map(Op::Submit),
        3 => Just(Op::Take),
        1 => Just(Op::PutBack),
        3 => any::<usize>().prop_map(Op::Push),
        1 => Just(Op::Publish),
    ]
}

proptest! {
    #[test]
    fn device_killed_at_random_answers_chains_once(
        size in (0u32..=10).prop_map(|n| 1u16 << n),
        start in prop_oneof![Just(0u16), Just(65_530), any::<u16>()],
        event_idx: bool,
        ops in prop::collection::vec((operation(), prop::option::weighted(0.2, 0u32..12)), 1..300),
    ) {
        let mut driver = Driver::new(size, start, event_idx);
        let mut device = None;
        for (op, stores) in ops {
            step(&mut driver, &mut device, op, stores);
        }
        finish(driver, device);
    }
}

/// Chains answered out of order in two batches. One is taken between the batches, and two are left.
const SCENARIO: [Op; 25] = {
    use Op::{Publish, Push, PutBack, Submit, Take};
    [
        Submit(3),
        Submit(1),
        Submit(0),
        Submit(2),
        Take,
        Take,
        Take,
        PutBack,
        Take,
        Push(2),
        Push(0),
        Push(1),
        Publish,
        Submit(1),
        Submit(0),
        Take,
        Submit(0),
        Submit(0),
        Take,
        Take,
        Push(1),
        Push(0),
        PutBack,
        Publish,
        Take,
    ]
};

#[test]
fn device_killed_twice_answers_chains_once() {
    let mut runs = 0;
    for first in 0.. {
        let mut first_killed = false;
        for second in 0.. {
            let mut driver = Driver::new(4, 65_533, first % 2 == 0);
            let mut left = SCENARIO.iter();
            let mut device = None;
            // One count of stores spans many operations, so that a kill can hit anywhere.
            let mut run = |stores| {
                let killed = run_until(stores, || {
                    let mut device = device.take().unwrap_or_else(|| driver.device());
                    for &op in left.by_ref() {
                        match op {
                            Op::Submit(pick) => driver.submit(pick),
                            Op::Take => device.take(&driver),
                            Op::PutBack => device.put_back(),
                            Op::Push(pick) => device.push(pick),
                            Op::Publish | Op::Recover => {
                                device.publish();
                                driver.reap();
                            }
                        }
                    }
                });
                driver.reap();
                killed.is_none()
            };
            first_killed = run(Some(first));
            let second_killed = first_killed && run(Some(second));
            runs += 1;
            finish(driver, None);
            if !second_killed {
                break;
            }
        }
        if !first_killed {
            break;
        }
    }
    assert!(runs > 400, "only {runs} runs");
}

#[test]
fn first_publication_after_recovery_always_notifies() {
    for event_idx in [false, true] {
        let mut driver = Driver::new(8, 0, event_idx);
        // The driver wants no interrupts; with EVENT_IDX, its event is far away.
        driver.ring.set_avail_flags(&driver.shared, NO_INTERRUPT);
        driver.set_used_event(1000);
        let mut first = driver.device();
        driver.submit(0);
        first.take(&driver);
        assert!(!first.resumed);
        drop(first);
        let mut second = driver.device();
        second.take(&driver);
        second.push(0);
        assert!(second.resumed && second.publish());
        driver.submit(0);
        driver.reap();
        second.take(&driver);
        second.push(0);
        assert!(!second.publish());
    }
}

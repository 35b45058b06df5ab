//! Keeps requests in flight, and counts completions over time.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::args::Wait;
use crate::driver::Waiter;
use crate::lane::Lane;

/// Resolution of the counts.
const SLOT: Duration = Duration::from_millis(10);
/// Time limit for the next completion of any disk.
const STALL: Duration = Duration::from_secs(5);

/// Completions of each disk, by time.
#[derive(Debug)]
pub(crate) struct Timeline {
    start: Instant,
    length: Duration,
    disks: Vec<Vec<u64>>,
}

impl Timeline {
    pub(super) fn start(&self) -> Instant {
        self.start
    }

    pub(super) fn length(&self) -> Duration {
        self.length
    }

    /// Returns the number of completions in the slots of this time.
    pub(super) fn count(&self, disk: usize, from: Duration, to: Duration) -> f64 {
        let slots = self.disks[disk].iter().take(slot(to)).skip(slot(from));
        slots.sum::<u64>() as f64
    }

    /// Returns the completions per second in the slots of this time.
    pub(super) fn rate(&self, disk: usize, from: Duration, to: Duration) -> f64 {
        let slots = slot(to) - slot(from);
        self.count(disk, from, to) / (slots as f64 * SLOT.as_secs_f64())
    }

    fn add(&mut self, disk: usize, completions: u64) {
        let slots = &mut self.disks[disk];
        let slot = slot(self.start.elapsed());
        if slots.len() <= slot {
            slots.resize(slot + 1, 0);
        }
        slots[slot] += completions;
    }
}

fn slot(time: Duration) -> usize {
    usize::try_from(time.as_nanos() / SLOT.as_nanos()).unwrap_or(usize::MAX)
}

/// Drives each lane, one per disk, for this time.
///
/// # Errors
/// The backend does not answer, or a request fails.
pub(crate) fn drive(lanes: &mut [Lane<'_>], length: Duration) -> Result<Timeline> {
    let mut waiter = Waiter::new(lanes, Wait::Sleep)?;
    let mut timeline = Timeline {
        start: Instant::now(),
        length,
        disks: vec![Vec::new(); lanes.len()],
    };
    let end = timeline.start + length;
    lanes.iter_mut().try_for_each(Lane::submit)?;
    let mut last = Instant::now();
    while Instant::now() < end || lanes.iter().any(|lane| lane.in_flight() > 0) {
        ensure!(last.elapsed() < STALL, "no completion for 5 seconds");
        for &ready in waiter.ready(lanes.len())? {
            let completions = lanes[ready].reap();
            if completions > 0 {
                timeline.add(ready, completions);
                last = Instant::now();
            }
            if last < end {
                lanes[ready].submit()?;
            }
        }
    }
    ensure!(
        lanes.iter().all(|lane| lane.counts.errors == 0),
        "requests failed"
    );
    Ok(timeline)
}

//! A driving thread: serves its lanes when their call eventfds fire.
//!
//! The thread checks a ring only after that ring's eventfd has fired, like a guest that takes interrupts. Waiting costs
//! one `epoll_wait` per sleep: the eventfds are edge-triggered, and they are read only at the start and the end of the
//! measurement.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use crate::args::Wait;
use crate::control::{Control, Driven, Stage};
use crate::lane::{Counts, Lane};

/// Interval at which an idle driver checks the stage.
const IDLE_MS: i32 = 20;
/// Time limit for requests that are in flight at the end.
const DRAIN: Duration = Duration::from_secs(5);
/// Passes over all lanes between two checks of the stage, when spinning.
const SPINS: u32 = 64;

/// Drives `lanes` through all stages, until nothing is in flight.
pub(crate) fn drive(lanes: &mut [Lane<'_>], wait: Wait, control: &Control) -> Result<Driven> {
    let mut waiter = Waiter::new(lanes, wait)?;
    lanes.iter_mut().try_for_each(Lane::submit)?;
    run_while(lanes, &mut waiter, control, Stage::Warmup)?;
    let start = Instant::now();
    lanes.iter_mut().try_for_each(Lane::start_counting)?;
    // `start_counting` reset the eventfds, which may have lost a notification. So check every ring.
    look_again(lanes)?;
    run_while(lanes, &mut waiter, control, Stage::Measure)?;
    let elapsed = start.elapsed();
    let mut counts = Counts::new();
    for lane in lanes.iter_mut() {
        counts.add(lane.stop_counting()?);
    }
    lanes.iter_mut().try_for_each(Lane::start_census)?;
    look_again(lanes)?;
    run_while(lanes, &mut waiter, control, Stage::Census)?;
    drain(lanes, control)?;
    for lane in lanes {
        counts.batches.add(&lane.counts.batches);
    }
    Ok(Driven { elapsed, counts })
}

fn look_again(lanes: &mut [Lane<'_>]) -> Result<()> {
    lanes.iter_mut().try_for_each(|lane| {
        lane.reap();
        lane.submit()
    })
}

fn run_while(lanes: &mut [Lane<'_>], waiter: &mut Waiter, control: &Control, stage: Stage) -> Result<()> {
    while control.stage() <= stage {
        let mut completions = 0;
        for &ready in waiter.ready(lanes.len())? {
            let lane = &mut lanes[ready];
            completions += if stage == Stage::Census {
                lane.reap_with_census()?
            } else {
                lane.reap()
            };
            lane.submit()?;
        }
        if completions > 0 {
            control.add_progress(completions);
        }
    }
    Ok(())
}

/// Waits until nothing is in flight, so that the memory shared with the backend outlives all requests.
fn drain(lanes: &mut [Lane<'_>], control: &Control) -> Result<()> {
    let end = Instant::now() + DRAIN;
    while control.stage() < Stage::Abort && lanes.iter().any(|lane| lane.in_flight() > 0) {
        if Instant::now() > end {
            bail!("requests in flight did not complete within 5 seconds");
        }
        let reaped: u64 = lanes.iter_mut().map(Lane::reap).sum();
        if reaped == 0 {
            std::thread::sleep(Duration::from_micros(100));
        }
    }
    Ok(())
}

/// Finds the lanes whose backend has notified.
pub(crate) struct Waiter {
    epoll: Epoll,
    events: Vec<EpollEvent>,
    ready: Vec<usize>,
    wait: Wait,
}

impl Waiter {
    pub(crate) fn new(lanes: &[Lane<'_>], wait: Wait) -> Result<Self> {
        let epoll = Epoll::new().context("create an epoll instance")?;
        for (i, lane) in lanes.iter().enumerate() {
            let event = EpollEvent::new(EventSet::IN | EventSet::EDGE_TRIGGERED, i as u64);
            epoll
                .ctl(ControlOperation::Add, lane.call_fd(), event)
                .context("watch a call eventfd")?;
        }
        let events = vec![EpollEvent::default(); lanes.len()];
        Ok(Self {
            epoll,
            events,
            ready: Vec::with_capacity(lanes.len()),
            wait,
        })
    }

    /// Waits for notifications and returns the lanes to check, perhaps none.
    pub(crate) fn ready(&mut self, lanes: usize) -> Result<&[usize]> {
        self.ready.clear();
        if self.wait == Wait::Spin {
            self.ready.extend((0..lanes).cycle().take(lanes * SPINS as usize));
            return Ok(&self.ready);
        }
        let events = match self.epoll.wait(IDLE_MS, &mut self.events) {
            Ok(events) => events,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => 0,
            Err(error) => return Err(error).context("wait for the call eventfds"),
        };
        let index = |event: &EpollEvent| {
            usize::try_from(event.data()).expect("the data of an event is a lane's index")
        };
        self.ready.extend(self.events[..events].iter().map(index));
        Ok(&self.ready)
    }
}

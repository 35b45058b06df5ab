//! Leads the driving threads through the stages of a run. Runs on the main thread.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::lane::Counts;
use crate::load::Load;
use crate::usage::{Others, Usage};

/// Interval at which the main thread checks signals and progress.
const TICK: Duration = Duration::from_millis(5);

/// The stages of a run, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(crate) enum Stage {
    Warmup,
    Measure,
    /// The same load, but each notification is counted separately. That would disturb a measurement.
    Census,
    /// Take the completions of requests in flight, then end.
    Stop,
    /// End at once: the backend has ended or failed.
    Abort,
}

/// The state that the main thread and the driving threads share.
#[derive(Debug, Default)]
pub(crate) struct Control {
    stage: AtomicU8,
    progress: AtomicU64,
}

// Relaxed everywhere: each value is a flag or a count by itself; results arrive through `join`.
impl Control {
    pub(crate) fn stage(&self) -> Stage {
        match self.stage.load(Ordering::Relaxed) {
            0 => Stage::Warmup,
            1 => Stage::Measure,
            2 => Stage::Census,
            3 => Stage::Stop,
            _ => Stage::Abort,
        }
    }

    fn enter(&self, stage: Stage) {
        self.stage.store(stage as u8, Ordering::Relaxed);
    }

    pub(crate) fn add_progress(&self, completions: u64) {
        self.progress.fetch_add(completions, Ordering::Relaxed);
    }
}

/// The counts of one driving thread.
#[derive(Debug)]
pub(crate) struct Driven {
    /// Length of the measurement by the thread's own clock.
    pub(crate) elapsed: Duration,
    pub(crate) counts: Counts,
}

/// The result of a run.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) counts: Counts,
    /// Completions per second, summed over the driving threads.
    pub(crate) iops: f64,
    pub(crate) cpu: Duration,
    /// The part of it that is not of librbd's threads; unknown if there are none.
    pub(crate) own_cpu: Option<Duration>,
    pub(crate) context_switches: u64,
    pub(crate) rss_kib: u64,
    /// Share of the machine's CPU time that other programs used; unknown if /proc/stat cannot be read.
    pub(crate) others_cpu: Option<f64>,
    pub(crate) negotiated_event_idx: bool,
}

/// Runs `drive` in a thread for each of `workers`, through the stages of `load`.
///
/// Calls `watch` every few milliseconds with the number of completions so far; an error of `watch` ends the run. The
/// outcome includes the usage of the processes `pids` during the measurement.
///
/// # Errors
/// `watch` or a driving thread failed. If both failed, the error is that of `watch`, which caused the others.
pub(crate) fn measure<W: Send>(
    load: &Load,
    workers: Vec<W>,
    drive: impl Fn(W, &Control) -> Result<Driven> + Sync,
    pids: &[u32],
    watch: impl FnMut(u64) -> Result<()>,
) -> Result<Outcome> {
    let control = Control::default();
    let (driven, usage) = thread::scope(|scope| {
        let (control, drive) = (&control, &drive);
        let drivers: Vec<_> = workers
            .into_iter()
            .map(|worker| scope.spawn(move || drive(worker, control)))
            .collect();
        let usage = conduct(load, control, pids, watch);
        control.enter(if usage.is_ok() { Stage::Stop } else { Stage::Abort });
        let join =
            |driver: thread::ScopedJoinHandle<'_, _>| driver.join().expect("a driving thread does not panic");
        (drivers.into_iter().map(join).collect::<Result<Vec<_>>>(), usage)
    });
    let Conducted {
        before,
        after,
        others_cpu,
        measured,
    } = usage?;
    let mut outcome = Outcome {
        counts: Counts::new(),
        iops: 0.0,
        cpu: after.cpu.saturating_sub(before.cpu),
        own_cpu: after.has_librbd.then(|| after.own.saturating_sub(before.own)),
        context_switches: after.context_switches.saturating_sub(before.context_switches),
        rss_kib: after.rss_kib,
        others_cpu,
        negotiated_event_idx: false,
    };
    for thread in driven? {
        // A thread that got no CPU at the start has started its own clock late.
        let time = thread.elapsed.max(measured);
        outcome.iops += thread.counts.completions as f64 / time.as_secs_f64();
        outcome.counts.add(&thread.counts);
    }
    Ok(outcome)
}

/// The usage at the start and the end of the measurement, and its length.
struct Conducted {
    before: Usage,
    after: Usage,
    others_cpu: Option<f64>,
    measured: Duration,
}

/// Leads a run through its stages.
fn conduct(
    load: &Load,
    control: &Control,
    pids: &[u32],
    mut watch: impl FnMut(u64) -> Result<()>,
) -> Result<Conducted> {
    let mut hold = |time: Duration| {
        let end = Instant::now() + time;
        while Instant::now() < end {
            thread::sleep(TICK.min(end.saturating_duration_since(Instant::now())));
            watch(control.progress.load(Ordering::Relaxed))?;
        }
        Ok::<_, anyhow::Error>(())
    };
    hold(load.warmup)?;
    let before = Usage::of_all(pids)?;
    let others = Others::start(pids);
    let start = Instant::now();
    control.enter(Stage::Measure);
    hold(load.runtime)?;
    let others_cpu = others.share();
    let after = Usage::of_all(pids)?;
    control.enter(Stage::Census);
    let measured = start.elapsed();
    hold(load.census())?;
    Ok(Conducted {
        before,
        after,
        others_cpu,
        measured,
    })
}

//! The stages of a run, and how the main thread leads the driving threads through them.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::lane::Counts;
use crate::load::Load;
use crate::usage::{Others, Usage};

/// The main thread's look at signals and progress.
const TICK: Duration = Duration::from_millis(5);

/// The stages of a run, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(crate) enum Stage {
    Warmup,
    Measure,
    /// The same load, with a look at each notification that would disturb a measurement.
    Census,
    /// Take what is in flight and end.
    Stop,
    /// End at once: the backend is gone.
    Abort,
}

/// What the main thread and the driving threads share.
#[derive(Debug, Default)]
pub(crate) struct Control {
    stage: AtomicU8,
    progress: AtomicU64,
}

// Relaxed everywhere: the values are flags and counts on their own; results come through `join`.
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

/// What one driving thread saw.
#[derive(Debug)]
pub(crate) struct Driven {
    /// The time that it measured, on its own clock.
    pub(crate) elapsed: Duration,
    pub(crate) counts: Counts,
}

/// What came of a run.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) counts: Counts,
    /// Completions per second, summed over the driving threads.
    pub(crate) iops: f64,
    pub(crate) cpu: Duration,
    pub(crate) context_switches: u64,
    pub(crate) rss_kib: u64,
    /// Share of the machine's CPU time that other programs used; unknown without /proc/stat.
    pub(crate) others_cpu: Option<f64>,
    pub(crate) negotiated_event_idx: bool,
}

/// Runs `drive` on each of `workers`, in threads of their own, through the stages of `load`.
///
/// `watch` is called every few milliseconds with the number of completions so far; its error ends the run.
/// The usage is that of the processes `pids` during the measurement.
///
/// # Errors
/// Those of `watch`, before those of the driving threads.
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
        let join = |driver: thread::ScopedJoinHandle<'_, _>| driver.join().expect("a driver does not panic");
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
        context_switches: after.context_switches.saturating_sub(before.context_switches),
        rss_kib: after.rss_kib,
        others_cpu,
        negotiated_event_idx: false,
    };
    for thread in driven? {
        // A thread that got no CPU at the start has a clock that runs short.
        let time = thread.elapsed.max(measured);
        outcome.iops += thread.counts.completions as f64 / time.as_secs_f64();
        outcome.counts.add(&thread.counts);
    }
    Ok(outcome)
}

/// The usage at both ends of the measurement, and its length.
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

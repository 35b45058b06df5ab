//! One run: connects to a backend, drives all queues for a while, and returns what it saw.

use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use virtio_driver::{
    VhostUser, VirtioBlkConfig, VirtioBlkFeatureFlags, VirtioBlkQueue, VirtioBlkReqBuf, VirtioFeatureFlags,
    VirtioTransport,
};
use vm_memory::{FileOffset, MmapRegion};

use crate::args::{Pattern, Shape, Wait};
use crate::backend::Backend;
use crate::driver::drive;
use crate::lane::{Counts, Lane, Parts, Slot, Work};
use crate::units::Random;
use crate::usage::Usage;

/// No completion for this long, while requests are in flight, is a stall.
const STALL: Duration = Duration::from_secs(5);
/// The main thread's look at signals and progress.
const TICK: Duration = Duration::from_millis(5);

/// What is asked of the backend.
#[derive(Clone, Copy, Debug, serde::Serialize)]
pub(crate) struct Load {
    pub(crate) shape: Shape,
    pub(crate) rw: Pattern,
    pub(crate) block_size: u64,
    pub(crate) wait: Wait,
    pub(crate) event_idx: bool,
    pub(crate) suppress: bool,
    pub(crate) driver_threads: u16,
    #[serde(skip)]
    pub(crate) warmup: Duration,
    #[serde(skip)]
    pub(crate) runtime: Duration,
}

/// What came of it.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) counts: Counts,
    /// Completions per second, summed over the driving threads, each on its own clock.
    pub(crate) iops: f64,
    pub(crate) cpu: Duration,
    pub(crate) context_switches: u64,
    pub(crate) rss_kib: u64,
    pub(crate) negotiated_event_idx: bool,
}

/// The stages of a run, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(crate) enum Stage {
    Warmup,
    Measure,
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
            2 => Stage::Stop,
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

/// Drives `backend` with `load`.
///
/// # Errors
/// If the backend does not answer, stalls, fails a request or ends, or `interrupted` is set.
pub(crate) fn run(backend: &mut Backend, load: &Load, interrupted: &AtomicBool) -> Result<Outcome> {
    let socket = backend
        .socket()
        .to_str()
        .context("the socket's path is not UTF-8")?
        .to_owned();
    let connected = within(STALL, interrupted, backend, || connect(&socket, load))?;
    let Some((transport, mut lanes)) = connected else {
        return Err(backend.failure("did not answer the connection's set-up within 5 seconds"));
    };
    let negotiated_event_idx = transport.get_features() & VirtioFeatureFlags::RING_EVENT_IDX.bits() != 0;
    let per_thread = lanes.len().div_ceil(usize::from(load.driver_threads));
    let control = Control::default();
    let (driven, usage) = thread::scope(|scope| {
        let control = &control;
        let drivers: Vec<_> = lanes
            .chunks_mut(per_thread)
            .map(|lanes| scope.spawn(move || drive(lanes, load.wait, control)))
            .collect();
        let usage = conduct(backend, load, control, interrupted);
        control.enter(if usage.is_ok() { Stage::Stop } else { Stage::Abort });
        if usage.is_err() {
            backend.kill();
        }
        let join = |driver: thread::ScopedJoinHandle<'_, _>| driver.join().expect("a driver does not panic");
        (drivers.into_iter().map(join).collect::<Result<Vec<_>>>(), usage)
    });
    let (before, after) = usage?;
    let elapsed = driven?;
    let mut counts = Counts::new();
    lanes.iter().for_each(|lane| counts.add(&lane.counts));
    if counts.errors > 0 {
        return Err(backend.failure(&format!(
            "{} of {} requests failed",
            counts.errors, counts.completions
        )));
    }
    if counts.completions == 0 {
        return Err(backend.failure("completed nothing during the measurement"));
    }
    let iops = lanes.chunks(per_thread).zip(&elapsed).map(|(lanes, time)| {
        lanes.iter().map(|lane| lane.counts.completions).sum::<u64>() as f64 / time.as_secs_f64()
    });
    Ok(Outcome {
        iops: iops.sum(),
        cpu: after.cpu.saturating_sub(before.cpu),
        context_switches: after.context_switches.saturating_sub(before.context_switches),
        rss_kib: after.rss_kib,
        counts,
        negotiated_event_idx,
    })
}

/// Leads a run through its stages and takes the backend's usage at both ends of the measurement.
fn conduct(
    backend: &mut Backend,
    load: &Load,
    control: &Control,
    interrupted: &AtomicBool,
) -> Result<(Usage, Usage)> {
    hold(backend, load.warmup, control, interrupted)?;
    let before = Usage::of(backend.pid())?;
    control.enter(Stage::Measure);
    hold(backend, load.runtime, control, interrupted)?;
    Ok((before, Usage::of(backend.pid())?))
}

/// Lets the drivers run for `time`, unless something goes wrong.
fn hold(backend: &mut Backend, time: Duration, control: &Control, interrupted: &AtomicBool) -> Result<()> {
    let end = Instant::now() + time;
    let (mut progress, mut moved) = (0, Instant::now());
    while Instant::now() < end {
        thread::sleep(TICK.min(end.saturating_duration_since(Instant::now())));
        ensure!(!interrupted.load(Ordering::Relaxed), "interrupted");
        if backend.has_ended() {
            return Err(backend.failure("ended in the middle of the run"));
        }
        let seen = control.progress.load(Ordering::Relaxed);
        if seen != progress {
            (progress, moved) = (seen, Instant::now());
        } else if moved.elapsed() > STALL {
            return Err(backend.failure("stalled: no completion for 5 seconds"));
        }
    }
    Ok(())
}

/// Runs `work`, which may block on the backend; kills the backend if it takes longer than `limit`.
fn within<T: Send>(
    limit: Duration,
    interrupted: &AtomicBool,
    backend: &mut Backend,
    work: impl FnOnce() -> Result<T> + Send,
) -> Result<Option<T>> {
    let end = Instant::now() + limit;
    let mut killed = false;
    let result = thread::scope(|scope| {
        let worker = scope.spawn(work);
        while !worker.is_finished() {
            if Instant::now() > end || interrupted.load(Ordering::Relaxed) {
                // Whoever blocks on the connection gets its end, and returns.
                backend.kill();
                killed = true;
            }
            thread::sleep(Duration::from_millis(1));
        }
        worker.join().expect("the set-up does not panic")
    });
    ensure!(!interrupted.load(Ordering::Relaxed), "interrupted");
    if killed {
        return Ok(None);
    }
    result
        .map(Some)
        .map_err(|error| backend.failure(&format!("{error:#}")))
}

type Transport = VhostUser<VirtioBlkConfig, VirtioBlkReqBuf>;

fn connect<'a>(socket: &str, load: &Load) -> Result<(Box<Transport>, Vec<Lane<'a>>)> {
    let mut features = VirtioFeatureFlags::VERSION_1.bits() | VirtioBlkFeatureFlags::MQ.bits();
    if load.event_idx {
        features |= VirtioFeatureFlags::RING_EVENT_IDX.bits();
    }
    let mut transport = Box::new(open(socket, features)?);
    let (queues, iodepth) = (usize::from(load.shape.queues), load.shape.iodepth);
    // Three descriptors a request; 256 entries are what QEMU's frontends commonly use.
    let queue_size = (iodepth * 3).next_power_of_two().max(256);
    let rings = VirtioBlkQueue::<Slot>::setup_queues(transport.as_mut(), queues, queue_size)
        .with_context(|| format!("set up {queues} queues of {queue_size} entries"))?;
    let per_lane = usize::from(iodepth) * usize::try_from(load.block_size)?;
    let memory = shared_memory(&mut transport, queues * per_lane)?;
    let bytes = transport
        .get_config()
        .context("read the device's configuration")?
        .capacity
        .to_native()
        * 512;
    let blocks = bytes / load.block_size;
    ensure!(blocks > 0, "the disk has {bytes} bytes, less than one block");
    let lanes = rings.into_iter().enumerate().map(|(i, ring)| {
        let seed = i as u64 + 1;
        let work = Work {
            pattern: load.rw,
            block_size: load.block_size,
            blocks,
            random: Random::new(seed),
            next_block: blocks / queues as u64 * i as u64,
        };
        let parts = Parts {
            kick: transport.get_submission_notifier(i),
            call: transport.get_completion_fd(i),
            memory: Arc::clone(&memory),
            first_buffer: i * per_lane,
            work,
            suppress: load.suppress,
            iodepth,
        };
        Lane::new(ring, parts)
    });
    let lanes = lanes.collect();
    Ok((transport, lanes))
}

/// Connects, also when the socket file is there but nobody listens on it yet.
fn open(socket: &str, features: u64) -> Result<Transport> {
    let end = Instant::now() + STALL;
    loop {
        match VhostUser::new(socket, features) {
            Ok(transport) => return Ok(transport),
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused && Instant::now() < end => {
                thread::sleep(Duration::from_millis(1));
            }
            Err(error) => bail!("connect: {error}"),
        }
    }
}

/// Memory for the requests' data, known to the backend.
fn shared_memory(transport: &mut Transport, len: usize) -> Result<Arc<MmapRegion>> {
    let file = tempfile::tempfile_in("/dev/shm").context("make shared memory")?;
    file.set_len(len as u64)?;
    let region = MmapRegion::from_file(FileOffset::new(file, 0), len).context("map shared memory")?;
    let file = region.file_offset().context("the region has a file")?.file();
    transport
        .map_mem_region(region.as_ptr() as usize, len, file.as_raw_fd(), 0)
        .context("announce memory to the backend")?;
    Ok(Arc::new(region))
}

//! Drives the same files without virtio, to find the upper limit for any backend on this machine.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use vm_memory::{MmapRegion, VolatileMemory};

use crate::control::{Control, Driven, Outcome, Stage, measure};
use crate::image::Image;
use crate::lane::Counts;
use crate::limit_uring::Uring;
use crate::load::{Load, Share, Work};

/// Maximum number of threads. More threads would only wait for each other.
const MOST_THREADS: usize = 64;

/// The system calls that do the I/O.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Engine {
    /// pread and pwrite, in one thread per request in flight (at most 64).
    Psync,
    /// One io_uring and one thread per disk (at most one per CPU), with all of the disk's requests.
    IoUring,
}

impl Engine {
    /// The row's name in the report.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Psync => "limit:psync",
            Self::IoUring => "limit:io_uring",
        }
    }
}

/// Drives the files of `images` with `load`, with as many requests in flight as a backend gets.
///
/// # Errors
/// The I/O fails, or `interrupted` is set.
pub(crate) fn run(
    engine: Engine,
    images: &[Image],
    load: &Load,
    interrupted: &AtomicBool,
) -> Result<Outcome> {
    let shares = shares(engine, images, load)?;
    let watch = |_| {
        ensure!(!interrupted.load(Ordering::Relaxed), "interrupted");
        Ok(())
    };
    let drive = match engine {
        Engine::Psync => psync,
        Engine::IoUring => io_uring,
    };
    measure(load, shares, drive, &[std::process::id()], watch).with_context(|| engine.name())
}

fn shares(engine: Engine, images: &[Image], load: &Load) -> Result<Vec<Share>> {
    let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let in_flight = load.shape.in_flight();
    let threads = match engine {
        Engine::Psync => in_flight.min(MOST_THREADS),
        Engine::IoUring => images.len().min(cpus),
    };
    (0..threads)
        .map(|i| {
            let (file, blocks) = open(&images[i % images.len()], load)?;
            Ok(Share {
                file,
                work: Work::new(load, blocks, i as u64, threads as u64),
                in_flight: in_flight.div_ceil(threads),
            })
        })
        .collect()
}

fn open(image: &Image, load: &Load) -> Result<(File, u64)> {
    let Image::File { path, direct } = image else {
        bail!("a null disk has no file to measure the limit on");
    };
    let mut options = OpenOptions::new();
    options.read(true).write(load.rw.is_write());
    options.custom_flags(if *direct { libc::O_DIRECT } else { 0 });
    let file = options
        .open(path)
        .with_context(|| format!("open {}", path.display()))?;
    let blocks = file.metadata()?.len() / load.block_size;
    Ok((file, blocks))
}

fn psync(mut share: Share, control: &Control) -> Result<Driven> {
    let len = usize::try_from(share.work.block_size)?;
    // A mapping, because O_DIRECT needs an aligned buffer.
    let memory = MmapRegion::<()>::new(len).context("map a buffer")?;
    let slice = memory.get_slice(0, len).context("take the whole buffer")?;
    let guard = slice.ptr_guard_mut();
    // SAFETY: the mapping is this thread's alone, initialised, `len` bytes long, and outlives the slice.
    let buffer = unsafe { std::slice::from_raw_parts_mut(guard.as_ptr(), len) };
    let mut one = |counts: &mut Counts| {
        let (offset, start) = (share.work.next_offset(), Instant::now());
        if share.work.pattern.is_write() {
            share.file.write_all_at(buffer, offset)?;
        } else {
            share.file.read_exact_at(buffer, offset)?;
        }
        counts.completed(start.elapsed(), true);
        Ok(())
    };
    stages(control, &mut one)
}

fn io_uring(share: Share, control: &Control) -> Result<Driven> {
    let mut ring = Uring::new(share)?;
    let driven = stages(control, &mut |counts| ring.turn(counts));
    ring.drain()?;
    driven
}

/// Repeats `step` through all stages, and counts what it does during the measurement.
fn stages(control: &Control, step: &mut dyn FnMut(&mut Counts) -> Result<()>) -> Result<Driven> {
    let mut warmup = Counts::new();
    while control.stage() == Stage::Warmup {
        step(&mut warmup)?;
    }
    let (mut counts, start) = (Counts::new(), Instant::now());
    while control.stage() == Stage::Measure {
        step(&mut counts)?;
    }
    let elapsed = start.elapsed();
    Ok(Driven { elapsed, counts })
}

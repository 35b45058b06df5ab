//! What is run: the command line and its preset, spelled out.

use std::time::Duration;

use anyhow::{Result, ensure};

use crate::args::{Args, Preset, Shape, StorageKind};
use crate::candidate::{Candidate, qsd_is_installed};
use crate::load::Load;

/// Everything that is decided before the first backend starts.
#[derive(Debug)]
pub(crate) struct Plan {
    /// The first is the reference.
    pub(crate) candidates: Vec<Candidate>,
    pub(crate) storage: Vec<StorageKind>,
    pub(crate) loads: Vec<Load>,
    pub(crate) rounds: u32,
    pub(crate) image_size: u64,
    /// What the user should know, e.g. a backend that is left out.
    pub(crate) notes: Vec<String>,
}

const fn shape(queues: u16, iodepth: u16) -> Shape {
    Shape { queues, iodepth }
}

const USUAL_SHAPES: &[Shape] = &[shape(1, 1), shape(1, 64), shape(8, 64)];

const HEADLINE_SHAPES: &[Shape] = &[shape(8, 64), shape(1, 1)];

/// What a preset stands for: backends, storage, shapes, rounds, seconds.
type Defaults = (
    &'static [&'static str],
    &'static [StorageKind],
    &'static [Shape],
    u32,
    f64,
);

fn defaults(preset: Preset) -> Defaults {
    use StorageKind::{Direct, PageCache, Tmpfs};
    match preset {
        Preset::Quick => (
            &["qsd", "ours", "ours:--notify each"],
            &[Tmpfs],
            USUAL_SHAPES,
            3,
            1.0,
        ),
        Preset::Headline => (
            &["ours:--notify each", "ours"],
            &[PageCache],
            HEADLINE_SHAPES,
            15,
            1.0,
        ),
        Preset::Peers => (
            &["qsd", "qsd:io_uring", "qsd:native", "plain", "ours"],
            &[Tmpfs, PageCache, Direct],
            USUAL_SHAPES,
            5,
            1.0,
        ),
    }
}

impl Plan {
    /// # Errors
    /// If an option makes no sense or a program is missing.
    pub(crate) fn new(args: &Args) -> Result<Self> {
        let (backends, storage, shapes, rounds, runtime) = defaults(args.preset.unwrap_or(Preset::Quick));
        let mut notes = Vec::new();
        let specs: Vec<&str> = if args.backends.is_empty() {
            let usable = |spec: &&str| qsd_is_installed() || !spec.starts_with("qsd");
            if !backends.iter().all(usable) {
                notes.push("qemu-storage-daemon is not in PATH: left out".to_owned());
            }
            backends.iter().filter(|spec| usable(spec)).copied().collect()
        } else {
            args.backends.iter().map(String::as_str).collect()
        };
        let parse = |spec| Candidate::parse(spec, args.binary.as_deref());
        let candidates = specs.into_iter().map(parse).collect::<Result<Vec<_>>>()?;
        let runtime = args.runtime.unwrap_or(Duration::from_secs_f64(runtime));
        ensure!(
            runtime >= Duration::from_millis(50),
            "--runtime is less than 0.05 seconds"
        );
        ensure!(
            args.block_size.is_multiple_of(512) && args.block_size > 0 && args.block_size <= 4 << 20,
            "--block-size is not a multiple of 512 up to 4M"
        );
        ensure!(
            args.image_size.is_multiple_of(4096),
            "--image-size is not a multiple of 4k"
        );
        ensure!(
            args.image_size >= args.block_size,
            "--image-size is less than --block-size"
        );
        let shapes = if args.shapes.is_empty() {
            shapes
        } else {
            &args.shapes
        };
        Ok(Self {
            candidates,
            storage: if args.storage.is_empty() {
                storage.to_vec()
            } else {
                args.storage.clone()
            },
            loads: shapes.iter().map(|&shape| load(args, shape, runtime)).collect(),
            rounds: args.rounds.unwrap_or(rounds),
            image_size: args.image_size,
            notes,
        })
    }

    /// Seconds that the measurements themselves take.
    pub(crate) fn seconds(&self) -> f64 {
        let each: f64 = self
            .loads
            .iter()
            .map(|load| (load.warmup + load.runtime).as_secs_f64() + 0.1)
            .sum();
        each * f64::from(self.rounds) * (self.candidates.len() * self.storage.len()) as f64
    }
}

fn load(args: &Args, shape: Shape, runtime: Duration) -> Load {
    let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let threads = args
        .driver_threads
        .map_or(cpus / 2, usize::from)
        .clamp(1, usize::from(shape.queues));
    Load {
        shape,
        rw: args.rw,
        block_size: args.block_size,
        wait: args.wait,
        event_idx: !args.no_event_idx,
        suppress: args.suppress,
        driver_threads: u16::try_from(threads).unwrap_or(1),
        warmup: args.warmup,
        runtime,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    fn plan(args: &[&str]) -> Result<Plan> {
        let base = ["bench", "--backend", "x=serve {socket}"];
        Plan::new(&Args::try_parse_from(base.iter().chain(args))?)
    }

    #[test]
    fn shapes_of_the_command_line_replace_those_of_the_preset() {
        let plan = plan(&["--preset", "headline", "--shape", "2x8,1x1", "--rounds", "1"]).unwrap();
        let shapes: Vec<_> = plan.loads.iter().map(|load| load.shape.to_string()).collect();
        assert_eq!(
            (shapes, plan.rounds),
            (vec!["2x8".to_owned(), "1x1".to_owned()], 1)
        );
    }

    #[test]
    fn senseless_options_are_refused() {
        let bad: [&[&str]; 6] = [
            &["--shape", "8"],
            &["--shape", "1x1000"],
            &["--block-size", "1000"],
            &["--runtime", "0"],
            &["--rounds", "0"],
            &["--image-size", "1k"],
        ];
        for args in bad {
            assert!(plan(args).is_err(), "{args:?} was taken");
        }
    }

    #[test]
    fn a_queue_is_never_driven_by_two_threads() {
        let plan = plan(&["--shape", "2x8", "--driver-threads", "8"]).unwrap();
        assert_eq!(plan.loads[0].driver_threads, 2);
    }
}

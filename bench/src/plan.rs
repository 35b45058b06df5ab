//! Turns the command line and its preset into the list of runs.

use std::time::Duration;

use anyhow::{Result, ensure};

use crate::args::{Args, Pattern, Preset, Rivals, StorageKind};
use crate::candidate::{Candidate, qsd_is_installed};
use crate::contention::Contention;
use crate::daemon::Daemon;
use crate::limit::Engine;
use crate::load::{Frontend, Load};
use crate::sample::Case;
use crate::scratch::Scratch;
use crate::shape::Shape;

/// The candidates, cases and rounds to run.
#[derive(Debug)]
pub(crate) struct Plan {
    /// The first one is the reference.
    pub(crate) candidates: Vec<Candidate>,
    pub(crate) cases: Vec<Case>,
    pub(crate) rounds: u32,
    pub(crate) image_size: u64,
    pub(crate) fill_size: u64,
    /// Notes for the user, e.g. that a backend is left out.
    pub(crate) notes: Vec<String>,
}

/// The settings of a preset.
struct Defaults {
    backends: &'static [&'static str],
    storage: &'static [StorageKind],
    shapes: Vec<Shape>,
    patterns: &'static [Pattern],
    contention: &'static [Contention],
    rounds: u32,
    seconds: f64,
    /// Every case runs twice, the second time without EVENT_IDX.
    both_suppressions: bool,
    /// The host without virtio is measured, too.
    limit: bool,
}

const fn shape(queues: u16, iodepth: u16) -> Shape {
    Shape::new(queues, iodepth, 1)
}

impl Defaults {
    fn of(preset: Preset) -> Self {
        use StorageKind::{Direct, Null, PageCache, Qcow2, Qcow2New, Tmpfs};
        let usual = Self {
            backends: &["qsd", "ours", "ours:--notify each"],
            storage: &[Tmpfs],
            shapes: vec![shape(1, 1), shape(1, 64), shape(8, 64)],
            patterns: &[Pattern::Randread],
            contention: &[Contention::Idle],
            rounds: 3,
            seconds: 1.0,
            both_suppressions: false,
            limit: false,
        };
        match preset {
            Preset::Quick => usual,
            Preset::Headline => Self {
                backends: &["ours:--notify each", "ours"],
                storage: &[PageCache],
                shapes: vec![shape(8, 64), shape(1, 1)],
                rounds: 15,
                both_suppressions: true,
                ..usual
            },
            Preset::Peers => Self {
                backends: &["qsd", "qsd:io_uring", "qsd:native", "plain", "ours"],
                storage: &[Tmpfs, PageCache, Direct],
                rounds: 5,
                ..usual
            },
            Preset::Engines => Self {
                backends: &[
                    "ours:--aio threads",
                    "ours:--aio io_uring",
                    "ours:--aio native",
                    "ours",
                ],
                storage: &[PageCache, Direct],
                rounds: 5,
                ..usual
            },
            Preset::Nbd => Self {
                backends: &["qsd-nbd", "ours-nbd"],
                rounds: 9,
                ..usual
            },
            Preset::NbdTls => Self {
                backends: &["qsd-nbd-tls", "ours-nbd-tls"],
                rounds: 5,
                ..usual
            },
            Preset::Rbd => Self {
                backends: &["qsd-rbd", "ours-rbd", "fio-rbd"],
                shapes: vec![shape(1, 1), shape(1, 32), shape(8, 32)],
                rounds: 5,
                ..usual
            },
            Preset::Qcow2 => Self {
                backends: &["qsd", "ours-raw", "ours"],
                storage: &[Qcow2, Qcow2New],
                patterns: &[Pattern::Randread, Pattern::Randwrite],
                rounds: 5,
                ..usual
            },
            Preset::Contended => Self {
                backends: &["qsd", "qsd:io_uring", "ours", "ours:--poll-max-ns 0"],
                storage: &[Null, Tmpfs, PageCache, Direct],
                contention: &[Contention::Idle, Contention::OneCpu, Contention::BusyLoops],
                rounds: 5,
                seconds: 0.5,
                ..usual
            },
            Preset::Scaling => Self {
                backends: &["qsd", "ours"],
                shapes: scaling(),
                rounds: 3,
                seconds: 0.5,
                ..usual
            },
            Preset::Queues => Self {
                backends: &["qsd", "ours", "ours:--iothreads 4"],
                storage: &[Tmpfs, PageCache],
                shapes: vec![shape(1, 64), shape(16, 4), shape(64, 1)],
                rounds: 7,
                seconds: 0.5,
                ..usual
            },
            Preset::Direct => Self {
                backends: &["qsd:native", "qsd:io_uring", "ours", "ours:--poll-max-ns 0"],
                storage: &[Direct],
                rounds: 9,
                seconds: 0.5,
                limit: true,
                ..usual
            },
            Preset::Writes => Self {
                backends: &["qsd", "ours"],
                storage: &[PageCache],
                patterns: &[Pattern::Randwrite],
                rounds: 7,
                seconds: 0.5,
                limit: true,
                ..usual
            },
        }
    }
}

/// Three curves that meet in one point: 1 queue with iodepth 16 on one disk.
fn scaling() -> Vec<Shape> {
    let queues = [1, 2, 4, 8, 16].map(|queues| shape(queues, 16));
    let iodepths = [1, 4, 64, 256].map(|iodepth| shape(1, iodepth));
    let disks = [4, 16, 64].map(|disks| Shape::new(1, 16, disks));
    [&queues[..], &iodepths, &disks].concat()
}

impl Plan {
    /// # Errors
    /// An option is invalid, or a program is missing.
    pub(crate) fn new(args: &Args) -> Result<Self> {
        let defaults = Defaults::of(args.preset.unwrap_or(Preset::Quick));
        check(args)?;
        let mut notes = Vec::new();
        if cfg!(debug_assertions) {
            notes.push("this is a debug build, which is slow; measure with cargo run --release".to_owned());
        }
        let daemon = Daemon::new(args.binary.as_deref());
        let mut candidates = chosen(&args.backends, defaults.backends, &daemon, &mut notes)?;
        if args.one_process {
            let alone = candidates.iter().find(|candidate| !candidate.serves_several());
            ensure!(
                alone.is_none(),
                "--one-process: only ours, qsd and commands with {{disks}} can serve several disks"
            );
        }
        if args.limit || defaults.limit {
            candidates.extend([Engine::Psync, Engine::IoUring].map(Candidate::limit));
        }
        let runtime = args.runtime.unwrap_or(Duration::from_secs_f64(defaults.seconds));
        let given = |list: &[Shape]| (!list.is_empty()).then(|| list.to_vec());
        let shapes = given(&args.shapes).unwrap_or(defaults.shapes);
        let event_idx: &[bool] = match (args.no_event_idx, defaults.both_suppressions) {
            (true, _) => &[false],
            (false, true) => &[true, false],
            (false, false) => &[true],
        };
        let contention = match &args.contention[..] {
            [] => defaults.contention,
            given => given,
        };
        let patterns = args.rw.map_or(defaults.patterns.to_vec(), |rw| vec![rw]);
        let mut loads = Vec::new();
        for &event_idx in event_idx {
            for &contention in contention {
                for &rw in &patterns {
                    let of = |&shape| load(args, rw, shape, runtime, event_idx, contention);
                    loads.extend(shapes.iter().map(of));
                }
            }
        }
        let mut storage = args.storage.clone();
        if storage.is_empty() {
            storage.extend(defaults.storage);
        }
        let mut cases = cases(&storage, &loads);
        if args.preset == Some(Preset::Qcow2) && args.shapes.is_empty() {
            cases.retain(has_a_goal);
        }
        Ok(Self {
            candidates,
            cases,
            rounds: args.rounds.unwrap_or(defaults.rounds),
            image_size: args.image_size,
            fill_size: args.fill_size,
            notes,
        })
    }

    /// Returns the number of runs, at most: not every candidate supports every storage.
    pub(crate) fn runs(&self) -> u64 {
        (self.cases.len() * self.candidates.len()) as u64 * u64::from(self.rounds)
    }

    /// Estimates the time of all runs, in seconds.
    pub(crate) fn seconds(&self) -> f64 {
        let each: f64 = self
            .cases
            .iter()
            .map(|Case { load, .. }| (load.warmup + load.runtime + load.census()).as_secs_f64() + 0.1)
            .sum();
        each * f64::from(self.rounds) * self.candidates.len() as f64
    }
}

/// Returns all loads on all kinds of storage. New images are only written to, because there is nothing to read.
fn cases(storage: &[StorageKind], loads: &[Load]) -> Vec<Case> {
    let all = storage
        .iter()
        .flat_map(|&storage| loads.iter().map(move |&load| Case { storage, load }));
    all.filter(|case| case.storage != StorageKind::Qcow2New || case.load.rw.is_write())
        .collect()
}

/// Returns whether the preset `qcow2` measures this case.
fn has_a_goal(case: &Case) -> bool {
    let is = |queues, iodepth| case.load.shape == shape(queues, iodepth);
    match (case.storage, case.load.rw.is_write()) {
        (StorageKind::Qcow2New, _) => is(1, 64),
        (_, true) => !is(1, 1),
        _ => true,
    }
}

/// Returns the backends that the user names, or those of a preset that this machine has.
pub(crate) fn chosen(
    named: &[String],
    preset: &[&str],
    daemon: &Daemon,
    notes: &mut Vec<String>,
) -> Result<Vec<Candidate>> {
    if named.is_empty() {
        return available(preset, daemon, notes);
    }
    named.iter().map(|spec| Candidate::parse(spec, daemon)).collect()
}

impl Rivals {
    /// Returns the backends that this machine has, and prints a note for each that it lacks.
    ///
    /// # Errors
    /// A candidate is misspelled.
    pub(crate) fn candidates(&self) -> Result<Vec<Candidate>> {
        let mut notes = Vec::new();
        let daemon = Daemon::new(self.binary.as_deref());
        let candidates = chosen(&self.backends, &["ours", "qsd"], &daemon, &mut notes)?;
        notes.iter().for_each(|note| eprintln!("{note}"));
        Ok(candidates)
    }

    /// Makes a directory for the files of a backend.
    ///
    /// # Errors
    /// It cannot be made.
    pub(crate) fn scratch(&self) -> Result<Scratch> {
        Scratch::new(&self.dir.clone().unwrap_or_else(std::env::temp_dir))
    }
}

/// Returns the backends of a preset that this machine has, and notes those that are left out.
fn available(specs: &[&str], daemon: &Daemon, notes: &mut Vec<String>) -> Result<Vec<Candidate>> {
    let mut candidates = Vec::new();
    if !qsd_is_installed() && specs.iter().any(|spec| spec.starts_with("qsd")) {
        notes.push("qsd is left out: qemu-storage-daemon is not in PATH".to_owned());
    }
    for spec in specs {
        if spec.starts_with("qsd") && !qsd_is_installed() {
            continue;
        }
        let candidate = Candidate::parse(spec, daemon)?;
        if candidate.is_available() {
            candidates.push(candidate);
        } else {
            notes.push(format!(
                "{spec} is left out: this vhost-user-blk does not know the option"
            ));
        }
    }
    ensure!(
        !candidates.is_empty(),
        "none of the preset's backends is available; name one with --backend"
    );
    Ok(candidates)
}

/// Checks what clap cannot check.
fn check(args: &Args) -> Result<()> {
    ensure!(
        args.runtime.is_none_or(|time| time >= Duration::from_millis(50)),
        "--runtime must be at least 0.05 seconds"
    );
    ensure!(
        args.block_size.is_multiple_of(512) && args.block_size > 0 && args.block_size <= 4 << 20,
        "--block-size must be a multiple of 512, up to 4M"
    );
    ensure!(
        (1..=1 << 20).contains(&args.fill_size),
        "--fill-size must be 1 to 1M bytes"
    );
    ensure!(
        args.image_size.is_multiple_of(4096),
        "--image-size must be a multiple of 4k"
    );
    ensure!(
        args.image_size >= args.block_size,
        "--image-size must not be less than --block-size"
    );
    Ok(())
}

fn load(
    args: &Args,
    rw: Pattern,
    shape: Shape,
    runtime: Duration,
    event_idx: bool,
    contention: Contention,
) -> Load {
    let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let threads = args
        .driver_threads
        .map_or(cpus / 2, usize::from)
        .clamp(1, shape.lanes());
    Load {
        frontend: Frontend::Native,
        shape,
        one_process: args.one_process,
        rw,
        block_size: args.block_size,
        wait: args.wait,
        contention,
        event_idx,
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
    fn given_shapes_replace_those_of_the_preset() {
        let args = ["--preset", "quick", "--shape", "2x8,1x1", "--rounds", "1"];
        let plan = plan(&args).unwrap();
        let shapes: Vec<_> = plan
            .cases
            .iter()
            .map(|case| case.load.shape.to_string())
            .collect();
        assert_eq!(
            (shapes, plan.rounds),
            (vec!["2x8".to_owned(), "1x1".to_owned()], 1)
        );
    }

    #[test]
    fn the_headline_runs_with_and_without_event_idx() {
        let modes = |args: &[&str]| -> Vec<bool> {
            let plan = plan(&[&["--preset", "headline", "--shape", "1x1"], args].concat()).unwrap();
            plan.cases.iter().map(|case| case.load.event_idx).collect()
        };
        assert_eq!(modes(&[]), [true, false]);
        assert_eq!(modes(&["--no-event-idx"]), [false]);
    }

    #[test]
    fn the_contended_preset_runs_each_shape_with_each_contention() {
        let runs = |args: &[&str]| -> Vec<(Contention, String)> {
            let plan = plan(&[&["--preset", "contended"], args].concat()).unwrap();
            let on_tmpfs = plan
                .cases
                .iter()
                .filter(|case| case.storage == StorageKind::Tmpfs);
            on_tmpfs
                .map(|case| (case.load.contention, case.load.shape.to_string()))
                .collect()
        };
        let all = runs(&[]);
        assert_eq!(
            (all.len(), &all[8]),
            (9, &(Contention::BusyLoops, "8x64".to_owned()))
        );
        let some = runs(&["--contention", "one-cpu", "--shape", "1x1"]);
        assert_eq!(some, [(Contention::OneCpu, "1x1".to_owned())]);
    }

    #[test]
    fn presets_for_disks_show_what_the_host_can_do() {
        for preset in ["direct", "writes"] {
            let plan = plan(&["--preset", preset]).expect("a plan");
            let limits = plan
                .candidates
                .iter()
                .filter(|one| one.name.starts_with("limit:"));
            assert_eq!(limits.count(), 2, "{preset}");
        }
    }

    #[test]
    fn the_qcow2_preset_writes_and_reads_what_has_goals() {
        let cases = |args: &[&str]| -> Vec<String> {
            let plan = plan(&[&["--preset", "qcow2"], args].concat()).unwrap();
            let name = |case: &Case| format!("{:?} {:?} {}", case.storage, case.load.rw, case.load.shape);
            plan.cases.iter().map(name).collect()
        };
        let expected = [
            "Qcow2 Randread 1x1",
            "Qcow2 Randread 1x64",
            "Qcow2 Randread 8x64",
            "Qcow2 Randwrite 1x64",
            "Qcow2 Randwrite 8x64",
            "Qcow2New Randwrite 1x64",
        ];
        assert_eq!(cases(&[]), expected);
        let some = cases(&["--shape", "1x1", "--rw", "randwrite"]);
        assert_eq!(some, ["Qcow2 Randwrite 1x1", "Qcow2New Randwrite 1x1"]);
    }

    #[test]
    fn invalid_options_are_refused() {
        let bad: [&[&str]; 6] = [
            &["--shape", "8"],
            &["--shape", "1x1000"],
            &["--block-size", "1000"],
            &["--runtime", "0"],
            &["--rounds", "0"],
            &["--image-size", "1k"],
        ];
        for args in bad {
            assert!(plan(args).is_err(), "{args:?} was accepted");
        }
    }

    #[test]
    fn two_threads_never_drive_one_queue() {
        let plan = plan(&["--shape", "2x8", "--driver-threads", "8"]).unwrap();
        assert_eq!(plan.cases[0].load.driver_threads, 2);
    }
}

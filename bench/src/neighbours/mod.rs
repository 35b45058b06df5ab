//! `neighbours`: does a queue notice what happens on another disk or queue of its process and IOThread?
//!
//! A well-behaved queue reads one block at a time. Segments of three kinds alternate: alone, with noise on another
//! process, and with the same noise in its own process: on the other disk, or on another queue of the same disk. The
//! second kind shows what the noise costs the machine, so the difference between the last two is what the process does to
//! its own queue.

mod noise;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use testkit::nbd::qemu_nbd_at;
use testkit::process::Process;

use crate::args::NeighboursArgs;
use crate::args::Pattern;
use crate::backend::Backend;
use crate::candidate::{Candidate, Kind, QSD};
use crate::frontend::{Connected, connect_each};
use crate::scratch::Scratch;
use crate::shape::Shape;
use crate::stats::{median, ratio, spelled};
use crate::throttle::drive;
use crate::units::short;
use noise::{NOISES, Noise, Place, load};

/// Sizes of images. The larger one has room for many writes of 1 MiB that do not overlap.
const SMALL: usize = 16 << 20;
const LARGE: usize = 256 << 20;

/// What happens during a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Segment {
    Alone,
    Elsewhere,
    Here,
}

const KINDS: [Segment; 3] = [Segment::Alone, Segment::Elsewhere, Segment::Here];

/// p50 and p99 of a segment, in microseconds.
type Latency = (f64, f64);

/// A process with two disks on one IOThread.
struct Pair {
    /// The well-behaved queue, and then the noisy ones.
    frontends: Connected<'static>,
    backend: Backend,
    noisy: PathBuf,
    /// The server of the other disk.
    _server: Option<Process>,
}

/// Measures, and prints a line for each noise and candidate.
///
/// # Errors
/// A backend cannot be started, or does not answer.
pub(crate) fn run(args: &NeighboursArgs) -> Result<()> {
    let candidates = args.rivals.candidates()?;
    ensure!(
        candidates
            .iter()
            .all(|one| matches!(one.kind, Kind::Ours { .. } | Kind::Qsd { .. })),
        "only ours and qsd can serve two disks"
    );
    let interrupted = crate::signals::interrupted()?;
    let scratch = args.rivals.scratch()?;
    println!(
        "{:<26} {:<6} {:>12} {:>14} {:>12} {:>26} {:>26}",
        "p50, p99 in us",
        "",
        "alone",
        "noise elsewhere",
        "noise here",
        "p99 here / elsewhere",
        "p99 here / alone"
    );
    for noise in NOISES.iter().filter(|noise| noise.name.contains(&args.only)) {
        for candidate in &candidates {
            if !noise.suits(candidate) {
                continue;
            }
            match segments(args, candidate, noise, &scratch, &interrupted) {
                Ok(segments) => println!("{}", line(noise.name, &candidate.name, &segments)),
                Err(error) => println!("{:<26} {:<6} failed: {error:#}", noise.name, candidate.name),
            }
            ensure!(!interrupted.load(Ordering::Relaxed), "interrupted");
        }
    }
    Ok(())
}

/// Runs all segments of a noise. Each round starts with another kind.
fn segments(
    args: &NeighboursArgs,
    candidate: &Candidate,
    noise: &Noise,
    scratch: &Scratch,
    interrupted: &AtomicBool,
) -> Result<Vec<(Segment, Latency)>> {
    let base = match noise.place {
        Place::OtherDisk => scratch.memory(),
        Place::PageCache | Place::Direct => scratch.disk(),
    };
    let start = |name: &str| Pair::start(candidate, noise, &base.join(name), interrupted);
    let (mut here, mut elsewhere) = (start("here")?, start("elsewhere")?);
    let mut segments = Vec::new();
    for round in 0..args.rounds as usize {
        for i in 0..KINDS.len() {
            let kind = KINDS[(round + i) % KINDS.len()];
            ensure!(!interrupted.load(Ordering::Relaxed), "interrupted");
            let latency = here.segment(kind, &mut elsewhere, noise, args.runtime)?;
            segments.push((kind, latency));
        }
    }
    Ok(segments)
}

impl Pair {
    fn start(candidate: &Candidate, noise: &Noise, dir: &Path, interrupted: &AtomicBool) -> Result<Self> {
        let _ = std::fs::remove_dir_all(dir);
        std::fs::create_dir(dir).context("create a directory")?;
        let quiet_size = match noise.place {
            Place::OtherDisk => SMALL,
            Place::PageCache | Place::Direct => LARGE,
        };
        for (image, size) in [("quiet.img", quiet_size), ("noisy.img", SMALL)] {
            std::fs::write(dir.join(image), vec![1; size]).context("create an image")?;
        }
        let (socket, image) = (dir.join("nbd.sock"), dir.join("noisy.img"));
        let server = noise.is_served().then(|| qemu_nbd_at(&socket, &image, &[]));
        let [quiet, noisy] = ["quiet.sock", "noisy.sock"].map(|name| dir.join(name));
        let line = command_line(candidate, noise, dir);
        let sockets = vec![quiet, noisy.clone()];
        let mut backend = Backend::spawn(&candidate.name, &line, sockets.clone(), dir.join("log"))?;
        backend.wait_until("listen", |_| crate::disks::all_listen(&sockets))?;
        let mut loads = vec![vec![load(Shape::new(1, 1, 1), 4096, Pattern::Randread)]];
        match (noise.place, noise.load) {
            (Place::OtherDisk, Some(load)) => loads.push(vec![load]),
            (_, load) => loads[0].extend(load),
        }
        let frontends = connect_each(&mut backend, &loads, interrupted)?;
        Ok(Self {
            frontends,
            backend,
            noisy,
            _server: server,
        })
    }

    /// Measures the well-behaved queue for a while.
    fn segment(
        &mut self,
        kind: Segment,
        elsewhere: &mut Self,
        noise: &Noise,
        time: Duration,
    ) -> Result<Latency> {
        let (quiet, lanes) = self.frontends.lanes.split_at_mut(1);
        let (lanes, socket) = match kind {
            Segment::Elsewhere => (&mut elsewhere.frontends.lanes[1..], &elsewhere.noisy),
            _ => (lanes, &self.noisy),
        };
        ensure!(!self.backend.has_ended(), "the backend has ended");
        let stop = AtomicBool::new(kind == Segment::Alone);
        quiet[0].start_counting()?;
        let (result, noisy) = thread::scope(|scope| {
            let maker = scope.spawn(|| (noise.make)(lanes, socket, &stop));
            let result = drive(quiet, time);
            stop.store(true, Ordering::Relaxed);
            (result, maker.join().expect("noise does not panic"))
        });
        result.context("the well-behaved disk")?;
        noisy.context("the noise")?;
        let latency = &quiet[0].counts.latency;
        let micros = |quantile| latency.value_at_quantile(quantile) as f64 / 1e3;
        Ok((micros(0.5), micros(0.99)))
    }
}

fn command_line(candidate: &Candidate, noise: &Noise, dir: &Path) -> Vec<String> {
    let (program, options) = match &candidate.kind {
        Kind::Ours { binary, options, .. } => (binary.display().to_string(), &options[..]),
        _ => (QSD.to_owned(), &[][..]),
    };
    let dir = dir.display();
    let node = noise.node.replace("{dir}", &dir.to_string());
    let (cache, export) = match noise.place {
        Place::OtherDisk => ("", ""),
        Place::PageCache => ("", ",writable=on,num-queues=2"),
        Place::Direct => (",cache.direct=on", ",writable=on,num-queues=2"),
    };
    let mut line = vec![
        program,
        "--object=iothread,id=io".to_owned(),
        format!("--blockdev=file,node-name=quiet,filename={dir}/quiet.img{cache}"),
        format!(
            "--export=vhost-user-blk,id=quiet,node-name=quiet,addr.type=unix,addr.path={dir}/quiet.sock,iothread=io{export}"
        ),
        format!("--blockdev={node},node-name=noisy"),
        format!(
            "--export=vhost-user-blk,id=noisy,node-name=noisy,addr.type=unix,addr.path={dir}/noisy.sock,\
             writable=on,iothread=io{}",
            noise.export
        ),
    ];
    line.extend_from_slice(options);
    line
}

/// Renders the result of one noise.
fn line(noise: &str, candidate: &str, segments: &[(Segment, Latency)]) -> String {
    let of = |kind, pick: fn(&Latency) -> f64| -> Vec<f64> {
        let segments = segments.iter().filter(|(other, _)| *other == kind);
        segments.map(|(_, latency)| pick(latency)).collect()
    };
    let p99 = |kind| of(kind, |latency| latency.1);
    let both = |kind| {
        format!(
            "{}, {}",
            short(median(&of(kind, |latency| latency.0))),
            short(median(&p99(kind)))
        )
    };
    let against = |kind| spelled(ratio(&p99(Segment::Here), &p99(kind)));
    format!(
        "{noise:<26} {candidate:<6} {:>12} {:>14} {:>12} {:>26} {:>26}",
        both(Segment::Alone),
        both(Segment::Elsewhere),
        both(Segment::Here),
        against(Segment::Elsewhere),
        against(Segment::Alone)
    )
}

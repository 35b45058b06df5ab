//! `disks`: what many disks of one backend process cost, on one IOThread.
//!
//! Each round starts each backend several times, with many disks and with one, and gives each the same number of
//! requests in flight. Runs on the main thread.

mod footprint;
mod round;
mod table;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::args::{DisksArgs, Pattern, StorageKind, Wait};
use crate::backend::Backend;
use crate::candidate::Candidate;
use crate::command::{Disk, Target};
use crate::contention::Contention;
use crate::control::measure;
use crate::daemon::Daemon;
use crate::driver::drive;
use crate::frontend::{Connected, connect_all, watcher};
use crate::image::{self, Image};
use crate::load::{Frontend, Load};
use crate::plan::chosen;
use crate::scratch::Scratch;
use crate::shape::Shape;
use footprint::Activity;
pub(crate) use footprint::{Footprint, all_listen, settle};
use round::{Life, Round, Row, Speed, Spread};

/// The disks and queues that a process serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Setup {
    /// All disks, with one queue each.
    Many,
    /// One disk with one queue.
    One,
    /// One disk with as many queues as there are disks otherwise. It is as large as all disks together, because reads of
    /// less data are faster: more of it stays in the CPU's caches.
    Queues,
}

impl Setup {
    const ALL: [Self; 3] = [Self::Many, Self::One, Self::Queues];

    fn loads(self) -> &'static [Spread] {
        match self {
            Self::Many => &[Spread::OneBusy, Spread::Disks],
            Self::One => &[Spread::Alone],
            Self::Queues => &[Spread::Queues],
        }
    }
}

/// A process with its frontends.
struct Running {
    backend: [Backend; 1],
    frontends: Connected<'static>,
    life: Life,
}

/// The images of one kind of storage.
struct Images {
    /// One for each disk.
    each: Vec<Image>,
    /// One with the size of all of them.
    whole: Vec<Image>,
}

struct Bench<'a> {
    args: &'a DisksArgs,
    scratch: &'a Scratch,
    interrupted: &'a AtomicBool,
}

/// Measures, and prints a table for each kind of storage.
///
/// # Errors
/// A backend fails, or does not answer in time.
pub(crate) fn run(args: &DisksArgs) -> Result<()> {
    let mut notes = Vec::new();
    let daemon = Daemon::new(args.binary.as_deref());
    let candidates = chosen(&args.backends, &["ours", "qsd"], &daemon, &mut notes)?;
    ensure!(
        candidates.iter().all(Candidate::serves_several),
        "only ours, qsd and commands with {{disks}} can serve several disks"
    );
    notes.iter().for_each(|note| eprintln!("{note}"));
    let interrupted = crate::signals::interrupted()?;
    let dir = args.dir.clone().unwrap_or_else(std::env::temp_dir);
    let scratch = Scratch::new(&dir)?;
    let bench = Bench {
        args,
        scratch: &scratch,
        interrupted: &interrupted,
    };
    for &storage in &args.storage {
        let rows = bench.storage(storage, &candidates)?;
        print!("{}", table::table(args, storage, &rows));
    }
    Ok(())
}

impl Bench<'_> {
    /// Runs all rounds on one kind of storage. Each round starts with another backend and another setup.
    fn storage(&self, storage: StorageKind, candidates: &[Candidate]) -> Result<Vec<Row>> {
        let sizes = (self.args.image_size, 1 << 20);
        let images = Images {
            each: image::prepare(storage, sizes, self.args.disks, self.scratch)?,
            whole: image::prepare(storage, sizes, 1, self.scratch)?,
        };
        let row = |one: &Candidate| (one.name.clone(), Vec::new());
        let mut rows: Vec<Row> = candidates.iter().map(row).collect();
        for round in 0..self.args.rounds as usize {
            for i in 0..candidates.len() {
                let at = (i + round) % candidates.len();
                eprintln!("{storage:?}: round {}, {}", round + 1, candidates[at].name);
                let measured = self.round(&candidates[at], &images, round)?;
                rows[at].1.push(measured);
            }
        }
        Ok(rows)
    }

    fn round(&self, candidate: &Candidate, images: &Images, number: usize) -> Result<Round> {
        let mut round = Round {
            disks: self.args.disks,
            many: Life::default(),
            one: Life::default(),
            speeds: BTreeMap::new(),
        };
        for i in 0..Setup::ALL.len() {
            let setup = Setup::ALL[(i + number) % Setup::ALL.len()];
            let mut running = self.start(candidate, images, setup, number == 0)?;
            for &spread in setup.loads() {
                let speed = self.load(&mut running, spread)?;
                round.speeds.insert(spread, speed);
            }
            match setup {
                Setup::Many => round.many = running.life,
                Setup::One => round.one = running.life,
                Setup::Queues => {}
            }
            drop(running.frontends);
            let [backend] = running.backend;
            backend.stop()?;
        }
        Ok(round)
    }

    /// Starts a backend, connects a frontend to each disk, and notes what that costs.
    fn start(
        &self,
        candidate: &Candidate,
        images: &Images,
        setup: Setup,
        first_round: bool,
    ) -> Result<Running> {
        ensure!(!self.interrupted.load(Ordering::Relaxed), "interrupted");
        let images = match setup {
            Setup::Many => &images.each,
            Setup::One => &images.each[..1],
            Setup::Queues => &images.whole[..],
        };
        let load = self.load_of(setup);
        let (mut backend, listen) = self.spawn(candidate, images, load.shape.queues)?;
        let pid = backend.pid();
        let idle = || {
            let time = Duration::from_secs(self.args.idle);
            let wanted = first_round && setup == Setup::Many;
            wanted.then(|| Activity::during(pid, time)).transpose()
        };
        settle(pid)?;
        let before = (Footprint::of(pid)?, idle()?);
        let start = Instant::now();
        let mut frontends = connect_all(&mut backend, &load, self.interrupted)?;
        for lane in &mut frontends.lanes {
            lane.run_one().context("run the first request")?;
        }
        let connect = start.elapsed();
        settle(pid)?;
        let after = (Footprint::of(pid)?, idle()?);
        Ok(Running {
            backend: [backend],
            frontends,
            life: Life {
                listen,
                connect,
                before: before.0,
                after: after.0,
                idle: before.1.zip(after.1).map(|(before, after)| [before, after]),
            },
        })
    }

    /// Starts a backend. Returns it with the time until all of its sockets listen.
    fn spawn(&self, candidate: &Candidate, images: &[Image], queues: u16) -> Result<(Backend, Duration)> {
        let dir = self.scratch.memory();
        let disk = |(i, image): (usize, &Image)| Disk {
            socket: dir.join(format!("{i}.sock")),
            image: image.clone(),
        };
        let disks: Vec<Disk> = images.iter().enumerate().map(disk).collect();
        let sockets: Vec<PathBuf> = disks.iter().map(|disk| disk.socket.clone()).collect();
        for socket in &sockets {
            let _ = std::fs::remove_file(socket);
        }
        let target = Target {
            disks: &disks,
            queues,
        };
        let line = target.command_line(candidate);
        let start = Instant::now();
        let mut backend = Backend::spawn(&candidate.name, &line, sockets.clone(), dir.join("log"))?;
        backend.wait_until("listen", |_| all_listen(&sockets))?;
        Ok((backend, start.elapsed()))
    }

    fn load_of(&self, setup: Setup) -> Load {
        let disks = self.args.disks;
        let shape = match setup {
            Setup::Many => Shape::new(1, disks, disks),
            Setup::One => Shape::new(1, disks, 1),
            Setup::Queues => Shape::new(disks, 1, 1),
        };
        Load {
            frontend: Frontend::Native,
            shape,
            one_process: true,
            rw: Pattern::Randread,
            block_size: 4096,
            wait: Wait::Sleep,
            contention: Contention::Idle,
            event_idx: true,
            suppress: false,
            driver_threads: 1,
            warmup: self.args.warmup,
            runtime: self.args.runtime,
        }
    }

    /// Measures a load on a process.
    fn load(&self, running: &mut Running, spread: Spread) -> Result<Speed> {
        let load = self.load_of(Setup::Many);
        let lanes = &mut running.frontends.lanes;
        let (depth, busy) = match spread {
            Spread::Alone | Spread::OneBusy => (self.args.disks, 1),
            Spread::Queues | Spread::Disks => (1, lanes.len()),
        };
        let pids = [running.backend[0].pid()];
        let lanes = &mut lanes[..busy];
        lanes.iter_mut().for_each(|lane| lane.set_depth(depth));
        let outcome = measure(
            &load,
            vec![lanes],
            |lanes, control| drive(lanes, load.wait, control),
            &pids,
            watcher(&mut running.backend, self.interrupted),
        )?;
        let failed = outcome.counts.errors;
        ensure!(failed == 0, "{failed} requests failed");
        Ok(Speed::from(&outcome))
    }
}

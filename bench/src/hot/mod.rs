//! `hot`: adds and removes a disk again and again over QMP, while another disk of the same process works.
//!
//! Segments of three kinds alternate: without changes, with changes of the same process, and with the same changes of
//! another process. The last kind shows what the work of adding and removing costs the machine, so the difference
//! between the last two kinds is what the process under test does to its own disk.
//!
//! The main thread changes disks; another thread loads and verifies the disk beside them.

mod apart;
mod report;
mod rounds;
mod verify;

use std::fs::{self, File};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use hdrhistogram::Histogram;
use serde_json::json;

use crate::args::HotArgs;
use crate::backend::Backend;
use crate::candidate::{Candidate, Kind, QSD};
use crate::disks::{Footprint, settle};
use crate::qmp::Qmp;
use apart::Apart;
use rounds::{Holdings, Latencies, PER_SEGMENT, Rounds, Segment, WARM};
use verify::Verifier;

/// Requests in flight on the disk that is added.
const HOT_DEPTH: usize = 8;
/// Requests in flight when a disk is removed that does not answer.
const STUCK_DEPTH: usize = 64;
/// Latency of the disk that does not answer, in nanoseconds.
const STUCK: u64 = 20_000_000_000;

/// A process with a monitor, and one disk that is served from the start.
struct Managed {
    backend: Backend,
    qmp: Qmp,
    dir: PathBuf,
    /// Images and sockets are passed as descriptors, because the process is confined.
    by_descriptor: bool,
}

/// Runs the rounds with each backend.
///
/// # Errors
/// A backend cannot be started. If one fails later, that is part of the result.
pub(crate) fn run(args: &HotArgs) -> Result<()> {
    let candidates = args.rivals.candidates()?;
    let interrupted = crate::signals::interrupted()?;
    let apart = args.apart.then(Apart::new).transpose()?;
    for candidate in &candidates {
        let scratch = args.rivals.scratch()?;
        println!(
            "\n{}: {} rounds, {} requests in flight beside them",
            candidate.name, args.rounds, args.depth
        );
        let start = |name| Managed::start(candidate, &scratch.disk().join(name));
        let (mut under_test, mut other) = (start("here")?, start("elsewhere")?);
        if let Some(apart) = &apart {
            apart.pin_io_thread(under_test.backend.pid())?;
        }
        let mut rounds = Rounds::default();
        let result = rounds.run(args, apart.as_ref(), (&mut under_test, &mut other), &interrupted);
        print!("{}", report::text(&rounds));
        if let Err(error) = result {
            println!("failed after {} rounds: {error:#}", rounds.took.len());
            continue;
        }
        let resized = under_test.resize_unconnected().map(|took| format!("{took:.1?}"));
        println!("block_resize of a disk without a frontend: {}", outcome(resized));
        let removed = under_test.remove_stuck().map(|took| format!("{took:.2?}"));
        println!(
            "hard removal with {STUCK_DEPTH} requests in flight: {}",
            outcome(removed)
        );
    }
    Ok(())
}

fn outcome(result: Result<String>) -> String {
    result.unwrap_or_else(|error| format!("{error:#}"))
}

impl Rounds {
    /// Runs all segments, while a thread loads the disk of `under_test`.
    fn run(
        &mut self,
        args: &HotArgs,
        apart: Option<&Apart>,
        (under_test, other): (&mut Managed, &mut Managed),
        interrupted: &AtomicBool,
    ) -> Result<()> {
        let mut load = Verifier::connect(&under_test.dir.join("load.sock"), args.depth)?;
        let (stop, segment) = (AtomicBool::new(false), AtomicUsize::new(0));
        let mut latencies: Vec<Latencies> = Vec::new();
        let mut kinds = Vec::new();
        let (loaded, changed) = thread::scope(|scope| {
            let loader = scope.spawn(|| {
                apart.map_or(Ok(()), Apart::pin_load)?;
                let goes_on = || !stop.load(Ordering::Relaxed);
                load.run(goes_on, |time| {
                    let at = segment.load(Ordering::Relaxed);
                    while latencies.len() <= at {
                        let new = Histogram::new_with_bounds(1, 60_000_000_000, 2);
                        latencies.push(new.expect("the bounds are valid"));
                    }
                    let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
                    latencies[at].saturating_record(nanos);
                })
            });
            let changed = self.change(args, under_test, other, |kind| {
                ensure!(!interrupted.load(Ordering::Relaxed), "interrupted");
                ensure!(!loader.is_finished(), "the load has ended");
                kinds.push(kind);
                segment.store(kinds.len() - 1, Ordering::Relaxed);
                Ok(())
            });
            stop.store(true, Ordering::Relaxed);
            if changed.is_err() {
                // It may hang, and would leave the load waiting.
                under_test.backend.kill();
            }
            (loader.join().expect("the load does not panic"), changed)
        });
        self.segments = kinds.into_iter().zip(latencies).collect();
        changed?;
        loaded.context("the load beside the rounds")
    }

    fn change(
        &mut self,
        args: &HotArgs,
        under_test: &mut Managed,
        other: &mut Managed,
        mut begin: impl FnMut(Segment) -> Result<()>,
    ) -> Result<()> {
        let mut number = 0;
        let mut time = Duration::from_millis(200);
        while self.took.len() < args.rounds as usize {
            // Another order each time.
            let mut kinds = [Segment::Here, Segment::Elsewhere, Segment::Quiet];
            kinds.rotate_left(number % 3);
            for kind in kinds {
                begin(kind)?;
                let start = Instant::now();
                match kind {
                    Segment::Quiet => thread::sleep(time),
                    Segment::Elsewhere => {
                        (0..PER_SEGMENT).try_for_each(|round| other.round(round, args.requests))?;
                    }
                    Segment::Here => {
                        for round in 0..PER_SEGMENT {
                            let start = Instant::now();
                            under_test.round(round, args.requests)?;
                            self.took.push(start.elapsed());
                        }
                        time = start.elapsed();
                    }
                }
            }
            number += 1;
            if number == WARM || self.took.len() >= args.rounds as usize && number < WARM {
                self.warm = under_test.holdings()?;
            }
        }
        self.end = under_test.holdings()?;
        Ok(())
    }
}

impl Managed {
    fn start(candidate: &Candidate, dir: &Path) -> Result<Self> {
        fs::create_dir(dir).context("create a directory")?;
        for (name, size) in [("load.img", 16 << 20), ("hot.img", 1 << 20)] {
            fs::write(dir.join(name), vec![0; size]).context("create an image")?;
        }
        let (mut line, by_descriptor) = match &candidate.kind {
            Kind::Ours { binary, options, .. } => {
                let program = vec![binary.display().to_string(), "--sandbox=on".to_owned()];
                ([program, options.clone()].concat(), true)
            }
            _ => (vec![QSD.to_owned()], false),
        };
        let text = dir.display();
        line.extend([
            "--object=iothread,id=io".to_owned(),
            format!("--blockdev=driver=file,node-name=load,filename={text}/load.img"),
            format!("--export=type=vhost-user-blk,id=load,node-name=load,addr.type=unix,addr.path={text}/load.sock,writable=on,iothread=io"),
            format!("--chardev=socket,id=qmp,path={text}/qmp.sock,server=on,wait=off"),
            "--monitor=chardev=qmp".to_owned(),
        ]);
        let sockets = vec![dir.join("load.sock"), dir.join("qmp.sock")];
        let mut backend = Backend::spawn(&candidate.name, &line, sockets.clone(), dir.join("log"))?;
        backend.wait_until("listen", |_| crate::disks::all_listen(&sockets))?;
        Ok(Self {
            qmp: Qmp::connect(&dir.join("qmp.sock"))?,
            backend,
            dir: dir.to_owned(),
            by_descriptor,
        })
    }

    fn holdings(&self) -> Result<Holdings> {
        let pid = self.backend.pid();
        let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
        Ok(Holdings {
            footprint: Footprint::of(pid)?,
            mappings: maps.lines().count(),
        })
    }

    /// Adds a disk, sends it requests, besides those that check what was written, and removes it.
    fn round(&mut self, number: u32, requests: u32) -> Result<()> {
        self.add_node("hot", number % 2 == 1)?;
        let socket = self.export("hot")?;
        let mut frontend = Verifier::connect(&socket, HOT_DEPTH)?;
        if requests > 0 {
            let left = std::cell::Cell::new(requests);
            let goes_on = || left.replace(left.get().saturating_sub(1)) > 0;
            frontend.run(goes_on, |_| ())?;
        }
        if number.is_multiple_of(2) {
            drop(frontend);
            self.remove("hot", "safe")
        } else {
            if requests > 0 {
                // Under load, unless the requests are answered by then.
                frontend.submit_all()?;
            }
            self.remove("hot", "hard")
        }
    }

    /// Opens the image of the disk that comes and goes.
    fn add_node(&mut self, name: &str, direct: bool) -> Result<()> {
        let image = self.dir.join("hot.img");
        let mut node =
            json!({"driver": "file", "node-name": name, "filename": image, "cache": {"direct": direct}});
        if !self.by_descriptor {
            return self.qmp.run("blockdev-add", &node).map(drop);
        }
        let set = json!({"fdset-id": 7});
        let image = File::options().read(true).write(true).open(&image)?;
        self.qmp.run_with("add-fd", &set, &[image.as_fd()])?;
        node["filename"] = "/dev/fdset/7".into();
        self.qmp.run("blockdev-add", &node)?;
        self.qmp.run("remove-fd", &set).map(drop)
    }

    /// Serves the node of this name on a new socket, and returns the socket's path.
    fn export(&mut self, name: &str) -> Result<PathBuf> {
        let path = self.dir.join(format!("{name}.sock"));
        let _ = fs::remove_file(&path);
        let addr = if self.by_descriptor {
            let listener = OwnedFd::from(UnixListener::bind(&path).context("listen")?);
            self.qmp
                .run_with("getfd", &json!({"fdname": name}), &[listener.as_fd()])?;
            json!({"type": "fd", "str": name})
        } else {
            json!({"type": "unix", "path": path})
        };
        let export = json!({"type": "vhost-user-blk", "id": name, "node-name": name, "writable": true,
            "iothread": "io", "addr": addr});
        self.qmp.run("block-export-add", &export)?;
        Ok(path)
    }

    fn remove(&mut self, name: &str, mode: &str) -> Result<()> {
        self.qmp
            .run("block-export-del", &json!({"id": name, "mode": mode}))?;
        // Some backends answer before the export is gone, and the node stays in use until then.
        let end = Instant::now() + Duration::from_secs(5);
        loop {
            match self.qmp.run("blockdev-del", &json!({"node-name": name})) {
                Err(_) if Instant::now() < end => thread::sleep(Duration::from_millis(1)),
                done => return done.map(drop),
            }
        }
    }

    /// Resizes a disk that never had a frontend.
    fn resize_unconnected(&mut self) -> Result<Duration> {
        self.add_node("new", false)?;
        self.export("new")?;
        let start = Instant::now();
        let size = json!({"node-name": "new", "size": 2 << 20});
        self.qmp.run("block_resize", &size)?;
        let took = start.elapsed();
        self.remove("new", "safe")?;
        Ok(took)
    }

    /// Removes a disk that does not answer.
    fn remove_stuck(&mut self) -> Result<Duration> {
        let node = json!({"driver": "null-aio", "node-name": "stuck", "size": 1 << 20, "latency-ns": STUCK});
        self.qmp.run("blockdev-add", &node)?;
        let socket = self.export("stuck")?;
        let mut frontend = Verifier::connect(&socket, STUCK_DEPTH)?;
        frontend.submit_all()?;
        settle(self.backend.pid())?;
        let start = Instant::now();
        let hard = json!({"id": "stuck", "mode": "hard"});
        self.qmp.run("block-export-del", &hard)?;
        Ok(start.elapsed())
    }
}

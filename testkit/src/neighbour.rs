//! A well-behaved disk beside the one under test: always in use, and every byte is checked.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::frontend::{Done, Frontend, Op, all_features};
use crate::memory::PATIENCE;
use crate::process::wait_for;
use crate::random::Random;

/// The size of the disk, and of the largest request.
const SIZE: usize = 1 << 18;
const LARGEST: usize = 16 << 10;

/// Requests of a step, which are in flight at the same time.
const DEPTH: usize = 4;

/// Pause between two steps, so that many tests can run at the same time.
const PAUSE: Duration = Duration::from_millis(5);

/// A thread that writes to a disk, reads back, and flushes.
#[derive(Debug)]
pub struct Neighbour {
    state: Arc<State>,
    thread: Option<JoinHandle<Vec<u8>>>,
    image: PathBuf,
}

#[derive(Debug, Default)]
struct State {
    stop: AtomicBool,
    /// The daemon is gone, and answers nothing any more.
    abandoned: AtomicBool,
    steps: AtomicU64,
}

impl Neighbour {
    /// Makes the image of the disk.
    pub fn make_image(path: &Path) {
        fs::write(path, vec![0; SIZE]).expect("write the neighbour's image");
    }

    /// Uses the disk from now on.
    pub fn start(socket: &Path, image: &Path) -> Self {
        let frontend = Frontend::connect(socket, 1, DEPTH, all_features()).expect("connect the neighbour");
        let block = usize::try_from(frontend.config().blk_size.to_native()).expect("it fits");
        let state = Arc::<State>::default();
        let (shared, model) = (Arc::clone(&state), fs::read(image).expect("read the image"));
        let thread = thread::Builder::new()
            .name("neighbour".to_owned())
            .spawn(move || {
                let mut work = Work {
                    state: Arc::clone(&shared),
                    frontend,
                    block,
                    model,
                    random: Random::new(1),
                };
                while !shared.stop.load(Ordering::Relaxed) && work.step() {
                    shared.steps.fetch_add(1, Ordering::Relaxed);
                    thread::park_timeout(PAUSE);
                }
                work.model
            });
        let neighbour = Self {
            state,
            thread: Some(thread.expect("start a thread")),
            image: image.to_owned(),
        };
        neighbour.check();
        neighbour
    }

    /// Returns how many times the disk was written, read, and found right.
    pub fn steps(&self) -> u64 {
        self.state.steps.load(Ordering::Relaxed)
    }

    /// Waits until requests from now on are served.
    ///
    /// # Panics
    /// The disk is not served, or data is wrong.
    pub fn check(&self) {
        // The current step may have been served before.
        let goal = self.steps() + 2;
        wait_for("the neighbour's requests", || {
            let thread = self.thread.as_ref().expect("present until the end");
            assert!(!thread.is_finished(), "the neighbour has failed: see above");
            thread.thread().unpark();
            (self.steps() >= goal).then_some(())
        });
    }

    /// Stops using the disk, and checks the image.
    pub fn finish(mut self) {
        self.check();
        self.state.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().expect("present until the end");
        thread.thread().unpark();
        let model = thread.join().expect("the neighbour has failed: see above");
        let image = fs::read(&self.image).expect("read the neighbour's image");
        assert!(image == model, "the neighbour's image is wrong");
    }
}

impl Drop for Neighbour {
    fn drop(&mut self) {
        self.state.abandoned.store(true, Ordering::Relaxed);
        self.state.stop.store(true, Ordering::Relaxed);
    }
}

struct Work {
    state: Arc<State>,
    frontend: Frontend,
    /// The disk's logical block size.
    block: usize,
    /// The expected content of the disk.
    model: Vec<u8>,
    random: Random,
}

impl Work {
    /// Sends a few requests to different parts of the disk, and checks their results. Returns false if nobody wants to
    /// know any more.
    fn step(&mut self) -> bool {
        let part = SIZE / DEPTH;
        let ops: Vec<Op> = (0..DEPTH).map(|n| self.op(n * part, part)).collect();
        let queue = self.frontend.queue(0);
        for (tag, op) in ops.iter().enumerate() {
            queue.submit(op, tag);
        }
        queue.kick();
        let Some(done) = self.wait() else {
            return false;
        };
        for Done { tag, ret, data } in done {
            assert_eq!(ret, 0, "the neighbour's request fails: {:?}", kind(&ops[tag]));
            match &ops[tag] {
                Op::Read { offset, len } => {
                    let at = usize::try_from(*offset).expect("small");
                    assert!(
                        data == self.model[at..at + len],
                        "the neighbour reads wrong data at {at}"
                    );
                }
                Op::Write { offset, data } => {
                    let at = usize::try_from(*offset).expect("small");
                    self.model[at..at + data.len()].copy_from_slice(data);
                }
                _ => {}
            }
        }
        true
    }

    /// Waits for all requests in flight.
    fn wait(&mut self) -> Option<Vec<Done>> {
        let queue = self.frontend.queue(0);
        let (mut done, start) = (queue.reap(), Instant::now());
        while queue.in_flight() > 0 {
            if let Some((more, _)) = queue.wait_at_most(Duration::from_millis(100)) {
                done.extend(more);
            } else if self.state.abandoned.load(Ordering::Relaxed) {
                return None;
            }
            assert!(
                start.elapsed() < PATIENCE,
                "the neighbour's requests do not complete"
            );
        }
        Some(done)
    }

    /// Makes a request for a part of the disk.
    fn op(&mut self, first: usize, len: usize) -> Op {
        let block = self.block;
        let count = 1 + self.random.below(LARGEST / block);
        let at = first + block * self.random.below((len - count * block) / block + 1);
        let (offset, len) = (at as u64, count * block);
        match self.random.below(64) {
            // Rare, because many tests share the disk of the machine.
            0 => Op::Flush,
            1..=32 => Op::Read { offset, len },
            _ => Op::Write {
                offset,
                data: self.random.bytes(len),
            },
        }
    }
}

fn kind(op: &Op) -> &'static str {
    match op {
        Op::Read { .. } => "read",
        Op::Write { .. } => "write",
        _ => "flush",
    }
}

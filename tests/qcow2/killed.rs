//! Daemons that are killed while they change an image: the image stays consistent, and has every completed request.
//!
//! `QCOW2_KILLS` is the number of kills of an image that has a snapshot, 10 by default.

use std::fs;
use std::ops::Range;
use std::path::Path;
use std::process::Command;

use testkit::frontend::{Frontend, Op};
use testkit::random::Random;

use super::support::{
    check_clean, create, directory_in_memory, expected, qemu_img, qemu_io, raw, serve_writable,
};

const BLOCK: usize = 4096;
const BLOCKS: usize = 4096;
/// Blocks of a cluster.
const CLUSTER: usize = 16;
const DEPTH: usize = 8;
const SIZE: &str = "16M";

/// What the blocks of the disk may have.
#[derive(Clone, Debug)]
pub(crate) struct Model {
    /// The value of each block after the last completed request, and after the one in flight, if there is one.
    values: Vec<Vec<u32>>,
    /// The blocks of the requests in flight, by tag.
    busy: Vec<Option<Range<usize>>>,
    next: u32,
}

impl Model {
    pub(crate) fn of(image: &[u8]) -> Self {
        Self {
            values: image.chunks(BLOCK).map(|block| vec![value(block)]).collect(),
            busy: vec![None; DEPTH],
            next: 1 << 24,
        }
    }

    /// Chooses a request. Returns `None` if another one uses its blocks.
    fn request(&mut self, tag: usize, random: &mut Random) -> Option<Op> {
        let kind = random.below(20);
        if kind == 0 {
            self.busy[tag] = Some(0..0);
            return Some(Op::Flush);
        }
        let (first, len) = match kind {
            1 | 2 => (
                random.below(BLOCKS / CLUSTER) * CLUSTER,
                CLUSTER * (1 + random.below(8)),
            ),
            _ => (random.below(BLOCKS), 1 + random.below(4)),
        };
        let blocks = first..(first + len).min(BLOCKS);
        let overlaps = |busy: &Range<usize>| busy.start < blocks.end && blocks.start < busy.end;
        if self.busy.iter().flatten().any(overlaps) {
            return None;
        }
        self.next += 1;
        let value = if kind < 5 { 0 } else { self.next };
        for block in blocks.clone() {
            self.values[block].push(value);
        }
        self.busy[tag] = Some(blocks.clone());
        let (offset, len) = ((blocks.start * BLOCK) as u64, (blocks.len() * BLOCK) as u64);
        Some(match kind {
            1 => Op::Discard { offset, len },
            2..=4 => Op::WriteZeroes {
                offset,
                len,
                unmap: kind == 2,
            },
            _ => Op::Write {
                offset,
                data: value.to_le_bytes().repeat(blocks.len() * BLOCK / 4),
            },
        })
    }

    pub(crate) fn complete(&mut self, tag: usize) {
        for block in self.busy[tag].take().expect("it was in flight") {
            let last = self.values[block].pop().expect("the request's value");
            self.values[block] = vec![last];
        }
    }

    /// Compares the image with the model, which then has what the image has.
    pub(crate) fn compare(&mut self, image: &[u8]) {
        self.busy = vec![None; DEPTH];
        for (number, (block, values)) in image.chunks(BLOCK).zip(&mut self.values).enumerate() {
            let found = value(block);
            assert!(
                values.contains(&found),
                "block {number} has {found:#x}, and not one of {values:x?}"
            );
            *values = vec![found];
        }
    }
}

/// Returns the first number in a block.
fn value(block: &[u8]) -> u32 {
    u32::from_le_bytes(block[..4].try_into().expect("four bytes"))
}

/// Keeps requests in flight while `goes_on` returns true, which gets the number of those that have completed.
pub(crate) fn load(
    frontend: &mut Frontend,
    model: &mut Model,
    random: &mut Random,
    goes_on: impl Fn(usize) -> bool,
) {
    let queue = frontend.queue(0);
    let mut idle: Vec<usize> = (0..DEPTH).collect();
    let mut done = 0;
    while goes_on(done) {
        let mut attempts = 0;
        while let Some(tag) = idle.pop() {
            match model.request(tag, random) {
                Some(op) => queue.submit(&op, tag),
                None => idle.push(tag),
            }
            attempts += 1;
            if attempts > 4 * DEPTH && idle.len() < DEPTH {
                break;
            }
        }
        queue.kick();
        for completion in queue.wait().0 {
            assert_eq!(completion.ret, 0);
            model.complete(completion.tag);
            idle.push(completion.tag);
            done += 1;
        }
    }
}

/// Waits for the requests that are still in flight.
pub(crate) fn finish(frontend: &mut Frontend, model: &mut Model) {
    for completion in frontend.queue(0).drain() {
        assert_eq!(completion.ret, 0);
        model.complete(completion.tag);
    }
}

/// Fails if qemu-img finds errors. Leaks are allowed if the image says that its refcounts may be wrong.
pub(crate) fn check_no_errors(dir: &Path, image: &str) {
    let output = Command::new("qemu-img")
        .args(["check", "-f", "qcow2", image])
        .current_dir(dir)
        .output()
        .expect("run qemu-img");
    let text = [output.stdout, output.stderr].concat();
    let header = fs::read(dir.join(image)).expect("read");
    // Version 2 cannot say it, so its references are counted whenever it is opened for writing.
    let is_dirty = header[7] == 2 || header[79] & 1 != 0;
    match output.status.code() {
        Some(0) => {}
        Some(3) if is_dirty => {}
        _ => panic!(
            "qemu-img check (dirty: {is_dirty}): {}",
            String::from_utf8_lossy(&text)
        ),
    }
}

/// Kills daemons under load again and again.
fn kill(dir: &Path, image: &str, options: &[&str], rounds: usize, seed: u64) {
    let mut random = Random::new(seed);
    let mut model = Model::of(&expected(dir, image));
    for round in 0..rounds {
        let (mut daemon, mut frontend) = serve_writable(dir, image, options);
        let completions = 1 + round * 37 % 300;
        load(&mut frontend, &mut model, &mut random, |done| done < completions);
        daemon.signal(libc::SIGKILL);
        daemon.wait_for_exit();
        drop(frontend);
        check_no_errors(dir, image);
        model.compare(&expected(dir, image));
    }
    let (mut daemon, frontend) = serve_writable(dir, image, options);
    drop(frontend);
    assert!(daemon.terminate().status.success());
    check_clean(dir, image);
    model.compare(&expected(dir, image));
}

#[test]
fn killed_daemons_leave_consistent_images() {
    let Some(dir) = directory_in_memory() else { return };
    let dir = dir.path();
    for (options, seed) in ["cluster_size=64k", "cluster_size=4k", "extended_l2=on"]
        .into_iter()
        .zip(1..)
    {
        create(dir, options, &["image", SIZE]);
        kill(dir, "image", &[], 10, seed);
    }
}

#[test]
fn killed_daemons_leave_consistent_overlays() {
    let Some(dir) = directory_in_memory() else { return };
    let dir = dir.path();
    raw(dir, "base", 16 << 20);
    for (options, seed) in ["cluster_size=64k", "cluster_size=4k"].into_iter().zip(1..) {
        let overlay = ["-b", "base", "-F", "raw", "image", SIZE];
        create(dir, options, &overlay);
        kill(dir, "image", &["--follow-names"], 10, seed);
    }
}

#[test]
fn killed_daemons_leave_snapshots_alone() {
    let Some(dir) = directory_in_memory() else { return };
    let dir = dir.path();
    create(dir, "", &["image", SIZE]);
    qemu_io(dir, "image", &["write -P 7 1M 8M"]);
    qemu_img(dir, &["snapshot", "-c", "one", "image"]);
    let rounds = std::env::var("QCOW2_KILLS").ok();
    let rounds = rounds.map_or(10, |rounds| rounds.parse().expect("a number of rounds"));
    kill(dir, "image", &[], rounds, 3);
    let args = ["convert", "-f", "qcow2", "-O", "raw", "-l", "one"];
    qemu_img(dir, &[&args[..], &["image", "snapshot"]].concat());
    let snapshot = fs::read(dir.join("snapshot")).expect("read");
    assert!(snapshot[1 << 20..9 << 20].iter().all(|byte| *byte == 7));
}

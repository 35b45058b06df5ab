//! Power cuts between any two writes: only what was synced before is kept for sure. The image stays consistent, and has
//! everything that was flushed.
//!
//! `trace.c` is preloaded into the daemon, and records all writes and syncs. A power cut is a number of records: the
//! image is built from those that were synced by then, and from any of the others, each by sectors. The tests are skipped
//! without a C compiler.

mod cut;

use std::collections::HashMap;
use std::fs;
use std::ops::Range;
use std::path::Path;
use std::process::{Command, Stdio};

use testkit::daemon::binary;
use testkit::frontend::{Frontend, Op, all_features};
use testkit::preload;
use testkit::process::{Process, wait_for};
use testkit::random::Random;

use self::cut::{Trace, sectors};
use super::killed::check_no_errors;
use super::support::{directory_in_memory, expected, qemu_img, qemu_io, raw};

const BLOCK: usize = 4096;
const DEPTH: usize = 4;

/// A request, and the part of the trace while it was in flight.
struct Request {
    blocks: Range<usize>,
    /// What it makes of each block; `None` for a flush.
    value: Option<u32>,
    from: usize,
    to: usize,
}

/// Makes a request on blocks that no other one uses.
fn request(random: &mut Random, blocks: usize, busy: &[Range<usize>], value: u32) -> Option<(Op, Request)> {
    let kind = random.below(16);
    if kind == 0 {
        let request = Request {
            blocks: 0..0,
            value: None,
            from: 0,
            to: 0,
        };
        return Some((Op::Flush, request));
    }
    let (first, len) = match kind {
        1..=3 => (random.below(blocks / 16) * 16, 16 * (1 + random.below(2))),
        _ => (random.below(blocks), 1 + random.below(3)),
    };
    let range = first..(first + len).min(blocks);
    if busy
        .iter()
        .any(|busy| busy.start < range.end && range.start < busy.end)
    {
        return None;
    }
    let (offset, bytes) = ((range.start * BLOCK) as u64, (range.len() * BLOCK) as u64);
    let value = if kind < 5 { 0 } else { value };
    let op = match kind {
        1 => Op::Discard { offset, len: bytes },
        2..=4 => Op::WriteZeroes {
            offset,
            len: bytes,
            unmap: kind == 2,
        },
        _ => Op::Write {
            offset,
            data: value.to_le_bytes().repeat(range.len() * BLOCK / 4),
        },
    };
    let request = Request {
        blocks: range,
        value: Some(value),
        from: 0,
        to: 0,
    };
    Some((op, request))
}

/// Runs requests, and notes which part of the trace each one took.
fn run(
    frontend: &mut Frontend,
    trace: &Path,
    blocks: usize,
    random: &mut Random,
    count: usize,
) -> Vec<Request> {
    let position = || usize::try_from(fs::metadata(trace).expect("the trace").len()).expect("small");
    let queue = frontend.queue(0);
    let mut requests: Vec<Request> = Vec::new();
    let mut flying: Vec<usize> = Vec::new();
    while requests.len() < count || !flying.is_empty() {
        while flying.len() < DEPTH && requests.len() < count {
            let busy: Vec<_> = flying.iter().map(|tag| requests[*tag].blocks.clone()).collect();
            let value = u32::try_from(requests.len() + 1).expect("small") | 1 << 24;
            let Some((op, mut request)) = request(random, blocks, &busy, value) else {
                break;
            };
            request.from = position();
            queue.submit(&op, requests.len());
            flying.push(requests.len());
            requests.push(request);
        }
        queue.kick();
        for done in queue.wait().0 {
            assert_eq!(done.ret, 0);
            requests[done.tag].to = position();
            flying.retain(|tag| *tag != done.tag);
        }
    }
    requests
}

/// Returns the values that each block may have after a power cut at this place of the trace: `None` is what it had at
/// first.
fn values(blocks: usize, requests: &[Request], cut: usize) -> Vec<Vec<Option<u32>>> {
    let flushes = requests
        .iter()
        .filter(|request| request.value.is_none() && request.to <= cut);
    let stable = flushes.map(|flush| flush.from).max().unwrap_or(0);
    let mut values = vec![vec![None]; blocks];
    for request in requests {
        let Some(value) = request.value.filter(|_| request.from <= cut) else {
            continue;
        };
        for block in request.blocks.clone() {
            if request.to <= stable {
                values[block].clear();
            }
            values[block].push(Some(value));
        }
    }
    values
}

fn value(sector: &[u8]) -> u32 {
    u32::from_le_bytes(sector[..4].try_into().expect("four bytes"))
}

/// Serves `image` with the trace, and cuts the power again and again afterwards.
fn cut_power(dir: &Path, image: &str, options: &[&str], seed: u64) {
    let Some(library) = preload::build("tests/qcow2/powercut/trace.c", dir) else {
        return;
    };
    let journal = dir.join("journal");
    let _ = fs::remove_file(&journal);
    let (original, disk) = (fs::read(dir.join(image)).expect("read"), expected(dir, image));
    let blocks = disk.len() / BLOCK;
    let mut command = Command::new(binary());
    command
        .args(["--socket-path", "sock", "--blk-file", image, "--format", "qcow2"])
        // The preloaded library writes its journal with system calls that the daemon itself does not make.
        .args(["--sandbox", "off"])
        .args(options)
        .current_dir(dir)
        .env("LD_PRELOAD", library)
        .env("TRACE_JOURNAL", &journal)
        .stdin(Stdio::null())
        .stderr(Stdio::null());
    let (mut daemon, ()) = Process::start("vhost-user-blk", &mut command, |_| ());
    let connect = || Frontend::connect(&dir.join("sock"), 1, 8, all_features()).ok();
    let mut frontend = wait_for("the daemon's socket", connect);
    let mut random = Random::new(seed);
    let requests = run(&mut frontend, &journal, blocks, &mut random, 120);
    assert_eq!(frontend.queue(0).run(&Op::Flush).ret, 0);
    drop(frontend);
    // At SIGTERM nothing is flushed, so the image is closed before.
    wait_for("a closed image", || {
        (fs::read(dir.join(image)).expect("read")[79] & 1 == 0).then_some(())
    });
    daemon.signal(libc::SIGTERM);
    daemon.wait();
    fs::remove_file(dir.join("sock")).ok();

    let bytes = fs::read(&journal).expect("read the journal");
    let trace = Trace::parse(&bytes);
    assert!(trace.len() > 100, "there is something to lose");
    let mut seen: HashMap<u32, usize> = HashMap::new();
    for number in 0..120 {
        // Few records are the end of the trace, where the image is closed.
        let records = match number {
            0..20 => trace.len() - number,
            _ => random.below(trace.len() + 1),
        };
        let built = trace.cut(&original, records, number % 3, &mut random);
        fs::write(dir.join("cut"), built).expect("write");
        check_no_errors(dir, "cut");
        let content = expected(dir, "cut");
        let allowed = values(blocks, &requests, trace.position(records));
        for (at, sector) in sectors(&content) {
            let (found, allowed) = (value(sector), &allowed[at / BLOCK]);
            let has = |value: &Option<u32>| match value {
                None => disk[at..at + sector.len()] == *sector,
                Some(number) => sector == number.to_le_bytes().repeat(sector.len() / 4),
            };
            assert!(
                allowed.iter().any(has),
                "sector at {at:#x} after {records} records has {found:#x}, and not one of {allowed:x?}"
            );
            *seen.entry(found).or_default() += 1;
        }
    }
    assert!(seen.len() > 10, "many values survive: {}", seen.len());
    fs::remove_file(dir.join("cut")).ok();
}

#[test]
fn power_cuts_leave_consistent_images() {
    let Some(dir) = directory_in_memory() else { return };
    let dir = dir.path();
    for (options, seed) in [
        "cluster_size=64k",
        "cluster_size=4k",
        "cluster_size=512",
        "extended_l2=on",
    ]
    .into_iter()
    .zip(1..)
    {
        qemu_img(
            dir,
            &["create", "-q", "-f", "qcow2", "-o", options, "image", "4M"],
        );
        cut_power(dir, "image", &[], seed);
    }
}

#[test]
fn power_cuts_leave_consistent_overlays() {
    let Some(dir) = directory_in_memory() else { return };
    let dir = dir.path();
    raw(dir, "base", 4 << 20);
    for (options, seed) in ["cluster_size=64k", "cluster_size=16k,extended_l2=on"]
        .into_iter()
        .zip(1..)
    {
        let overlay = ["-b", "base", "-F", "raw", "image", "4M"];
        let args = ["create", "-q", "-f", "qcow2", "-o", options];
        qemu_img(dir, &[&args[..], &overlay].concat());
        cut_power(dir, "image", &["--follow-names"], seed);
    }
}

#[test]
fn power_cuts_leave_snapshots_consistent() {
    let Some(dir) = directory_in_memory() else { return };
    let dir = dir.path();
    for (options, seed) in ["cluster_size=64k", "cluster_size=4k"].into_iter().zip(1..) {
        qemu_img(
            dir,
            &["create", "-q", "-f", "qcow2", "-o", options, "image", "4M"],
        );
        qemu_io(dir, "image", &["write -P 7 1M 2M"]);
        qemu_img(dir, &["snapshot", "-c", "one", "image"]);
        cut_power(dir, "image", &[], seed);
    }
}

//! Power cuts between any two writes: only what was synced before is kept for sure. The image stays consistent, and has
//! everything that was flushed.
//!
//! `trace.c` is preloaded into the daemon, and records all writes and syncs. A power cut is a number of records: the
//! image is built from those that were synced by then, and from any of the others, each by sectors. The tests are skipped
//! without a C compiler.

mod cut;
mod load;

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use testkit::daemon::binary;
use testkit::frontend::{Frontend, Op, all_features};
use testkit::preload;
use testkit::process::{Process, wait_for};
use testkit::qmp::Qmp;
use testkit::random::Random;

use self::cut::{Trace, sectors};
use self::load::{Disk, Request};
use super::killed::check_no_errors;
use super::support::{create, directory_in_memory, expected, qemu_img, qemu_io, raw};

const BLOCK: usize = 4096;

/// Returns the values that each block may have after a power cut at this place of the trace: `None` is what it had at
/// first.
fn values(blocks: usize, requests: &[Request], cut: usize) -> Vec<Vec<Option<u32>>> {
    let flushes = requests
        .iter()
        .filter(|request| request.value.is_none() && request.to <= cut);
    let stable = flushes.map(|flush| flush.from).max().unwrap_or(0);
    let most = requests.iter().map(|request| request.blocks.end).max();
    let mut values = vec![vec![None]; blocks.max(most.unwrap_or(0))];
    for request in requests {
        let Some(value) = request.value.filter(|_| request.from <= cut) else {
            continue;
        };
        for block in request.blocks.clone() {
            if request.to <= stable || request.size.is_some() && request.to <= cut {
                values[block].clear();
            }
            values[block].push(Some(value));
        }
    }
    values
}

/// Returns the numbers of blocks that the disk may have after a power cut.
fn sizes(blocks: usize, requests: &[Request], cut: usize) -> Vec<usize> {
    let mut sizes = vec![blocks];
    for request in requests.iter().filter(|request| request.from <= cut) {
        if let Some(size) = request.size {
            if request.to <= cut {
                sizes.clear();
            }
            sizes.push(size);
        }
    }
    sizes
}

fn value(sector: &[u8]) -> u32 {
    u32::from_le_bytes(sector[..4].try_into().expect("four bytes"))
}

/// What is different in a test.
#[derive(Clone, Copy, Debug)]
struct Setup<'a> {
    /// More options of the node.
    options: &'a str,
    /// The image has a data file, called `data`.
    has_data: bool,
    resizes: bool,
    cuts: usize,
}

const PLAIN: Setup<'static> = Setup {
    options: "",
    has_data: false,
    resizes: false,
    cuts: 120,
};

/// A daemon whose writes are recorded.
struct Traced {
    daemon: Process,
    frontend: Frontend,
    client: Qmp,
    journal: PathBuf,
}

impl Traced {
    /// Serves an image with the trace.
    fn start(dir: &Path, image: &str, setup: Setup<'_>) -> Option<Self> {
        let library = preload::build("tests/qcow2/powercut/trace.c", dir)?;
        let journal = dir.join("journal");
        let _ = fs::remove_file(&journal);
        let node = format!(
            // Writes to a mapping cannot be recorded.
            "qcow2,node-name=disk,discard=unmap,file.driver=file,file.mmap=off,file.filename={image}{}",
            setup.options
        );
        let mut command = Command::new(binary());
        command
            .args(["--blockdev", &node])
            .args([
                "--export",
                "vhost-user-blk,id=e,node-name=disk,addr.type=unix,addr.path=sock,writable=on",
            ])
            .args(["--chardev", "socket,id=qmp,path=qmp.sock,server=on,wait=off"])
            .args(["--monitor", "chardev=qmp"])
            // The preloaded library writes its journal with system calls that the daemon itself does not make.
            .args(["--sandbox", "off"])
            .current_dir(dir)
            .env("LD_PRELOAD", library)
            .env("TRACE_JOURNAL", &journal)
            .stdin(Stdio::null())
            .stderr(Stdio::null());
        if setup.has_data {
            command.env("TRACE_DATA", dir.join("data"));
        }
        let (daemon, ()) = Process::start("vhost-user-blk", &mut command, |_| ());
        let connect = || Frontend::connect(&dir.join("sock"), 1, 8, all_features()).ok();
        Some(Self {
            daemon,
            frontend: wait_for("the daemon's socket", connect),
            client: Qmp::connect(&dir.join("qmp.sock")),
            journal,
        })
    }

    /// Closes the image. Returns the trace.
    fn close(mut self, dir: &Path, image: &str) -> Vec<u8> {
        drop(self.frontend);
        // At SIGTERM nothing is flushed, so the image is closed before.
        wait_for("a closed image", || {
            let header = fs::read(dir.join(image)).expect("read");
            (header[7] == 2 || header[79] & 1 == 0).then_some(())
        });
        self.daemon.signal(libc::SIGTERM);
        self.daemon.wait();
        fs::remove_file(dir.join("sock")).ok();
        fs::read(&self.journal).expect("read the journal")
    }
}

/// Serves `image` with the trace, and cuts the power again and again afterwards.
fn cut_power(dir: &Path, image: &str, setup: Setup<'_>, seed: u64) {
    let files = if setup.has_data {
        &[image, "data"][..]
    } else {
        &[image]
    };
    let originals: Vec<Vec<u8>> = files
        .iter()
        .map(|file| fs::read(dir.join(file)).expect("read"))
        .collect();
    let disk = expected(dir, image);
    let blocks = disk.len() / BLOCK;
    let Some(mut traced) = Traced::start(dir, image, setup) else {
        return;
    };
    let mut random = Random::new(seed);
    let mut served = Disk {
        frontend: &mut traced.frontend,
        client: &mut traced.client,
        journal: &traced.journal,
        blocks,
    };
    let requests = served.run(&mut random, 120, setup.resizes);
    assert_eq!(traced.frontend.queue(0).run(&Op::Flush).ret, 0);
    let bytes = traced.close(dir, image);
    let trace = Trace::parse(&bytes);
    assert!(trace.len() > 100, "there is something to lose");
    let mut seen: HashMap<u32, usize> = HashMap::new();
    for number in 0..setup.cuts {
        // Few records are the end of the trace, where the image is closed.
        let records = match number {
            0..20 => trace.len() - number,
            _ => random.below(trace.len() + 1),
        };
        let built = trace.cut(&originals, records, number % 3, &mut random);
        for (file, content) in ["cut", "data"].into_iter().zip(built) {
            fs::write(dir.join(file), content).expect("write");
        }
        check_no_errors(dir, "cut");
        let content = expected(dir, "cut");
        let position = trace.position(records);
        let allowed = sizes(blocks, &requests, position);
        assert!(
            allowed.contains(&(content.len() / BLOCK)),
            "the disk has {} blocks after {records} records, and not one of {allowed:?}",
            content.len() / BLOCK
        );
        let allowed = values(blocks, &requests, position);
        for (at, sector) in sectors(&content) {
            let (found, allowed) = (value(sector), &allowed[at / BLOCK]);
            let has = |value: &Option<u32>| match value {
                None => disk.get(at..at + sector.len()) == Some(sector),
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
fn first_discards_leak_nothing_without_the_dirty_bit() {
    let Some(dir) = directory_in_memory() else { return };
    let dir = dir.path();
    for options in ["cluster_size=64k", "extended_l2=on"] {
        create(dir, options, &["image", "4M"]);
        qemu_io(dir, "image", &["write -P 7 0 4M"]);
        let original = fs::read(dir.join("image")).expect("read");
        let Some(mut traced) = Traced::start(dir, "image", PLAIN) else {
            return;
        };
        let discard = Op::Discard {
            offset: 1 << 20,
            len: 1 << 20,
        };
        assert_eq!(traced.frontend.queue(0).run(&discard).ret, 0);
        let bytes = traced.close(dir, "image");
        let trace = Trace::parse(&bytes);
        for records in 0..=trace.len() {
            for mode in 0..4 {
                let cut = trace.cut(
                    std::slice::from_ref(&original),
                    records,
                    mode,
                    &mut Random::new(mode as u64),
                );
                fs::write(dir.join("cut"), &cut[0]).expect("write");
                check_no_errors(dir, "cut");
            }
        }
    }
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
        create(dir, options, &["image", "4M"]);
        cut_power(dir, "image", PLAIN, seed);
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
        create(dir, options, &overlay);
        let setup = Setup {
            options: ",follow-names=on",
            ..PLAIN
        };
        cut_power(dir, "image", setup, seed);
    }
}

#[test]
fn power_cuts_leave_snapshots_consistent() {
    let Some(dir) = directory_in_memory() else { return };
    let dir = dir.path();
    for (options, seed) in ["cluster_size=64k", "cluster_size=4k"].into_iter().zip(1..) {
        create(dir, options, &["image", "4M"]);
        qemu_io(dir, "image", &["write -P 7 1M 2M"]);
        qemu_img(dir, &["snapshot", "-c", "one", "image"]);
        cut_power(dir, "image", PLAIN, seed);
    }
}

#[test]
fn power_cuts_leave_images_of_version_2_consistent() {
    let Some(dir) = directory_in_memory() else { return };
    let dir = dir.path();
    create(dir, "compat=0.10", &["image", "4M"]);
    let setup = Setup { cuts: 60, ..PLAIN };
    cut_power(dir, "image", setup, 1);
}

#[test]
fn power_cuts_leave_data_files_consistent() {
    let Some(dir) = directory_in_memory() else { return };
    let dir = dir.path();
    create(dir, "data_file=data", &["image", "4M"]);
    let setup = Setup {
        options: ",follow-names=on",
        has_data: true,
        cuts: 60,
        ..PLAIN
    };
    cut_power(dir, "image", setup, 1);
}

#[test]
fn power_cuts_leave_resized_images_consistent() {
    let Some(dir) = directory_in_memory() else { return };
    let dir = dir.path();
    for (options, seed) in ["cluster_size=64k", "cluster_size=512"].into_iter().zip(1..) {
        create(dir, options, &["image", "4M"]);
        let setup = Setup {
            resizes: true,
            cuts: 60,
            ..PLAIN
        };
        cut_power(dir, "image", setup, seed);
    }
}

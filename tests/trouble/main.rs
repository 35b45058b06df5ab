//! The effects of full, truncated, failing and stuck disks and of scarce resources on the guest, with every engine.

mod durability;
mod full;
mod held;
mod injected;
mod log;
mod lost_writes;
mod scarce;
mod truncated;

use std::path::Path;

use testkit::daemon::Daemon;
use testkit::frontend::{Frontend, Op, all_features};
use testkit::skip::skipped;
use vhost_user_blk::engine::{BlockNode, Choice};
use vhost_user_blk::storage::OpenOptions;

/// Options that select each engine: I/O in the pool, in the IOThread, or in the kernel.
const ENGINES: [&[&str]; 6] = [
    &["--aio", "threads"],
    &[],
    &["--aio", "io_uring"],
    &["--aio", "threads", "--direct"],
    &["--aio", "io_uring", "--direct"],
    &["--aio", "native", "--direct"],
];

/// Returns the engines that this image supports.
fn engines(image: &Path) -> Vec<&'static [&'static str]> {
    let available = |options: &&[&str]| {
        let open = OpenOptions {
            path: image.to_owned(),
            direct: options.contains(&"--direct"),
            ..OpenOptions::default()
        };
        let choice = match options.get(1) {
            Some(&"io_uring") => Choice::IoUring,
            Some(&"native") => Choice::Native,
            _ => Choice::Threads,
        };
        let had = BlockNode::open(&open).is_ok_and(|node| node.plan(choice).is_ok());
        if !had {
            skipped(format_args!("no {options:?} here"));
        }
        had
    };
    ENGINES.into_iter().filter(available).collect()
}

/// Connects a frontend with one queue of this depth.
fn connect(daemon: &Daemon, depth: usize) -> Frontend {
    Frontend::connect(&daemon.socket(), 1, depth, all_features()).expect("connect")
}

fn write(offset: usize, data: &[u8]) -> Op {
    Op::Write {
        offset: offset as u64,
        data: data.to_vec(),
    }
}

fn read(offset: usize, len: usize) -> Op {
    Op::Read {
        offset: offset as u64,
        len,
    }
}

/// Counts the occurrences of a text in the daemon's output.
fn said(daemon: &Daemon, what: &str) -> usize {
    daemon.output().matches(what).count()
}

const NO_ROOM: &str = "no room on the disk";
const ROOM_AGAIN: &str = "no request is held for lack of room any more";
const EIO: i32 = -libc::EIO;

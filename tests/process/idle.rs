//! An idle daemon runs no thread and stays small, also after work.

use std::fs;
use std::time::{Duration, Instant};

use testkit::daemon::Daemon;
use testkit::frontend::{Frontend, Op, all_features};
use testkit::process::wait_for;

/// An idle daemon must run no thread for this long.
const QUIET: Duration = Duration::from_secs(2);
/// Memory limit of an idle daemon with one disk, without the guest's memory and the program's file. Workers that have
/// ended leave memory with the allocator, the most where every request needs a worker (2.4 MiB on an overlay).
const OWN_KIB: u64 = 3 << 10;
/// Memory limit of what an idle daemon shares with others. It has nothing of a frontend that has gone.
const SHARED_KIB: u64 = 1 << 10;
const DEPTH: usize = 64;

/// Returns the value of `key` in a file of /proc.
fn figure(path: &str, key: &str) -> u64 {
    let text = fs::read_to_string(path).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(key));
    let figure = line.and_then(|line| line.split_whitespace().next());
    figure.and_then(|figure| figure.parse().ok()).unwrap_or(0)
}

/// Counts the context switches of each thread.
fn switches(pid: u32) -> Vec<(String, u64)> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("the daemon lives");
    let of = |path: String| {
        let count = |key| figure(&path, key);
        count("voluntary_ctxt_switches:") + count("nonvoluntary_ctxt_switches:")
    };
    let mut switches: Vec<_> = tasks
        .filter_map(|task| Some(format!("{}/status", task.ok()?.path().display())))
        .map(|path| (path.clone(), of(path)))
        .collect();
    switches.sort();
    switches
}

/// Waits for a period in which no thread of the daemon runs.
fn wait_until_quiet(daemon: &Daemon, what: &str) {
    let (mut since, mut last) = (Instant::now(), switches(daemon.pid()));
    wait_for(what, || {
        let now = switches(daemon.pid());
        if now != last {
            (since, last) = (Instant::now(), now);
        }
        (since.elapsed() >= QUIET).then_some(())
    });
}

/// Keeps the queues busy for a moment.
fn load(frontend: &mut Frontend) {
    for queue in frontend.queues() {
        for round in 0..20 {
            for tag in 0..DEPTH {
                let offset = ((tag * 7 + round) % 256 * 4096) as u64;
                let op = match tag % 3 {
                    0 => Op::Write {
                        offset,
                        data: vec![1; 4096],
                    },
                    _ => Op::Read { offset, len: 4096 },
                };
                queue.submit(&op, tag);
            }
            queue.kick();
            assert!(queue.drain().iter().all(|done| done.ret == 0));
        }
    }
}

fn is_quiet_before_during_and_after(options: &[&str]) {
    let options = [&["--num-queues", "4", "--io-timeout", "1"], options].concat();
    let daemon = Daemon::start(&vec![0x11; 1 << 20], &options);
    wait_until_quiet(&daemon, "rest before a frontend comes");
    let mut frontend = Frontend::connect(&daemon.socket(), 4, DEPTH, all_features()).expect("connect");
    wait_until_quiet(&daemon, "rest with a frontend that does nothing");
    load(&mut frontend);
    wait_until_quiet(&daemon, "rest after a load");
    drop(frontend);
    wait_until_quiet(&daemon, "rest without a frontend");
    let of = |key| figure(&format!("/proc/{}/status", daemon.pid()), key);
    // Not RssFile: how much of the program's file the kernel maps depends on the page cache.
    let (own, shared) = (of("RssAnon:"), of("RssShmem:"));
    assert!((1..OWN_KIB).contains(&own), "{options:?}: {own} KiB of its own");
    assert!(shared < SHARED_KIB, "{options:?}: {shared} KiB shared");
}

#[test]
fn a_daemon_on_the_page_cache_rests() {
    is_quiet_before_during_and_after(&[]);
}

#[test]
fn a_daemon_on_two_iothreads_rests() {
    is_quiet_before_during_and_after(&["--iothreads", "2"]);
}

#[test]
fn a_daemon_on_a_disk_rests() {
    is_quiet_before_during_and_after(&["--direct"]);
}

#[test]
fn a_daemon_with_threads_rests() {
    is_quiet_before_during_and_after(&["--aio", "threads"]);
}

//! The caches of L2 tables: QEMU's options, and the memory that they allow.

use std::fs;
use std::path::Path;

use testkit::daemon::{Daemon, run};
use testkit::frontend::{Frontend, Op, all_features};

use super::support::{create, directory_in_memory, qemu_io};

const MIB: u64 = 1 << 20;
/// The bytes of the disk that one slice of an L2 table maps.
const PER_SLICE: u64 = 32 * MIB;
const SLICES: u64 = (1 << 40) / PER_SLICE;

/// Makes a disk of 1 TiB whose L1 entries all point to the same L2 table.
fn make_large_image(dir: &Path) {
    create(dir, "", &["image", "1T"]);
    qemu_io(dir, "image", &["write -P 5 0 64k"]);
    let mut image = fs::read(dir.join("image")).expect("read");
    let number =
        |image: &[u8], at: usize| u64::from_be_bytes(image[at..at + 8].try_into().expect("eight bytes"));
    let l1 = usize::try_from(number(&image, 40)).expect("in the file");
    // Several entries use the table, so it is not marked as used once.
    let entry = number(&image, l1) & !(1 << 63);
    for place in image[l1..l1 + 2048 * 8].chunks_mut(8) {
        place.copy_from_slice(&entry.to_be_bytes());
    }
    fs::write(dir.join("image"), image).expect("write");
}

fn node(dir: &Path, more: &str) -> String {
    let path = dir.join("image").display().to_string();
    format!("qcow2,node-name=disk,read-only=on,file.driver=file,file.filename={path}{more}")
}

const EXPORT: &str = "vhost-user-blk,id=e,node-name=disk,addr.type=unix,addr.path=s";

/// Returns the daemon's own memory in bytes.
fn memory(daemon: &Daemon) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", daemon.pid())).expect("read");
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB"));
    kib.expect("a size").parse::<u64>().expect("a number") * 1024
}

#[test]
fn the_caches_limit_the_memory_of_large_disks() {
    let Some(dir) = directory_in_memory() else { return };
    let dir = dir.path();
    make_large_image(dir);
    for (more, cache) in [("", 32 * MIB), (",l2-cache-size=1048576", MIB)] {
        let own = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("make a directory");
        let node = node(dir, more);
        let daemon = Daemon::start_with(own, &["--blockdev", &node, "--export", EXPORT]);
        let mut frontend =
            Frontend::connect(&daemon.dir().join("s"), 1, 64, all_features()).expect("connect");
        let queue = frontend.queue(0);
        for first in (0..SLICES).step_by(64) {
            for tag in 0..64 {
                let offset = (first + tag) * PER_SLICE;
                let tag = usize::try_from(tag).expect("small");
                queue.submit(&Op::Read { offset, len: 512 }, tag);
            }
            queue.kick();
            assert!(queue.drain().iter().all(|done| done.ret == 0));
        }
        let used = memory(&daemon);
        assert!(used < 16 * MIB + cache, "{more}: {} KiB", used / 1024);
        // All slices together have 128 MiB.
        let read = queue.run(&Op::Read {
            offset: (1 << 39) + 512,
            len: 512,
        });
        assert!(read.ret == 0 && read.data.len() == 512);
    }
}

#[test]
fn sizes_of_caches_have_qemus_words() {
    let Some(dir) = directory_in_memory() else { return };
    let dir = dir.path();
    create(dir, "", &["image", "1M"]);
    let refusal = |more: &str| {
        let exit = run(&["--blockdev", &node(dir, more), "--export", EXPORT], dir);
        assert!(!exit.status.success(), "{more}: {}", exit.output);
        exit.output
    };
    for (more, words) in [
        (
            ",cache-size=1000,l2-cache-size=500,refcount-cache-size=500",
            "cache-size, l2-cache-size and refcount-cache-size may not be set at the same time",
        ),
        (
            ",cache-size=1000,l2-cache-size=5000",
            "l2-cache-size may not exceed cache-size",
        ),
        (
            ",cache-size=1000,refcount-cache-size=5000",
            "refcount-cache-size may not exceed cache-size",
        ),
        (
            ",l2-cache-entry-size=131072",
            "L2 cache entry size must be a power of two between 512 and the cluster size (65536)",
        ),
    ] {
        let told = refusal(more);
        assert!(told.contains(words), "{more}: {told}");
    }
    let told = refusal(",file.l2-cache-size=1");
    assert!(told.contains("l2-cache-size"), "{told}");
}

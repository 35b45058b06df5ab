//! An image and a raw twin get the same requests. `qemu-img compare` finds no difference.

use std::path::Path;

use serde_json::json;
use testkit::daemon::Daemon;
use testkit::frontend::{Frontend, Op};
use testkit::qmp::Qmp;
use testkit::random::Random;

use super::support::{check_clean, create, directory_in_memory, expected, qemu_img, raw, serve_node};

const LEN: usize = (4 << 20) + (5 << 9);
const REQUESTS: usize = 300;

/// A served disk.
struct Served {
    daemon: Daemon,
    frontend: Frontend,
    client: Qmp,
}

impl Served {
    /// Serves a node of a driver with these options.
    fn new(node: &str) -> Self {
        let (daemon, frontend, client) = serve_node("disk", node, &[]);
        Self {
            daemon,
            frontend,
            client,
        }
    }

    fn resize(&mut self, size: usize) {
        let arguments = json!({"node-name": "disk", "size": size});
        self.client.execute("block_resize", &arguments);
        assert_eq!(self.frontend.config().capacity.to_native(), size as u64 / 512);
    }

    fn end(mut self) {
        drop(self.frontend);
        let exit = self.daemon.terminate();
        assert!(exit.status.success(), "{}", exit.output);
    }
}

/// Makes a request on whole sectors, or for discards on whole clusters: other parts may keep their data.
fn request(
    random: &mut Random,
    size: usize,
    Requests {
        cluster, discards, ..
    }: Requests,
) -> Op {
    let sectors = size / 512;
    let first = random.below(sectors);
    let longest = [4, 40, 120][random.below(3)];
    let len = ((1 + random.below(longest)) * 512).min(size - first * 512);
    let (offset, bytes) = ((first * 512) as u64, len as u64);
    match random.below(12) {
        0 => Op::Flush,
        1 | 2 if discards => {
            let first = random.below(size.div_ceil(cluster)) * cluster;
            let end = (first + cluster * (1 + random.below(4))).min(size);
            let (offset, len) = (first as u64, (end - first) as u64);
            Op::Discard { offset, len }
        }
        3 | 4 => Op::WriteZeroes {
            offset,
            len: bytes,
            unmap: random.below(2) == 0,
        },
        _ => {
            let byte = u8::try_from(random.below(255) + 1).expect("a byte");
            let data = (0..len).map(|at| byte ^ (at / 512).to_le_bytes()[0]).collect();
            Op::Write { offset, data }
        }
    }
}

/// The requests that both get.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Requests {
    /// The unit of discards in bytes.
    pub(crate) cluster: usize,
    pub(crate) discards: bool,
    pub(crate) resizes: bool,
}

impl Requests {
    /// Requests of all kinds.
    fn of(cluster: usize) -> Self {
        Self {
            cluster,
            discards: true,
            resizes: true,
        }
    }
}

/// Sends the same requests to `image`, which has a disk of `size` bytes, and to a raw twin, and compares them. `more`:
/// options of the image's node.
pub(crate) fn compare(dir: &Path, more: &str, mut size: usize, requests: Requests, seed: u64) {
    let file = |name| format!("filename={}", dir.join(name).display());
    qemu_img(dir, &["convert", "-f", "qcow2", "-O", "raw", "image", "twin"]);
    let node = format!("qcow2,file.driver=file,file.{}{more}", file("image"));
    let twin = format!("file,{}", file("twin"));
    let mut both = [Served::new(&node), Served::new(&twin)];
    let mut random = Random::new(seed);
    for number in 1..=REQUESTS {
        if requests.resizes && number % 60 == 0 {
            size = (2 << 20) + random.below(4 << 20) / 512 * 512;
            both.iter_mut().for_each(|served| served.resize(size));
        }
        let op = request(&mut random, size, requests);
        for served in &mut both {
            assert_eq!(served.frontend.queue(0).run(&op).ret, 0, "request {number}");
        }
    }
    both.into_iter().for_each(Served::end);
    check_clean(dir, "image");
    assert_eq!(expected(dir, "image").len(), size, "{more}");
    qemu_img(dir, &["compare", "-f", "qcow2", "-F", "raw", "image", "twin"]);
}

#[test]
fn images_are_equal_to_raw_twins() {
    let Some(dir) = directory_in_memory() else { return };
    let dir = dir.path();
    raw(dir, "source", LEN);
    for ((options, cluster, more), seed) in [
        ("compat=0.10", 64 << 10, ""),
        ("cluster_size=512", 512, ""),
        ("cluster_size=64k,lazy_refcounts=on", 64 << 10, ""),
        ("cluster_size=2M", 2 << 20, ""),
        ("extended_l2=on,cluster_size=16k", 16 << 10, ""),
        ("compression_type=zstd", 64 << 10, "-c"),
        ("preallocation=metadata", 64 << 10, ""),
        ("refcount_bits=1", 64 << 10, ""),
    ]
    .into_iter()
    .zip(1..)
    {
        let mut args = vec!["convert", "-f", "raw", "-O", "qcow2", "-o", options];
        args.extend((!more.is_empty()).then_some(more));
        args.extend(["source", "image"]);
        qemu_img(dir, &args);
        compare(dir, "", LEN, Requests::of(cluster), seed);
    }
}

#[test]
fn overlays_are_equal_to_raw_twins() {
    let Some(dir) = directory_in_memory() else { return };
    let dir = dir.path();
    raw(dir, "base.raw", LEN);
    let base = ["convert", "-f", "raw", "-O", "qcow2", "-c", "base.raw", "base"];
    qemu_img(dir, &base);
    let size = LEN.to_string();
    for ((options, cluster, format), seed) in [
        ("cluster_size=64k", 64 << 10, "qcow2"),
        ("cluster_size=4k", 4 << 10, "raw"),
        ("extended_l2=on", 64 << 10, "qcow2"),
        ("compat=0.10", 64 << 10, "raw"),
    ]
    .into_iter()
    .zip(1..)
    {
        let base = if format == "raw" { "base.raw" } else { "base" };
        create(dir, options, &["-b", base, "-F", format, "image", &size]);
        // Version 2 cannot hide a part of its backing file, so discards change nothing.
        let requests = Requests {
            discards: !options.contains("0.10"),
            ..Requests::of(cluster)
        };
        compare(dir, ",follow-names=on", LEN, requests, seed);
    }
}

#[test]
fn snapshots_and_data_files_are_equal_to_raw_twins() {
    let Some(dir) = directory_in_memory() else { return };
    let dir = dir.path();
    raw(dir, "source", LEN);
    qemu_img(dir, &["convert", "-f", "raw", "-O", "qcow2", "source", "image"]);
    qemu_img(dir, &["snapshot", "-c", "one", "image"]);
    compare(dir, "", LEN, Requests::of(64 << 10), 1);
    for (options, seed) in ["data_file=data", "data_file=data,data_file_raw=on"]
        .into_iter()
        .zip(2..)
    {
        let size = LEN.to_string();
        create(dir, options, &["image", &size]);
        compare(dir, ",follow-names=on", LEN, Requests::of(64 << 10), seed);
    }
}

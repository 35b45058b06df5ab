//! Random writes, discards and zeroes, compared with a model and with what qemu-img says about the image.

use std::path::Path;

use testkit::frontend::{Frontend, Op};
use testkit::full::SmallDisk;
use testkit::random::Random;

use super::support::{
    check_clean, convert, create, directory, directory_in_memory, expected, qemu_img, qemu_io, raw,
    serve_writable,
};

/// No multiple of a cluster of any size.
const LEN: usize = (5 << 20) + (3 << 9);

/// Executes random requests on a disk and on the model.
fn shake(frontend: &mut Frontend, model: &mut [u8], random: &mut Random, requests: usize) {
    let sectors = model.len() / 512;
    for _ in 0..requests {
        let first = random.below(sectors);
        let len = (1 + match random.below(4) {
            0 => random.below(8),
            1 => random.below(40),
            _ => random.below(128),
        })
        .min(sectors - first);
        let (at, len) = (first * 512, len * 512);
        let (offset, bytes) = (at as u64, len as u64);
        let op = match random.below(16) {
            0 | 1 => {
                let done = frontend.queue(0).run(&Op::Read { offset, len });
                assert_eq!(done.ret, 0, "read of {len} bytes at {at}");
                assert!(done.data == model[at..at + len], "content of {len} bytes at {at}");
                continue;
            }
            2 => Op::Flush,
            3 => {
                // Whole clusters read as zeroes then, the rest may stay.
                let done = frontend.queue(0).run(&Op::Discard { offset, len: bytes });
                assert_eq!(done.ret, 0, "discard of {len} bytes at {at}");
                let done = frontend.queue(0).run(&Op::Read { offset, len });
                let is_kept = |(new, old): (&u8, &u8)| *new == *old || *new == 0;
                assert!(
                    done.data.iter().zip(&model[at..]).all(is_kept),
                    "a discard at {at}"
                );
                model[at..at + len].copy_from_slice(&done.data);
                continue;
            }
            4 | 5 => {
                let unmap = random.below(2) == 0;
                model[at..at + len].fill(0);
                Op::WriteZeroes {
                    offset,
                    len: bytes,
                    unmap,
                }
            }
            _ => {
                let byte = u8::try_from(random.below(255) + 1).expect("a byte");
                let data: Vec<u8> = (0..len).map(|n| byte ^ (n / 512).to_le_bytes()[0]).collect();
                model[at..at + len].copy_from_slice(&data);
                Op::Write { offset, data }
            }
        };
        assert_eq!(frontend.queue(0).run(&op).ret, 0, "{:?} bytes at {at}", len);
    }
}

/// Writes to an image, and compares it with the model in the end.
fn write_to(dir: &Path, image: &str, options: &[&str], seed: u64) {
    let mut model = expected(dir, image);
    let mut random = Random::new(seed);
    // Twice, because the second daemon finds what the first one has left.
    for _ in 0..2 {
        let (mut daemon, mut frontend) = serve_writable(dir, image, options);
        shake(&mut frontend, &mut model, &mut random, 250);
        drop(frontend);
        let exit = daemon.terminate();
        assert!(exit.status.success(), "{}", exit.output);
        check_clean(dir, image);
        let found = expected(dir, image);
        let differs = (0..model.len()).find(|at| found.get(*at) != Some(&model[*at]));
        assert_eq!((found.len(), differs), (model.len(), None), "what qemu-img reads");
    }
}

/// Writes to images with these options, made from a raw file or empty.
fn each(options: &[&str], more: &[&str]) {
    let Some(dir) = directory_in_memory() else { return };
    let dir = dir.path();
    raw(dir, "source.raw", LEN);
    for (options, seed) in options.iter().zip(1..) {
        convert(dir, options, more);
        write_to(dir, "image", &[], seed);
    }
}

#[test]
fn all_versions_and_cluster_sizes_are_written() {
    each(
        &[
            "compat=0.10,cluster_size=512",
            "compat=0.10",
            "cluster_size=512",
            "cluster_size=4k",
            "cluster_size=64k",
            "cluster_size=2M",
            "refcount_bits=1",
            "refcount_bits=2,cluster_size=512",
            "refcount_bits=8,cluster_size=1k",
            "refcount_bits=64,lazy_refcounts=on",
        ],
        &[],
    );
}

#[test]
fn subclusters_are_written() {
    each(
        &[
            "extended_l2=on,cluster_size=16k",
            "extended_l2=on,cluster_size=64k",
            "extended_l2=on,cluster_size=2M",
        ],
        &[],
    );
}

#[test]
fn compressed_clusters_are_rewritten() {
    each(
        &[
            "compat=0.10",
            "cluster_size=512",
            "compression_type=zlib",
            "cluster_size=4k,compression_type=zstd",
            "compression_type=zstd,extended_l2=on",
        ],
        &["-c"],
    );
}

#[test]
fn preallocated_images_are_written() {
    each(
        &[
            "preallocation=metadata",
            "preallocation=full",
            "preallocation=metadata,extended_l2=on",
        ],
        &[],
    );
}

#[test]
fn overlays_are_written() {
    let Some(dir) = directory_in_memory() else { return };
    let dir = dir.path();
    raw(dir, "base.raw", LEN);
    qemu_img(
        dir,
        &["convert", "-f", "raw", "-O", "qcow2", "-c", "base.raw", "base"],
    );
    for (options, seed) in [
        "compat=0.10",
        "compat=0.10,cluster_size=512",
        "cluster_size=512",
        "cluster_size=64k",
        "cluster_size=2M",
        "extended_l2=on,cluster_size=64k",
    ]
    .into_iter()
    .zip(1..)
    {
        {
            let (base, format) = [("base.raw", "raw"), ("base", "qcow2")][usize::from(seed % 2 == 0)];
            // Longer than what is below.
            create(dir, options, &["-b", base, "-F", format, "top", "6M"]);
            let before = std::fs::read(dir.join(base)).expect("read");
            write_to(dir, "top", &["--follow-names"], seed);
            assert!(
                std::fs::read(dir.join(base)).expect("read") == before,
                "the backing file"
            );
        }
    }
}

#[test]
fn snapshots_keep_their_data() {
    let Some(dir) = directory_in_memory() else { return };
    let dir = dir.path();
    raw(dir, "source.raw", LEN);
    for (options, seed) in [
        "compat=0.10",
        "cluster_size=512",
        "cluster_size=64k",
        "extended_l2=on,cluster_size=16k",
        "refcount_bits=2",
    ]
    .into_iter()
    .zip(1..)
    {
        convert(dir, options, &[]);
        qemu_img(dir, &["snapshot", "-c", "one", "image"]);
        qemu_io(dir, "image", &["write -P 1 100k 300k", "write -z 1M 1M"]);
        qemu_img(dir, &["snapshot", "-c", "two", "image"]);
        let contents = |name: &str| {
            let args = [
                "convert",
                "-f",
                "qcow2",
                "-O",
                "raw",
                "-l",
                name,
                "image",
                "snapshot.raw",
            ];
            qemu_img(dir, &args);
            std::fs::read(dir.join("snapshot.raw")).expect("read")
        };
        let before = [contents("one"), contents("two")];
        write_to(dir, "image", &[], seed);
        assert!([contents("one"), contents("two")] == before, "{options}");
        for name in ["one", "two"] {
            qemu_img(dir, &["snapshot", "-d", name, "image"]);
            check_clean(dir, "image");
        }
    }
}

#[test]
fn data_files_are_written() {
    let Some(dir) = directory_in_memory() else { return };
    let dir = dir.path();
    raw(dir, "source.raw", LEN);
    for (options, seed) in [
        "data_file=data",
        "data_file=data,data_file_raw=on",
        "data_file=data,extended_l2=on",
    ]
    .into_iter()
    .zip(1..)
    {
        let size = LEN.to_string();
        create(dir, options, &["image", &size]);
        let args = ["convert", "-n", "-f", "raw", "-O", "qcow2", "source.raw", "image"];
        qemu_img(dir, &args);
        write_to(dir, "image", &["--follow-names"], seed);
        if options.contains("raw=on") {
            let data = std::fs::read(dir.join("data")).expect("read");
            assert!(data[..LEN] == expected(dir, "image"), "the data file is the disk");
        }
    }
}

#[test]
fn direct_writes_reach_the_image() {
    let Some(dir) = directory() else { return };
    let dir = dir.path();
    raw(dir, "source.raw", 4 << 20);
    for (options, seed) in ["cluster_size=4k", "cluster_size=64k", "extended_l2=on"]
        .into_iter()
        .zip(1..)
    {
        convert(dir, options, &[]);
        write_to(dir, "image", &["--direct"], seed);
    }
}

#[test]
fn full_file_systems_leak_no_clusters() {
    let Some(_tools) = directory() else { return };
    let Some(disk) = SmallDisk::mount(8 << 20) else {
        return;
    };
    let path = disk.image();
    let (dir, image) = (path.parent().expect("a directory"), "disk.img");
    create(dir, "cluster_size=512", &[image, "64M"]);
    let (mut daemon, mut frontend) = serve_writable(dir, image, &["--werror", "report"]);
    disk.fill(256 << 10);
    let mut failures = 0;
    // Each write needs a table of its own.
    for number in 0..2048_u64 {
        let write = Op::Write {
            offset: number * (32 << 10),
            data: vec![1; 512],
        };
        failures += u32::from(frontend.queue(0).run(&write).ret != 0);
    }
    assert!(failures > 0, "the file system is not full");
    drop(frontend);
    daemon.terminate();
    check_clean(dir, image);
}

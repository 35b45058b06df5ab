//! Images of random kinds, each with a raw twin that gets the same requests.
//!
//! A kind combines a version, sizes of clusters and refcounts, subclusters, compression, backing files, internal
//! snapshots, a data file, preallocation and an odd size. `QCOW2_KINDS` is the number of kinds, 16 by default.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use testkit::random::Random;

use super::support::{create, directory_in_memory, qemu_img, qemu_io, raw};
use super::twin::{Requests, compare};

/// A kind of images.
#[derive(Clone, Copy, Debug)]
struct Kind {
    version: usize,
    cluster: usize,
    refcount_bits: u32,
    subclusters: bool,
    /// The type of compressed clusters.
    compression: Option<&'static str>,
    /// Number of backing files below each other.
    depth: usize,
    snapshots: usize,
    data_file: DataFile,
    preallocation: &'static str,
    lazy_refcounts: bool,
    size: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum DataFile {
    None,
    Plain,
    Raw,
}

impl Kind {
    /// Chooses a kind that qemu-img can make.
    fn random(random: &mut Random) -> Self {
        let version = 2 + random.below(4).min(1);
        let is_new = version == 3;
        let subclusters = is_new && random.below(3) == 0;
        let least = if subclusters { 14 } else { 9 };
        let cluster = 1 << (least + random.below(22 - least));
        let data_file = match random.below(6) {
            0 if is_new => DataFile::Plain,
            1 if is_new => DataFile::Raw,
            _ => DataFile::None,
        };
        let has_data = data_file != DataFile::None;
        let depth = match (data_file, random.below(5)) {
            (DataFile::Raw, _) => 0,
            (_, 0 | 1) => 0,
            (_, 2) => 1,
            (_, 3) => 2 + random.below(3),
            _ => 16,
        };
        let snapshots = if has_data { 0 } else { random.below(3) };
        Self {
            version,
            cluster,
            refcount_bits: match is_new {
                true => 1 << (if snapshots > 0 { 3 } else { 0 } + random.below(4)),
                false => 16,
            },
            subclusters,
            compression: match random.below(3) {
                _ if has_data => None,
                0 => None,
                1 if is_new => Some("zstd"),
                _ => Some("zlib"),
            },
            depth,
            snapshots,
            data_file,
            preallocation: match random.below(6) {
                _ if depth > 0 => "off",
                0 => "metadata",
                1 => "falloc",
                2 => "full",
                _ => "off",
            },
            lazy_refcounts: is_new && random.below(2) == 0,
            // No multiple of a cluster.
            size: ((2 << 20) + random.below(4 << 20)) / 512 * 512 + 512 - (random.below(2) * 512),
        }
    }

    fn options(&self) -> String {
        let compat = if self.version == 2 { "0.10" } else { "1.1" };
        let (cluster, preallocation) = (self.cluster, self.preallocation);
        let mut options = format!("compat={compat},cluster_size={cluster},preallocation={preallocation}");
        let mut add = |option: &str, value: &str| {
            write!(options, ",{option}={value}").expect("a string grows");
        };
        if self.version == 3 {
            add("refcount_bits", &self.refcount_bits.to_string());
        }
        if let Some(compression) = self.compression.filter(|_| self.version == 3) {
            add("compression_type", compression);
        }
        for (option, is_on) in [
            ("extended_l2", self.subclusters),
            ("lazy_refcounts", self.lazy_refcounts),
            ("data_file_raw", self.data_file == DataFile::Raw),
        ] {
            if is_on {
                add(option, "on");
            }
        }
        if self.data_file != DataFile::None {
            add("data_file", "data");
        }
        options
    }

    /// Makes an image of this kind, with some data.
    fn make(&self, dir: &Path, random: &mut Random) {
        let (options, size) = (self.options(), self.size.to_string());
        let below = make_layers(dir, self.depth, self.size, random);
        let backing = below
            .as_ref()
            .map(|(name, format)| ["-b", name.as_str(), "-F", *format]);
        let backing = backing.as_ref().map_or(&[][..], |args| &args[..]);
        create(dir, &options, &[backing, &["image", &size]].concat());
        fill(dir, "image", self, true, random);
    }
}

/// Writes data and zeroes to some places of an image. `compresses`: one of its clusters may be compressed.
fn fill(dir: &Path, image: &str, kind: &Kind, compresses: bool, random: &mut Random) {
    let compresses = compresses && kind.compression.is_some() && kind.preallocation == "off";
    let mut commands = Vec::new();
    for number in 0..8 {
        let len = (1 + random.below(1000)) * 512;
        let at = random.below((kind.size - len) / 512) * 512;
        let byte = 1 + random.below(255);
        commands.push(match number {
            // The first one, because it needs a cluster that is not allocated.
            0 if compresses => {
                let at = random.below(kind.size / kind.cluster) * kind.cluster;
                format!("write -c -P {byte} {at} {}", kind.cluster)
            }
            0 | 1 => format!("write -z {at} {len}"),
            _ => format!("write -P {byte} {at} {len}"),
        });
    }
    let commands: Vec<&str> = commands.iter().map(String::as_str).collect();
    qemu_io(dir, image, &commands);
}

/// Makes backing files below each other. Returns the name and the format of the highest one.
fn make_layers(dir: &Path, depth: usize, size: usize, random: &mut Random) -> Option<(String, &'static str)> {
    let mut below: Option<(String, &str)> = None;
    for number in 0..depth {
        let name = format!("layer{number}");
        // Some are shorter than the image, and some longer.
        let sectors = (size / 512 * (3 + random.below(3))).div_ceil(4);
        if number == 0 && random.below(2) == 0 {
            raw(dir, &name, sectors * 512);
            below = Some((name, "raw"));
            continue;
        }
        let kind = Kind {
            depth: 0,
            data_file: DataFile::None,
            preallocation: "off",
            size: sectors * 512,
            ..Kind::random(random)
        };
        let (options, size) = (kind.options(), kind.size.to_string());
        let mut args = Vec::new();
        if let Some((name, format)) = &below {
            args.extend(["-b", name, "-F", format]);
        }
        args.extend([name.as_str(), &size]);
        create(dir, &options, &args);
        fill(dir, &name, &kind, kind.size >= kind.cluster, random);
        below = Some((name, "qcow2"));
    }
    below
}

/// Returns what a snapshot of the image has.
fn snapshot(dir: &Path, name: &str) -> Vec<u8> {
    let args = ["convert", "-f", "qcow2", "-O", "raw", "-l", name];
    qemu_img(dir, &[&args[..], &["image", "snapshot"]].concat());
    fs::read(dir.join("snapshot")).expect("read the snapshot")
}

fn try_kind(dir: &Path, seed: u64) {
    let mut random = Random::new(seed);
    let kind = Kind::random(&mut random);
    eprintln!("kind {seed}: {kind:?}");
    kind.make(dir, &mut random);
    let names: Vec<String> = (0..kind.snapshots).map(|number| format!("s{number}")).collect();
    for name in &names {
        qemu_img(dir, &["snapshot", "-c", name, "image"]);
        fill(dir, "image", &kind, false, &mut random);
    }
    let requests = Requests {
        cluster: kind.cluster,
        // Version 2 cannot hide a part of its backing file, so discards change nothing.
        discards: kind.version == 3 || kind.depth == 0,
        // Snapshots of other sizes cannot be read by name.
        resizes: names.is_empty(),
    };
    let before: Vec<_> = names.iter().map(|name| snapshot(dir, name)).collect();
    compare(dir, ",follow-names=on", kind.size, requests, seed);
    let after: Vec<_> = names.iter().map(|name| snapshot(dir, name)).collect();
    assert!(before == after, "a snapshot has changed");
}

#[test]
fn images_of_random_kinds_are_equal_to_raw_twins() {
    let Some(dir) = directory_in_memory() else { return };
    let kinds = std::env::var("QCOW2_KINDS").ok();
    let kinds = kinds.map_or(16, |kinds| kinds.parse().expect("a number of kinds"));
    for seed in 1..=kinds {
        let dir = tempfile::tempdir_in(dir.path()).expect("make a directory");
        try_kind(dir.path(), seed);
    }
}

//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, Subcommand, ValueEnum};

use crate::contention::Contention;
use crate::shape::Shape;
use crate::units;

/// Compares vhost-user block backends side by side: throughput, latency, notifications, CPU.
///
/// Starts each backend and drives it as a native vhost-user frontend, without a virtual machine. Every round runs
/// all candidates one after the other, so that a noisy machine disturbs all of them alike.
#[derive(Parser, Debug)]
#[command(version, about, max_term_width = 100, args_conflicts_with_subcommands = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) action: Option<Action>,

    /// A predefined set of backends and shapes; other options override parts of it [default: quick]
    #[arg(long, value_enum)]
    pub(crate) preset: Option<Preset>,

    /// A candidate; may be repeated [default: from the preset]
    ///
    /// The first one is the reference of all ratios.
    ///
    /// `ours[:OPTIONS]` is the vhost-user-blk next to this program, e.g. `ours:--notify each`;
    /// `qsd[:AIO]` is qemu-storage-daemon with aio=threads, native or io_uring;
    /// `plain[:each]` is a minimal backend on the vhost-user-backend framework, with one notification per
    /// batch or per completion; `ours-nbd[:OPTIONS]` and `qsd-nbd` are clients of a qemu-nbd that has the image,
    /// `ours-nbd-tls` and `qsd-nbd-tls` of one with TLS, `ours-rbd` and `qsd-rbd` of a Ceph cluster in memory;
    /// `fio-rbd` is fio's own client of that cluster, without virtio;
    /// `ours-raw[:OPTIONS]` serves the raw image that a qcow2 image was made of;
    /// `NAME=COMMAND` is any other backend: {socket}, {image} and {queues} in the command are filled in, and {disks}
    /// with the options of qemu-storage-daemon for all disks.
    #[arg(long = "backend", value_name = "SPEC")]
    pub(crate) backends: Vec<String>,

    /// The vhost-user-blk that `ours` runs [default: the one next to this program]
    #[arg(long, value_name = "PATH")]
    pub(crate) binary: Option<PathBuf>,

    /// Queues x iodepth of each queue, e.g. 8x64, or queues x iodepth x disks, e.g. 1x8x16; several are separated
    /// by commas [default: from the preset]
    ///
    /// Each disk has its own backend process, except with --one-process.
    #[arg(long = "shape", value_name = "QxD[xN]", value_delimiter = ',')]
    pub(crate) shapes: Vec<Shape>,

    /// One backend process serves all disks of a shape, with one IOThread; `ours`, `qsd` and commands with {disks} only
    #[arg(long)]
    pub(crate) one_process: bool,

    /// Storage of the image; several kinds are separated by commas [default: from the preset]
    #[arg(long, value_enum, value_delimiter = ',')]
    pub(crate) storage: Vec<StorageKind>,

    /// Access pattern [default: randread; the preset qcow2 has several]
    #[arg(long, value_enum)]
    pub(crate) rw: Option<Pattern>,

    /// Size of each request (k, M and G are powers of 1024)
    #[arg(long, value_parser = units::bytes, default_value = "4k", value_name = "BYTES")]
    pub(crate) block_size: u64,

    /// Size of the image, except with `qcow2-new`
    #[arg(long, value_parser = units::bytes, default_value = "256M", value_name = "BYTES")]
    pub(crate) image_size: u64,

    /// Size of each write that fills the image before the measurement, up to 1M
    ///
    /// A file system may keep a file in the page cache in pieces of this size. On ext4, a small write into a large
    /// piece costs more.
    #[arg(long, value_parser = units::bytes, default_value = "1M", value_name = "BYTES")]
    pub(crate) fill_size: u64,

    /// Directory for the images of `page-cache` and `direct` [default: the temporary directory]
    #[arg(long, value_name = "DIR")]
    pub(crate) dir: Option<PathBuf>,

    /// Length of each measurement, in seconds [default: from the preset]
    #[arg(long, value_parser = units::seconds, value_name = "SECONDS")]
    pub(crate) runtime: Option<Duration>,

    /// Length of the load before each measurement, in seconds
    #[arg(long, value_parser = units::seconds, default_value = "0.3", value_name = "SECONDS")]
    pub(crate) warmup: Duration,

    /// Number of rounds; each candidate runs once per round [default: from the preset]
    ///
    /// A 95 % interval needs at least 5 rounds. Below that, the report shows the lowest and the highest ratio of a
    /// round.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) rounds: Option<u32>,

    /// Threads that drive the queues [default: half the CPUs, at most one per queue]
    ///
    /// With few CPUs, a thread per queue only adds context switches: one thread keeps up with millions of completions
    /// a second and leaves the other CPUs to the backend.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
    pub(crate) driver_threads: Option<u16>,

    /// The way a driving thread waits: it sleeps on the call eventfd, like a guest that takes interrupts, or it spins
    /// on the used rings
    #[arg(long, value_enum, default_value_t = Wait::Sleep)]
    pub(crate) wait: Wait,

    /// Competition for the CPUs; several kinds are separated by commas [default: from the preset]
    #[arg(long, value_enum, value_delimiter = ',')]
    pub(crate) contention: Vec<Contention>,

    /// Do not negotiate EVENT_IDX
    #[arg(long)]
    pub(crate) no_event_idx: bool,

    /// Switch notifications off while taking completions, as Linux's driver does
    #[arg(long)]
    pub(crate) suppress: bool,

    /// Also measure the same files without virtio, with pread/pwrite in threads and with io_uring, and show which
    /// share of that limit each backend reaches
    #[arg(long)]
    pub(crate) limit: bool,

    /// Write report.json and report.html to this directory
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,

    /// Serves an image with the plain backend: SOCKET IMAGE QUEUES \[each\]
    #[arg(long, hide = true, num_args = 3..=4, value_name = "ARGS", exclusive = true)]
    pub(crate) plain: Vec<String>,

    /// Watches the directories on the command line and removes them when standard input closes
    #[arg(long, hide = true, num_args = 1.., value_name = "DIR", exclusive = true)]
    pub(crate) janitor: Vec<PathBuf>,
}

#[derive(Subcommand, Debug)]
pub(crate) enum Action {
    /// Compares two reports row by row; fails if a row became slower beyond doubt
    Compare {
        /// The earlier report.json
        old: PathBuf,
        /// The later report.json
        new: PathBuf,
    },
    /// Measures what many disks in one process cost: the start, memory, threads, idle CPU time, and the speed of the
    /// same number of requests in flight on one disk and on many
    Disks(DisksArgs),
    /// Adds and removes a disk over QMP, again and again, while another disk of the process works: what that does to
    /// the other disk's latency, and what leaks
    Hot(HotArgs),
    /// Measures the latency of a disk while something hostile or slow happens on another disk of its process
    Neighbours(NeighboursArgs),
    /// Measures throttle groups: the rates that limits give, the shares of two disks of a group, bursts, and changes at
    /// run time
    Throttle(ThrottleArgs),
    /// Makes a report from samples measured elsewhere, or from a report.json
    Render {
        /// JSON with `schema`, `samples` and, if known, `started`, `machine`, `command`, `backends` and `notes`
        samples: PathBuf,

        /// Write report.json and report.html to this directory
        #[arg(long, value_name = "DIR")]
        out: Option<PathBuf>,
    },
}

/// Options of `disks`.
#[derive(clap::Args, Debug)]
pub(crate) struct DisksArgs {
    /// Number of disks, and of requests in flight
    #[arg(long, default_value_t = 64, value_name = "N", value_parser = clap::value_parser!(u16).range(2..=256))]
    pub(crate) disks: u16,

    /// A candidate: `ours[:OPTIONS]`, `qsd[:AIO]` or `NAME=COMMAND` with {disks}; may be repeated [default: ours, qsd]
    #[arg(long = "backend", value_name = "SPEC")]
    pub(crate) backends: Vec<String>,

    /// The vhost-user-blk that `ours` runs [default: the one next to this program]
    #[arg(long, value_name = "PATH")]
    pub(crate) binary: Option<PathBuf>,

    /// Storage of the images; several kinds are separated by commas
    #[arg(long, value_enum, value_delimiter = ',', default_values = ["null", "tmpfs"])]
    pub(crate) storage: Vec<StorageKind>,

    /// Size of all images together, at least 1M each
    #[arg(long, value_parser = units::bytes, default_value = "256M", value_name = "BYTES")]
    pub(crate) image_size: u64,

    /// Directory for the images of `page-cache` and `direct` [default: the temporary directory]
    #[arg(long, value_name = "DIR")]
    pub(crate) dir: Option<PathBuf>,

    /// Number of rounds
    #[arg(long, default_value_t = 5, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) rounds: u32,

    /// Length of each measurement, in seconds
    #[arg(long, value_parser = units::seconds, default_value = "0.5", value_name = "SECONDS")]
    pub(crate) runtime: Duration,

    /// Length of the load before each measurement, in seconds
    #[arg(long, value_parser = units::seconds, default_value = "0.3", value_name = "SECONDS")]
    pub(crate) warmup: Duration,

    /// Time to watch the idle process, in seconds; in the first round only
    #[arg(long, default_value_t = 10, value_name = "SECONDS")]
    pub(crate) idle: u64,
}

/// The backends to compare, and a place for their files.
#[derive(clap::Args, Debug)]
pub(crate) struct Rivals {
    /// A candidate, `ours[:OPTIONS]` or `qsd`; may be repeated [default: ours, qsd]
    #[arg(long = "backend", value_name = "SPEC")]
    pub(crate) backends: Vec<String>,

    /// The vhost-user-blk that `ours` runs [default: the one next to this program]
    #[arg(long, value_name = "PATH")]
    pub(crate) binary: Option<PathBuf>,

    /// Directory for temporary files [default: the temporary directory]
    #[arg(long, value_name = "DIR")]
    pub(crate) dir: Option<PathBuf>,
}

/// Options of `hot`.
#[derive(clap::Args, Debug)]
pub(crate) struct HotArgs {
    /// Number of times that a disk is added and removed
    #[arg(long, default_value_t = 1000, value_name = "N", value_parser = clap::value_parser!(u32).range(25..))]
    pub(crate) rounds: u32,

    /// Requests in flight on the disk beside
    #[arg(long, default_value_t = 4, value_name = "N")]
    pub(crate) depth: usize,

    /// Number of requests to the added disk, before it is removed; with 0 a frontend only connects
    #[arg(long, default_value_t = 64, value_name = "N")]
    pub(crate) requests: u32,

    /// Give one CPU to the disk beside and to the IOThread, and the others to everything else
    ///
    /// Without it, the work of adding and removing takes CPU time from the load, wherever it is done.
    #[arg(long)]
    pub(crate) apart: bool,

    #[command(flatten)]
    pub(crate) rivals: Rivals,
}

/// Options of `neighbours`.
#[derive(clap::Args, Debug)]
pub(crate) struct NeighboursArgs {
    /// Length of each segment, in seconds
    #[arg(long, value_parser = units::seconds, default_value = "0.5", value_name = "SECONDS")]
    pub(crate) runtime: Duration,

    /// Number of rounds, with three segments each
    #[arg(long, default_value_t = 7, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) rounds: u32,

    /// Measure only noises with this text in their name
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub(crate) only: String,

    #[command(flatten)]
    pub(crate) rivals: Rivals,
}

/// Options of `throttle`.
#[derive(clap::Args, Debug)]
pub(crate) struct ThrottleArgs {
    /// Length of each measurement, in seconds
    #[arg(long, value_parser = units::seconds, default_value = "10", value_name = "SECONDS")]
    pub(crate) runtime: Duration,

    /// Number of rounds
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) rounds: u32,

    /// Measure only rows with this text in their name
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub(crate) only: String,

    #[command(flatten)]
    pub(crate) rivals: Rivals,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Preset {
    /// ours (batch, each) and qsd at 1x1, 1x64, 8x64 in tmpfs; under a minute
    Quick,
    /// batch against each at 8x64 and 1x1, with and without EVENT_IDX, 15 rounds: the gain from deferred
    /// notification
    Headline,
    /// ours, qsd with each of its engines, and the plain backend, at 1x1, 1x64, 8x64; tmpfs, page cache and O_DIRECT
    Peers,
    /// ours with each of its engines, at 1x1, 1x64, 8x64, page cache and O_DIRECT
    Engines,
    /// ours and qsd as clients of a qemu-nbd of their own, at 1x1, 1x64, 8x64 in tmpfs
    Nbd,
    /// the same with encrypted connections
    NbdTls,
    /// ours and qsd on an image in a Ceph cluster that this program starts, at 1x1, 1x32, 8x32
    Rbd,
    /// ours and qsd on qcow2 images in memory: random reads and writes of allocated clusters, and writes that allocate
    /// clusters; and ours on a raw image
    Qcow2,
    /// ours with and without polling, and qsd, at 1x1, 1x64, 8x64 with each kind of contention; null, tmpfs, page cache
    /// and O_DIRECT
    Contended,
    /// 1 to 16 queues, iodepth 1 to 256, 1 to 64 disks: the cost of an I/O should not grow with them
    Scaling,
    /// The same 64 requests in flight on 1, 16 and 64 queues, with one IOThread and with four; tmpfs and page cache
    Queues,
    /// ours with and without polling, qsd with io_uring and native, and the host without virtio, at 1x1, 1x64, 8x64 with
    /// O_DIRECT
    Direct,
    /// ours, qsd and the host without virtio: random writes through the page cache at 1x1, 1x64, 8x64. --fill-size 4k
    /// and 1M differ on ext4
    Writes,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum StorageKind {
    /// A file in /dev/shm
    Tmpfs,
    /// A file in the page cache
    PageCache,
    /// The same file, opened with O_DIRECT
    Direct,
    /// No file: the backend answers at once, which leaves only the cost of virtio
    Null,
    /// A qcow2 image in /dev/shm whose clusters are all allocated
    Qcow2,
    /// An empty qcow2 image of 128 GiB in /dev/shm with clusters of 64 KiB, made anew for each run
    Qcow2New,
}

impl StorageKind {
    /// Returns whether the image is a file under `--dir`.
    pub(crate) fn is_on_disk(self) -> bool {
        matches!(self, Self::PageCache | Self::Direct)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Pattern {
    Read,
    Write,
    Randread,
    Randwrite,
}

impl Pattern {
    pub(crate) fn is_write(self) -> bool {
        matches!(self, Self::Write | Self::Randwrite)
    }

    pub(crate) fn is_random(self) -> bool {
        matches!(self, Self::Randread | Self::Randwrite)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Wait {
    Sleep,
    Spin,
}

//! The options, and their values.

use std::path::PathBuf;

use clap::Parser;
use clap::builder::{NonEmptyStringValueParser, OsStringValueParser, TypedValueParser};

use super::advice::Form;
use super::choices::{Aio, ImageFormat, LogFormat, LogLevel, Notify, OnOff, SandboxMode};
use super::config::place::Place;
use super::mapping::IoThreadMap;
use super::metrics::parse_metrics;
use super::monitor::{Chardev, Monitor, parse_chardev, parse_monitor};
use super::values::{
    Serial, number, parse_block_size, parse_directory, parse_fd, parse_mode, parse_queue_size, parse_serial,
    parse_size, parse_socket_path,
};
use crate::blk::error_policy::{ReadErrors, WriteErrors};
use crate::daemon::{FailPoint, MetricsAddress, Operation};
use crate::engine::FaultRule;

/// Longest latency of a null disk: a minute.
const MAX_LATENCY_NS: u64 = 60_000_000_000;

/// Serve a disk image to a virtual machine over a vhost-user socket.
///
/// QEMU attaches to the socket with
/// `-chardev socket,id=c,path=SOCKET -device vhost-user-blk-pci,chardev=c` and shared guest memory
/// (`-object memory-backend-memfd,id=m,size=1G,share=on -machine memory-backend=m`).
#[derive(Clone, Debug, Parser)]
#[command(
    version,
    max_term_width = 100,
    override_usage = "vhost-user-blk --socket-path PATH --blk-file IMAGE [OPTION]..."
)]
pub struct Cli {
    /// Unix socket to listen on. A stale socket at this path is replaced.
    #[arg(long, value_name = "PATH", conflicts_with = "fd",
          value_parser = OsStringValueParser::new().try_map(|path| parse_socket_path(&path)))]
    pub socket_path: Option<PathBuf>,

    /// File descriptor of a Unix socket that is listening, or connected to a frontend. Without --socket-path and --fd,
    /// the socket passed by systemd is used (LISTEN_FDS).
    #[arg(long, value_name = "FD", conflicts_with_all = ["socket_mode", "socket_group"], allow_negative_numbers = true,
          value_parser = parse_fd)]
    pub fd: Option<i32>,

    /// Permissions of the socket's file in octal, which control who may connect [default: 0600].
    #[arg(long, value_name = "MODE", allow_negative_numbers = true, value_parser = parse_mode)]
    pub socket_mode: Option<u32>,

    /// Group of the socket's file, as a name or a number [default: the group of the process].
    #[arg(long, value_name = "GROUP", value_parser = NonEmptyStringValueParser::new())]
    pub socket_group: Option<String>,

    /// Disk image: a file or a block device, or an export of an NBD server as nbd://HOST:PORT/EXPORT or
    /// nbd+unix:///EXPORT?socket=PATH, or a Ceph RBD image as
    /// rbd:POOL/IMAGE or rbd:POOL/IMAGE:id=USER:conf=PATH. Its size must be a multiple of 512 bytes.
    #[arg(long, value_name = "PATH")]
    pub blk_file: Option<PathBuf>,

    /// Format of the image. Without this option, an image that looks like qcow2, VMDK, VDI, VHDX or a similar format is
    /// refused; with `raw`, the image is not probed.
    #[arg(long, value_name = "FORMAT", value_enum, conflicts_with = "null")]
    pub format: Option<ImageFormat>,

    /// Open the backing files and the data file that a qcow2 image names. Only for images that are trusted: the names may
    /// be those of any files.
    #[arg(long)]
    pub follow_names: bool,

    /// Serve a disk of SIZE bytes that stores nothing, for benchmarks (suffixes K, M, G and T are powers of 1024).
    #[arg(long, value_name = "SIZE", value_parser = parse_size, allow_negative_numbers = true,
          conflicts_with_all = ["blk_file", "read_only", "direct", "logical_block_size"])]
    pub null: Option<u64>,

    /// Complete each request of a null disk after NS nanoseconds, from a timer [default: at once].
    #[arg(long, value_name = "NS", requires = "null", conflicts_with = "blk_file",
          value_parser = clap::value_parser!(u64).range(..=MAX_LATENCY_NS))]
    pub null_latency_ns: Option<u64>,

    /// Refuse to write to the image.
    #[arg(long)]
    pub read_only: bool,

    /// Serve the destination of a live migration: leave the image to the source until the guest runs here.
    #[arg(long)]
    pub incoming: bool,

    /// Print the capabilities of this backend as JSON (vhost-user backend program conventions), and exit.
    #[arg(long)]
    pub print_capabilities: bool,

    /// Serial number that the guest sees, at most 20 bytes.
    #[arg(long, value_name = "ID", default_value = "", value_parser = parse_serial)]
    pub serial: Serial,

    /// Logical block size in bytes, a power of two from 512 to 32768 [default: 512, or what the storage and --direct
    /// require].
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = parse_block_size)]
    pub logical_block_size: Option<u32>,

    /// Read the long form's options from this file, as TOML or JSON (docs/config.md). Options given here come after those of
    /// the file.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Make an object, as qemu-storage-daemon does: iothread, throttle-group, secret or tls-creds-x509, with an id and
    /// properties, e.g. iothread,id=io0. Can be repeated, like --blockdev and --export. All are processed in their order.
    #[arg(long, value_name = "TYPE,id=ID[,PROPERTY=VALUE]...")]
    pub object: Vec<String>,

    /// Make a block node, as qemu-storage-daemon does, e.g. file,node-name=disk0,filename=disk.img,cache.direct=on.
    /// Drivers: file, host_device, raw, null-co, null-aio, throttle, nbd, rbd, qcow2.
    #[arg(long, value_name = "DRIVER,node-name=NAME[,OPTION=VALUE]...")]
    pub blockdev: Vec<String>,

    /// Serve a node as a disk, as qemu-storage-daemon does, e.g.
    /// vhost-user-blk,id=e0,node-name=disk0,addr.type=unix,addr.path=disk0.sock,writable=on,num-queues=4,iothread=io0.
    #[arg(
        long,
        value_name = "vhost-user-blk,id=ID,node-name=NAME,addr.type=TYPE[,OPTION=VALUE]..."
    )]
    pub export: Vec<String>,

    /// Always refused, with an error that names the option.
    #[arg(long, short = 'T', hide = true, value_parser = absent("this daemon has no trace points: use --log-level"))]
    pub trace: Option<String>,

    /// Always refused, with an error that names the option.
    #[arg(long, hide = true, value_parser = absent("this daemon serves vhost-user-blk only"))]
    pub nbd_server: Option<String>,

    /// The operations that the configuration file and the options above ask for, in order.
    #[arg(skip)]
    pub(super) operations: Vec<Operation>,

    /// The places in the configuration file of the first operations.
    #[arg(skip)]
    pub(super) places: Vec<Place>,

    /// An option of the short form that was given.
    #[arg(skip)]
    pub(super) short_option: Option<String>,

    /// Number of virtqueues (1 to 256). QEMU's num-queues must not be larger.
    #[arg(long, value_name = "N", default_value_t = 1, allow_negative_numbers = true,
          value_parser = number::<u16>(1..=256))]
    pub num_queues: u16,

    /// Maximum virtqueue size in descriptors, a power of two from 4 to 1024.
    #[arg(long, value_name = "N", default_value_t = 1024, allow_negative_numbers = true,
          value_parser = parse_queue_size)]
    pub queue_size: u16,

    /// Number of IOThreads (1 to 256). Virtqueues are assigned to them round-robin.
    #[arg(long, value_name = "N", default_value_t = 1, allow_negative_numbers = true,
          value_parser = number::<u16>(1..=256))]
    pub iothreads: u16,

    /// Virtqueues that each IOThread serves, e.g. 0:0,1;1:2-3 for two IOThreads and four queues.
    #[arg(long, value_name = "MAP")]
    pub iothread_vq_mapping: Option<IoThreadMap>,

    /// Host CPUs that an IOThread and its workers run on, e.g. 0:2;1:3-5.
    #[arg(long, value_name = "MAP")]
    pub iothread_cpus: Option<IoThreadMap>,

    /// Method for executing disk I/O.
    #[arg(long, value_name = "ENGINE", value_enum, default_value_t = Aio::Auto)]
    pub aio: Aio,

    /// Map an image on tmpfs, and read and write it without system calls.
    #[arg(long, value_name = "on|off", value_enum, default_value_t = OnOff::On, hide_possible_values = true)]
    pub mmap: OnOff,

    /// Merge adjacent requests of a batch.
    #[arg(long, value_name = "on|off", value_enum, default_value_t = OnOff::On, hide_possible_values = true)]
    pub request_merging: OnOff,

    /// Bypass the host's page cache (O_DIRECT).
    #[arg(long)]
    pub direct: bool,

    /// Register the guest's memory with io_uring, which saves CPU time for each request. All of it is locked, and counts
    /// against `ulimit -l`. The guest must not give memory back (docs/engines.md).
    #[arg(long)]
    pub register_memory: bool,

    /// Minimum number of threads that each IOThread's pool keeps, even if idle.
    #[arg(long, value_name = "N", default_value_t = 0, allow_negative_numbers = true,
          value_parser = number::<u16>(0..=1024))]
    pub thread_pool_min: u16,

    /// Maximum number of threads in each IOThread's pool (1 to 1024).
    #[arg(long, value_name = "N", default_value_t = 64, allow_negative_numbers = true,
          value_parser = number::<u16>(1..=1024))]
    pub thread_pool_max: u16,

    /// Maximum time in nanoseconds that an IOThread polls before it sleeps; 0 disables polling.
    #[arg(long, value_name = "NS", default_value_t = 32768, allow_negative_numbers = true,
          value_parser = number::<u64>(0..=1_000_000_000))]
    pub poll_max_ns: u64,

    /// Notify the guest once per batch of completions, or (for comparison) after each one, even if its driver did not
    /// ask for it.
    #[arg(long, value_name = "WHEN", value_enum, default_value_t = Notify::Batch)]
    pub notify: Notify,

    /// Action when a read fails.
    #[arg(long, value_name = "POLICY", value_enum, default_value_t = ReadErrors::default())]
    pub rerror: ReadErrors,

    /// Action when a write, flush, discard or write-zeroes fails.
    #[arg(long, value_name = "POLICY", value_enum, default_value_t = WriteErrors::default())]
    pub werror: WriteErrors,

    /// Report requests that the disk has not completed after this many seconds; 0 disables reports.
    #[arg(long, value_name = "SECONDS", default_value_t = 0, allow_negative_numbers = true,
          value_parser = number::<u64>(0..=86_400))]
    pub io_timeout: u64,

    /// For tests: make requests fail on purpose, e.g. read:eio:sector=2048-4095 (see docs/trouble.md). Can be repeated.
    #[arg(long, value_name = "RULE")]
    pub inject: Vec<FaultRule>,

    /// Confine the process before it serves a frontend: system calls (seccomp), files (Landlock), capabilities.
    #[arg(long, value_name = "WHEN", value_enum, default_value_t = SandboxMode::Auto)]
    pub sandbox: SandboxMode,

    /// Directory in which the sandbox leaves names to disks that QMP clients add: images are opened and sockets are made
    /// beneath it by a small process of its own (docs/security.md). Can be repeated.
    #[arg(long, value_name = "DIR", value_parser = OsStringValueParser::new().try_map(parse_directory))]
    pub sandbox_path: Vec<PathBuf>,

    /// User to switch to, and the only group to keep, once the image and the socket are open, as names or numbers
    /// [default group: the user's].
    #[arg(long, value_name = "USER[:GROUP]", value_parser = NonEmptyStringValueParser::new())]
    pub user: Option<String>,

    /// Print statistics to stderr on exit (SIGUSR1 prints them at any time).
    #[arg(long)]
    pub stats: bool,

    /// Unix socket for QMP clients, as for qemu-storage-daemon; used with --monitor.
    #[arg(long, value_name = "socket,id=ID,path=PATH,server=on,wait=off", value_parser = parse_chardev)]
    pub chardev: Vec<Chardev>,

    /// Let QMP clients connect to this --chardev and manage the process (docs/qmp.md).
    #[arg(long, value_name = "chardev=ID", value_parser = parse_monitor)]
    pub monitor: Vec<Monitor>,

    /// Address at which metrics can be read over HTTP, in OpenMetrics format (docs/metrics.md), e.g. 127.0.0.1:9108. Can
    /// be repeated.
    #[arg(long, value_name = "ADDR:PORT|unix:PATH[,mode=MODE][,group=GROUP]", value_parser = parse_metrics)]
    pub metrics: Vec<MetricsAddress>,

    /// Socket on which a newer version may ask to take over this process's disks while guests run (docs/operations.md).
    /// Only root and the user of this process may.
    #[arg(long, value_name = "PATH",
          value_parser = OsStringValueParser::new().try_map(|path| parse_socket_path(&path)))]
    pub hand_over: Option<PathBuf>,

    /// Take over the disks of the process with this --hand-over socket, and its other sockets, and go on with them in its
    /// place. Options that describe disks make none. A sandboxed process connects only to those NBD servers and Ceph
    /// clusters of the old process that its options name, too.
    #[arg(long, value_name = "PATH",
          value_parser = OsStringValueParser::new().try_map(|path| parse_socket_path(&path)))]
    pub take_over: Option<PathBuf>,

    /// For tests: kill the process at this point of a take-over.
    #[arg(long, value_name = "POINT", hide = true)]
    pub fail_take_over: Option<FailPoint>,

    /// Go to the background once everything is served. The log goes on if stderr is a file.
    #[arg(long)]
    pub daemonize: bool,

    /// File to write the process's number to. It is removed at the end.
    #[arg(long, value_name = "PATH")]
    pub pidfile: Option<PathBuf>,

    /// Level of detail of the log on stderr.
    #[arg(long, value_name = "LEVEL", value_enum, default_value_t = LogLevel::Info)]
    pub log_level: LogLevel,

    /// Form of the lines on stderr: text (with priorities for systemd's journal, if stderr is that), or a JSON object
    /// per line.
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
}

impl Cli {
    /// Returns what the configuration file and the long form's options make, in order.
    pub fn operations(&self) -> &[Operation] {
        &self.operations
    }

    /// Returns the form in which disks are described.
    pub fn form(&self) -> Form {
        match &self.short_option {
            Some(_) if self.operations.is_empty() => Form::Short,
            None if self.operations.is_empty() && self.monitor.is_empty() => Form::Short,
            _ => Form::Long,
        }
    }

    /// Returns the IOThread of each queue.
    ///
    /// # Errors
    /// The map does not match the number of queues or IOThreads.
    pub fn queue_iothreads(&self) -> Result<Vec<u16>, String> {
        match &self.iothread_vq_mapping {
            None => Ok((0..self.num_queues).map(|queue| queue % self.iothreads).collect()),
            Some(map) => map
                .queues(self.num_queues, self.iothreads)
                .map_err(|error| format!("--iothread-vq-mapping: {error}")),
        }
    }

    /// Returns the IOThreads that are pinned, with their CPUs.
    ///
    /// # Errors
    /// The map names an unknown IOThread.
    pub fn cpus(&self) -> Result<&[(u16, Vec<u16>)], String> {
        let checked = self.iothread_cpus.as_ref().map(|map| map.checked(self.iothreads));
        let checked = checked
            .transpose()
            .map_err(|error| format!("--iothread-cpus: {error}"))?;
        Ok(checked.unwrap_or_default())
    }
}

/// Refuses an option of qemu-storage-daemon that this daemon does not have.
fn absent(reason: &'static str) -> impl Fn(&str) -> Result<String, &'static str> + Clone + Send + Sync {
    move |_| Err(reason)
}

/// Formats a command line error in one line, unlike clap.
pub fn one_line(error: &clap::Error) -> String {
    let text = error.to_string();
    let told = text
        .lines()
        .take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more"));
    let words: Vec<&str> = told.flat_map(str::split_whitespace).collect();
    format!("{} (see --help)", words.join(" "))
}

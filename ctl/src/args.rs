//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// The socket of the packaged configuration.
pub(crate) const SOCKET: &str = "/run/vhost-user-blk/qmp.sock";

/// Manage a running vhost-user-blk over its QMP socket.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100)]
pub(crate) struct Cli {
    /// QMP socket of the daemon.
    #[arg(short, long, global = true, value_name = "PATH", default_value = SOCKET, env = "VHOST_USER_BLK_QMP")]
    pub(crate) socket: PathBuf,

    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// List the disks.
    List,
    /// Show a disk: its image, socket, frontend, queues and latencies.
    Show {
        /// Id of the disk's export.
        disk: String,
    },
    /// Serve an image as a new disk.
    Add(Add),
    /// Stop serving a disk, and close its image.
    Remove {
        /// Id of the disk's export.
        disk: String,
        /// Leave requests behind that the disk does not complete within a second.
        #[arg(long)]
        hard: bool,
    },
    /// Change the size of a disk's image file, and tell the guest.
    Resize {
        /// Id of the disk's export.
        disk: String,
        /// The new size in bytes (suffixes K, M, G and T are powers of 1024).
        #[arg(value_parser = parse_size)]
        size: u64,
    },
    /// Show or change the limits of a throttle group.
    Throttle(Throttle),
    /// Print all statistics.
    Stats {
        /// Id of a single disk's export.
        disk: Option<String>,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Show what disks and queues do, live. The key q ends it.
    Top {
        /// Seconds between two looks.
        #[arg(long, value_name = "SECONDS", default_value_t = 1.0, value_parser = parse_interval)]
        interval: f64,
        /// Print one interval as text, and end.
        #[arg(long)]
        once: bool,
    },
    /// Print what happens to a disk: slow requests, errors, frontends. Ends with Ctrl-C.
    Trace {
        /// Id of the disk's export.
        disk: String,
        /// Seconds between two lines with latencies.
        #[arg(long, value_name = "SECONDS", default_value_t = 1.0, value_parser = parse_interval)]
        interval: f64,
        /// Report intervals whose slowest requests took at least this many milliseconds.
        #[arg(long, value_name = "MS", default_value_t = 10.0)]
        slower_than: f64,
        /// End after this many intervals.
        #[arg(long, value_name = "N")]
        count: Option<u64>,
    },
    /// Look for mistakes: this machine, the daemon, its disks and their frontends. Status 1 if there is an error.
    Doctor {
        /// Look at an image that is not served yet instead of the daemon. Can be repeated.
        #[arg(long, value_name = "PATH")]
        image: Vec<PathBuf>,
    },
}

#[derive(Args, Debug)]
pub(crate) struct Add {
    /// Id of the new disk.
    pub(crate) disk: String,
    /// Image: a file or a block device.
    #[arg(long, value_name = "PATH")]
    pub(crate) file: PathBuf,
    /// Format of the image. Without it, the image is raw, and one that looks like another format is refused.
    #[arg(long, value_name = "FORMAT")]
    pub(crate) format: Option<Format>,
    /// Open the backing files and the data file that a qcow2 image names. Only for images that you trust: the names may
    /// be those of any files.
    #[arg(long)]
    pub(crate) follow_names: bool,
    /// Unix socket for the disk's frontend.
    #[arg(long, value_name = "PATH")]
    pub(crate) listen: PathBuf,
    /// Permissions of the socket's file in octal [default: 0600].
    #[arg(long, value_name = "MODE")]
    pub(crate) mode: Option<String>,
    /// Group of the socket's file.
    #[arg(long, value_name = "GROUP")]
    pub(crate) group: Option<String>,
    /// Refuse to write to the image.
    #[arg(long)]
    pub(crate) read_only: bool,
    /// Bypass the host's page cache.
    #[arg(long)]
    pub(crate) direct: bool,
    /// Number of virtqueues.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) num_queues: u16,
    /// IOThread that serves the disk. Can be repeated.
    #[arg(long, value_name = "ID")]
    pub(crate) iothread: Vec<String>,
    /// Throttle group of the disk.
    #[arg(long, value_name = "ID")]
    pub(crate) throttle_group: Option<String>,
}

/// The format of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// The bytes of the image are those of the disk.
    Raw,
    /// The disk is in a qcow2 image.
    Qcow2,
}

#[derive(Args, Debug)]
pub(crate) struct Throttle {
    /// Id of the throttle group (--object throttle-group,id=ID).
    pub(crate) group: String,
    /// Requests per second; 0 is no limit.
    #[arg(long, value_name = "N")]
    pub(crate) iops: Option<u64>,
    /// Bytes per second (suffixes as for sizes); 0 is no limit.
    #[arg(long, value_name = "N", value_parser = parse_size)]
    pub(crate) bps: Option<u64>,
    /// Another limit by QEMU's name, e.g. iops-read=100. Can be repeated.
    #[arg(long, value_name = "NAME=N", value_parser = parse_limit)]
    pub(crate) limit: Vec<(String, u64)>,
}

fn parse_size(text: &str) -> Result<u64, String> {
    let (digits, shift) = match text.char_indices().last() {
        Some((last, 'K' | 'k')) => (&text[..last], 10),
        Some((last, 'M' | 'm')) => (&text[..last], 20),
        Some((last, 'G' | 'g')) => (&text[..last], 30),
        Some((last, 'T' | 't')) => (&text[..last], 40),
        _ => (text, 0),
    };
    let number = digits.parse::<u64>().ok();
    let size = number.and_then(|number| number.checked_mul(1 << shift));
    size.ok_or_else(|| "a number of bytes, with K, M, G or T if you like, e.g. 20G".to_owned())
}

fn parse_interval(text: &str) -> Result<f64, String> {
    let seconds = text.parse::<f64>().ok();
    let seconds = seconds.filter(|seconds| (0.1..=3600.0).contains(seconds));
    seconds.ok_or_else(|| "seconds from 0.1 to 3600".to_owned())
}

fn parse_limit(text: &str) -> Result<(String, u64), String> {
    let parts = text.split_once('=');
    let limit = parts.and_then(|(name, value)| Some((name.to_owned(), parse_size(value).ok()?)));
    limit.ok_or_else(|| "NAME=N, e.g. iops-read=100".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_suffixes() {
        assert_eq!(parse_size("20G"), Ok(20 << 30));
        assert_eq!(parse_size("512"), Ok(512));
        assert_eq!(parse_size("3k"), Ok(3072));
        for bad in ["", "G", "-1", "1.5G", "99999999T", "1GB"] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }
}

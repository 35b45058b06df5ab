//! What the daemon tells about its disks at one moment.

use std::collections::BTreeMap;
use std::time::Instant;

use anyhow::{Result, anyhow};
use serde::{Deserialize, Serialize};

use crate::qmp::Qmp;

/// All disks and IOThreads, ordered by name.
#[derive(Clone, Debug)]
pub(crate) struct Snapshot {
    pub(crate) taken: Instant,
    pub(crate) disks: Vec<Disk>,
    pub(crate) iothreads: Vec<IoThread>,
}

/// A disk with its node and its figures.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Disk {
    pub(crate) id: String,
    pub(crate) node: Node,
    /// The members of `x-export`.
    #[serde(flatten)]
    pub(crate) export: Export,
}

/// The members of `query-blockstats` that are used here.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Stats {
    qdev: String,
    node_name: String,
    x_export: Export,
}

/// The figures of an export.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Export {
    pub(crate) engine: String,
    pub(crate) socket: String,
    pub(crate) frontend: Option<Frontend>,
    pub(crate) queues: Vec<Figures>,
    pub(crate) total: Figures,
}

/// A connected frontend.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Frontend {
    /// Unknown if the process is in another PID namespace.
    pub(crate) pid: Option<u32>,
}

/// The counters of a queue or of a disk, since the disk was added.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct Figures {
    /// The state of the ring, of queues only.
    pub(crate) ring: Option<String>,
    pub(crate) reads: u64,
    pub(crate) writes: u64,
    pub(crate) flushes: u64,
    pub(crate) unmaps: u64,
    pub(crate) read_bytes: u64,
    pub(crate) written_bytes: u64,
    pub(crate) errors: u64,
    pub(crate) ignored: u64,
    pub(crate) in_flight: u64,
    pub(crate) held: u64,
    pub(crate) throttled: u64,
    pub(crate) late: u64,
    pub(crate) broken: u64,
    pub(crate) completions: u64,
    pub(crate) notifications: u64,
    pub(crate) latency: BTreeMap<String, Latency>,
}

/// The latencies of an operation, in nanoseconds.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub(crate) struct Latency {
    pub(crate) count: u64,
    pub(crate) p50: u64,
    pub(crate) p99: u64,
    #[serde(rename = "p99.9")]
    pub(crate) p999: u64,
    pub(crate) max: u64,
    /// The longest latency of each bucket, ascending, and its number of requests.
    pub(crate) bins: Vec<(u64, u64)>,
}

/// A block node.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct Node {
    pub(crate) node_name: String,
    pub(crate) drv: String,
    /// The file, or a description in JSON.
    pub(crate) file: String,
    pub(crate) ro: bool,
    pub(crate) active: bool,
    pub(crate) iops: u64,
    pub(crate) bps: u64,
    pub(crate) image: Image,
    pub(crate) cache: Cache,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct Image {
    /// Bytes.
    pub(crate) virtual_size: u64,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Cache {
    pub(crate) direct: bool,
}

/// An IOThread.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct IoThread {
    pub(crate) id: String,
    #[serde(default)]
    pub(crate) x_figures: ThreadFigures,
}

/// The figures of an IOThread that runs.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct ThreadFigures {
    pub(crate) cpu_ns: u64,
    pub(crate) pool_threads: u64,
    pub(crate) pool_queued_jobs: u64,
    pub(crate) pool_spawn_failures: u64,
}

impl Snapshot {
    /// Asks the daemon.
    pub(crate) fn take(qmp: &mut Qmp) -> Result<Self> {
        let stats: Vec<Stats> = qmp.query("query-blockstats")?;
        let iothreads = qmp.query("query-iothreads")?;
        let taken = Instant::now();
        let nodes: Vec<Node> = qmp.query("query-named-block-nodes")?;
        let disk = |stats: Stats| {
            let node = nodes.iter().find(|node| node.node_name == stats.node_name)?;
            Some(Disk {
                id: stats.qdev,
                node: node.clone(),
                export: stats.x_export,
            })
        };
        Ok(Self {
            taken,
            // A disk that is removed at this moment has no node any more.
            disks: stats.into_iter().filter_map(disk).collect(),
            iothreads,
        })
    }

    /// Returns the disk with this id.
    ///
    /// # Errors
    /// There is none. The error lists those that exist.
    pub(crate) fn disk(&self, id: &str) -> Result<&Disk> {
        self.disks.iter().find(|disk| disk.id == id).ok_or_else(|| {
            let known: Vec<&str> = self.disks.iter().map(|disk| disk.id.as_str()).collect();
            match known.as_slice() {
                [] => anyhow!("there is no disk '{id}', and no other"),
                known => anyhow!("there is no disk '{id}': there are {}", known.join(", ")),
            }
        })
    }
}

impl Disk {
    /// Returns the image, or what else the node serves.
    pub(crate) fn image(&self) -> String {
        let node: Option<serde_json::Value> = self
            .node
            .file
            .strip_prefix("json:")
            .and_then(|text| serde_json::from_str(text).ok());
        let mut part = node.as_ref();
        while let Some(node) = part {
            if let Some(name) = node["filename"].as_str() {
                return name.to_owned();
            }
            part = node.get("file");
        }
        self.node.file.clone()
    }
}

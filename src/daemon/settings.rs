//! What the daemon is asked to serve, and how.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::blk::request::ID_LEN;
use crate::blk::trouble::TroubleParams;
use crate::engine::{Choice, FaultRule, Faults};
use crate::sandbox::Mode;
use crate::storage::OpenOptions;
use crate::thread_pool::ThreadPoolParams;

/// What the daemon is asked to serve, and how.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The socket that frontends connect to.
    pub socket: SocketSource,
    /// Paths of the sockets for QMP clients.
    pub monitors: Vec<PathBuf>,
    /// What the disk's bytes are in.
    pub image: Image,
    /// The image is in use by the source of a live migration, until the first ring starts here.
    pub incoming: bool,
    /// How I/O is executed.
    pub engine: Choice,
    /// Adjacent requests of a batch become one.
    pub merging: bool,
    /// Serial number, padded with NULs.
    pub serial: [u8; ID_LEN],
    /// Largest queue size.
    pub queue_size: u16,
    /// The IOThread of each queue.
    pub queue_iothreads: Vec<u16>,
    /// The guest is notified once per batch, not for each completion.
    pub batch_notifications: bool,
    /// What becomes of requests that the disk cannot execute.
    pub trouble: TroubleParams,
    /// Faults to be injected.
    pub faults: Vec<FaultRule>,
    /// Number of IOThreads.
    pub iothreads: u16,
    /// CPUs of IOThreads that are pinned.
    pub cpus: Vec<(u16, Vec<u16>)>,
    /// Longest time that an IOThread polls.
    pub poll_max: Duration,
    /// Limits of each IOThread's pool.
    pub thread_pool: ThreadPoolParams,
    /// How strictly the process is confined.
    pub sandbox: Mode,
    /// The `USER[:GROUP]` to become.
    pub user: Option<String>,
    /// Print statistics at the end.
    pub print_statistics: bool,
}

/// Where the socket comes from.
#[derive(Clone, Debug)]
pub enum SocketSource {
    /// It is made at this path.
    Path {
        /// Of the socket's file.
        path: PathBuf,
        /// Permission bits of the file, if not the default.
        mode: Option<u32>,
        /// Group of the file, by name or number.
        group: Option<String>,
    },
    /// It was handed over with this number.
    Fd(i32),
    /// It was handed over by a service manager.
    Manager {
        /// Somebody wants to set access rights, which is not possible.
        wants_access: bool,
    },
}

/// What the bytes of a disk are in.
#[derive(Clone, Debug)]
pub enum Image {
    /// A file or a block device.
    File {
        /// How to open it.
        options: OpenOptions,
        /// It is refused if it looks like an image of another format.
        probe: bool,
    },
    /// Nothing.
    Null {
        /// Bytes of the disk.
        size: u64,
        /// Time until a request completes.
        latency: Option<Duration>,
    },
}

impl Settings {
    /// Returns the faults to be injected, if there are any.
    pub(super) fn faults(&self) -> Option<Arc<Faults>> {
        (!self.faults.is_empty()).then(|| Arc::new(Faults::new(&self.faults)))
    }
}

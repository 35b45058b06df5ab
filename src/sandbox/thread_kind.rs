//! The kinds of threads.

use std::fmt;

/// The kinds of threads, by what they handle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ThreadKind {
    /// Signals.
    Main,
    /// The socket and its messages.
    Control,
    /// Rings and requests.
    IoThread,
    /// Blocking calls on the disk.
    Worker,
    /// QMP clients.
    Monitor,
    /// Clients that read metrics.
    Metrics,
    /// Processes that ask to take over.
    HandOver,
    /// Eventfds for which IOThreads wait.
    Watchdog,
    /// As `Main`, in a process whose disks come and go: it also creates threads, with what these need.
    Manager,
    /// Names of images and sockets, in a process of its own: see [`opener`](crate::opener).
    Helper,
    /// Connections to an NBD server, in a process of its own: see [`connector`](crate::connector).
    Connector,
    /// Connections to Ceph clusters: librbd and its threads. See [`ceph`](crate::ceph).
    Ceph,
}

impl ThreadKind {
    /// All kinds.
    pub const ALL: [Self; 12] = [
        Self::Main,
        Self::Control,
        Self::IoThread,
        Self::Worker,
        Self::Monitor,
        Self::Metrics,
        Self::HandOver,
        Self::Watchdog,
        Self::Manager,
        Self::Helper,
        Self::Connector,
        Self::Ceph,
    ];
}

impl fmt::Display for ThreadKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Main => "main",
            Self::Control => "control",
            Self::IoThread => "IOThread",
            Self::Worker => "worker",
            Self::Monitor => "monitor",
            Self::Metrics => "metrics",
            Self::HandOver => "hand-over",
            Self::Watchdog => "watchdog",
            Self::Manager => "manager",
            Self::Helper => "helper",
            Self::Connector => "connector",
            Self::Ceph => "ceph",
        })
    }
}

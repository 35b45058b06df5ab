//! A session that is parked, so that another process can go on with it: what is handed over, and how both processes make
//! and use it.
//!
//! A parked session has no request in flight, and its rings are stopped. The process that parked it can go on with it.

mod park;
mod restore;

use std::io;
use std::os::fd::BorrowedFd;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::{SessionError, execute};
use crate::aio::Gone;
use crate::blk::device::{BlkDevice, TakeError};
use crate::blk::stats::ParkedQueueStats;
use crate::succession::{Bundle, MissingFile};
use crate::vhost_user::error::chain;

/// A disk on its way to another process. Numbers of type `usize` are places in the [`Bundle`].
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) struct ParkedDisk {
    /// The image is taken.
    image: Option<ParkedImage>,
    /// The image was taken, and its lock is released: the new process takes it. Since format 2.
    #[serde(default, skip_serializing_if = "is_false")]
    released: bool,
    /// The disk was made inactive. Since format 2.
    #[serde(default, skip_serializing_if = "is_false")]
    inactive: bool,
    /// Since format 2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    statistics: Option<ParkedStatistics>,
    /// The session, if a frontend is connected.
    pub(in crate::vhost_user) session: Option<ParkedSession>,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct ParkedImage {
    /// The open file that has the lock. `None` if the image needs none, or its file system has none.
    lock: Option<usize>,
    /// The locks of its other files. Since format 2.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    others: Vec<Option<usize>>,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "as serde calls it")]
fn is_false(value: &bool) -> bool {
    !value
}

/// The statistics of a disk.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct ParkedStatistics {
    queues: Vec<ParkedQueueStats>,
    connections: u64,
}

impl ParkedDisk {
    /// Describes a disk, which is [settled](Self::settle). `session` is that of its frontend.
    pub(in crate::vhost_user) fn new(
        device: &BlkDevice,
        released: bool,
        session: Option<ParkedSession>,
        bundle: &mut Bundle,
    ) -> Result<Self> {
        let mut add = |file: Option<BorrowedFd<'_>>| file.map(|file| bundle.add(file)).transpose();
        let locks = device.with_image(|files| files.into_iter().map(&mut add).collect());
        let locks: Option<Vec<Option<usize>>> = locks.transpose()?;
        let image = locks.map(|locks| {
            let mut locks = locks.into_iter();
            ParkedImage {
                lock: locks.next().flatten(),
                others: locks.collect(),
            }
        });
        let queues = device.stats().iter().map(|queue| queue.park());
        let statistics = ParkedStatistics {
            queues: queues.collect(),
            connections: device.state().facts.connections.get(),
        };
        Ok(Self {
            image,
            released,
            inactive: device.handle().is_inactive(),
            statistics: Some(statistics),
            session,
        })
    }

    /// Leaves the image as the new process can take it over. Nothing is in flight. Returns true if the lock is released.
    pub(in crate::vhost_user) fn settle(device: &BlkDevice, deadline: Instant) -> Result<bool> {
        let settled = device.settle(|control, op| {
            let done = control.start(op).map_err(io::Error::other)?;
            let left = deadline.saturating_duration_since(Instant::now());
            done.recv_timeout(left)
                .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
        });
        settled.map_err(ParkError::Settle)
    }

    /// Leaves out what a process with format 1 does not know.
    ///
    /// # Errors
    /// It cannot be left out.
    pub(crate) fn for_format_1(self) -> Result<Self> {
        match self.inactive {
            true => Err(ParkError::Inactive),
            false => Ok(Self {
                statistics: None,
                ..self
            }),
        }
    }

    /// Takes over the image's locks.
    pub(in crate::vhost_user) fn restore_image(&self, device: &BlkDevice, bundle: &mut Bundle) -> Result<()> {
        if self.inactive {
            device.handle().inherit_inactive();
        }
        if self.released {
            device.activate(execute)?;
        }
        let Some(image) = &self.image else { return Ok(()) };
        let mut locks = Vec::new();
        for place in [&image.lock].into_iter().chain(&image.others) {
            locks.push(place.map(|place| bundle.take(place)).transpose()?);
        }
        Ok(device.inherit_image(locks, execute)?)
    }

    /// Goes on counting where the old process has stopped.
    pub(in crate::vhost_user) fn restore_statistics(&self, device: &BlkDevice) {
        let Some(statistics) = &self.statistics else {
            return;
        };
        for (stats, parked) in device.stats().iter().zip(&statistics.queues) {
            stats.restore(parked);
        }
        // The frontend that stays is counted again.
        let again = u64::from(self.session.is_some());
        let connections = statistics.connections.saturating_sub(again);
        device.state().facts.connections.set(connections);
    }
}

/// Locks the image again, because the other process has not taken over.
pub(in crate::vhost_user) fn take_back(device: &BlkDevice) {
    if let Err(error) = device.activate(execute) {
        let (disk, error) = (&device.state().name, chain(&error));
        tracing::error!(
            disk,
            error,
            "cannot lock the image again after a take-over that failed"
        );
    }
}

/// A frontend's session, on its way to another process. Numbers of type `usize` are places in the [`Bundle`].
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) struct ParkedSession {
    /// The connection.
    pub(in crate::vhost_user) connection: usize,
    /// The frontend was told the features.
    pub(in crate::vhost_user) features_offered: bool,
    pub(in crate::vhost_user) features: u64,
    pub(in crate::vhost_user) protocol_features: Option<u64>,
    writeback: bool,
    /// The queues cache writes.
    cached: bool,
    /// Size of the disk as the frontend was told.
    capacity: u64,
    backend_channel: Option<usize>,
    config_changed: bool,
    regions: Vec<ParkedRegion>,
    removed: Vec<(u64, u64)>,
    log: Option<ParkedLog>,
    inflight: Option<ParkedInflight>,
    rings: Vec<ParkedRing>,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct ParkedRegion {
    guest: u64,
    len: u64,
    user: u64,
    file_offset: u64,
    file: usize,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct ParkedLog {
    file: usize,
    offset: u64,
    size: u64,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct ParkedInflight {
    file: usize,
    offset: u64,
    size: u64,
    queues: u16,
    queue_size: u16,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct ParkedRing {
    size: Option<u32>,
    /// Descriptor table, available ring, used ring.
    addresses: Option<[u64; 3]>,
    log: Option<u64>,
    base: u16,
    kick: ParkedKick,
    call: Option<usize>,
    err: Option<usize>,
    enabled: bool,
    failed: bool,
    was_started: bool,
}

#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
enum ParkedKick {
    Unset,
    /// The frontend uses no eventfd.
    Polled,
    Eventfd(usize),
}

/// The reason why a session cannot be parked, or not be taken over.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ParkError {
    #[error("requests are still in flight")]
    Busy,
    #[error("the new process has not restored it in time")]
    Late,
    #[error("queue {0} holds requests for lack of room on the disk, and the frontend does not track them")]
    Held(usize),
    #[error("queue {0} waits for memory that the frontend has removed")]
    Paused(usize),
    #[error("the frontend's in-flight region was refused")]
    InflightRefused,
    #[error("a flush has failed")]
    Unflushed,
    #[error("the frontend's files were not kept")]
    NotKept,
    #[error("the disk has {have} queues, and the session {handed}")]
    Queues { have: usize, handed: usize },
    #[error("the disk has been removed")]
    Ended,
    #[error("the image cannot be left for another process")]
    Settle(#[source] io::Error),
    #[error("the disk is inactive (blockdev-set-active), and the new process is too old for that")]
    Inactive,
    #[error(transparent)]
    Missing(#[from] MissingFile),
    #[error(transparent)]
    Session(#[from] SessionError),
    #[error(transparent)]
    Take(#[from] TakeError),
    #[error(transparent)]
    Memory(#[from] crate::memory::Error),
    #[error(transparent)]
    Gone(#[from] Gone),
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("the frontend's features cannot be restored: {0}")]
    Features(String),
}

type Result<T> = std::result::Result<T, ParkError>;

/// The state of the connection that is not part of the session.
#[derive(Clone, Copy, Debug)]
pub(in crate::vhost_user) struct Negotiated {
    pub(in crate::vhost_user) offered: bool,
    pub(in crate::vhost_user) protocol_features: Option<u64>,
}

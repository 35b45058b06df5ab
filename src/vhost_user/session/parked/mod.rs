//! A session that is parked, so that another process can go on with it: what is handed over, and how both processes make
//! and use it.
//!
//! A parked session has no request in flight, and its rings are stopped. The process that parked it can go on with it.

mod park;
mod restore;

use std::io;

use serde::{Deserialize, Serialize};

use super::SessionError;
use crate::aio::Gone;
use crate::blk::device::BlkDevice;
use crate::storage::LockError;
use crate::succession::{Bundle, MissingFile};

/// A disk on its way to another process. Numbers of type `usize` are places in the [`Bundle`].
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) struct ParkedDisk {
    /// The image is taken.
    image: Option<ParkedImage>,
    /// The session, if a frontend is connected.
    pub(in crate::vhost_user) session: Option<ParkedSession>,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct ParkedImage {
    /// The open file that has the lock. `None` if the image needs none, or its file system has none.
    lock: Option<usize>,
}

impl ParkedDisk {
    /// Describes a disk. `session` is that of its frontend.
    pub(in crate::vhost_user) fn new(
        device: &BlkDevice,
        session: Option<ParkedSession>,
        bundle: &mut Bundle,
    ) -> Result<Self> {
        let lock = device.with_image(|lock| lock.map(|file| bundle.add(file)).transpose());
        let image = lock.transpose()?.map(|lock| ParkedImage { lock });
        Ok(Self { image, session })
    }

    /// Takes over the image's lock.
    pub(in crate::vhost_user) fn restore_image(&self, device: &BlkDevice, bundle: &mut Bundle) -> Result<()> {
        let Some(image) = &self.image else { return Ok(()) };
        let lock = image.lock.map(|place| bundle.take(place)).transpose()?;
        Ok(device.inherit_image(lock)?)
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
    #[error(transparent)]
    Missing(#[from] MissingFile),
    #[error(transparent)]
    Session(#[from] SessionError),
    #[error(transparent)]
    Lock(#[from] LockError),
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

/// What the connection knows besides the session.
#[derive(Clone, Copy, Debug)]
pub(in crate::vhost_user) struct Negotiated {
    pub(in crate::vhost_user) offered: bool,
    pub(in crate::vhost_user) protocol_features: Option<u64>,
}

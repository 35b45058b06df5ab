//! One frontend's session: turns vhost-user messages into commands for the queues.
//!
//! Runs on the disk's control thread. A refused message changes nothing, and the reason is logged. There is one
//! exception: if a message is valid but a ring cannot start with it, the new state of rings, memory and chains in flight
//! is kept, because the next message may complete it.

use std::fs::File;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc;

use super::channel::BackendChannel;
use super::error::{SessionError, chain};
use super::vring::Vring;
use crate::aio::{Gone, Remote};
use crate::blk::device::{BlkDevice, DeviceState};
use crate::blk::queue::BlkQueue;
use crate::engine::NodeControl;
use crate::io::IoOp;
use crate::memory::{DirtyLog, GuestMemory, RegionInfo};

mod cache;
mod inflight;
mod log;
pub(super) mod parked;
mod recovery;
mod rings;

use inflight::Inflight;

/// VHOST_F_LOG_ALL: writes to guest memory are logged.
pub const LOG_ALL: u64 = 1 << 26;
/// VHOST_USER_F_PROTOCOL_FEATURES.
pub const PROTOCOL_FEATURES: u64 = 1 << 30;

type Result<T> = std::result::Result<T, SessionError>;

/// The stops that leave requests in flight at once, because the frontend takes the in-flight region along.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Suspends {
    Never,
    /// Each GET_VRING_BASE, if only GET_VRING_BASE_INFLIGHT is negotiated.
    Always,
    /// Each GET_VRING_BASE_SKIP_DRAIN, if that is negotiated as well.
    WhenAsked,
}

/// The state of one connection. Dropping it stops all rings and waits for the requests in flight.
#[derive(Debug)]
pub struct Session<'a> {
    device: &'a mut BlkDevice,
    channel: BackendChannel,
    memory: Arc<GuestMemory>,
    acked: u64,
    pub(super) suspends: Suspends,
    vrings: Vec<Vring>,
    inflight: Inflight,
    /// The dirty log. It is used while LOG_ALL is set, but may be set earlier.
    log: Option<Arc<DirtyLog>>,
    /// Its file, offset and size, if another process may take over.
    log_file: Option<(Arc<File>, u64, u64)>,
    /// The image's lock was released for another process.
    released: bool,
    /// A ring that should run cannot: the frontend must reconnect.
    pub(super) failed: bool,
}

impl<'a> Session<'a> {
    /// Creates a session in which nothing is negotiated yet.
    ///
    /// `channel` is used once the frontend has set it up.
    pub fn new(device: &'a mut BlkDevice, channel: BackendChannel) -> Self {
        let vrings = device.queues().iter().map(|_| Vring::default()).collect();
        channel.reset();
        Self {
            device,
            channel,
            memory: Arc::default(),
            acked: 0,
            suspends: Suspends::Never,
            vrings,
            inflight: Inflight::Untracked,
            log: None,
            log_file: None,
            released: false,
            failed: false,
        }
    }

    /// The device of this session.
    pub(super) fn device(&mut self) -> &mut BlkDevice {
        self.device
    }

    pub(super) fn channel(&self) -> &BackendChannel {
        &self.channel
    }

    pub(super) fn features(&self) -> u64 {
        self.device.config().features() | PROTOCOL_FEATURES | LOG_ALL
    }

    /// Checks a queue index from the frontend.
    pub(super) fn index(&self, index: u32) -> Result<usize> {
        let queues = self.vrings.len();
        usize::try_from(index)
            .ok()
            .filter(|&i| i < queues)
            .ok_or(SessionError::BadQueue { index, queues })
    }

    fn queue(&self, index: usize) -> &Remote<BlkQueue> {
        &self.device.queues()[index]
    }

    /// Runs `f` on the thread of a queue, and waits for its result.
    fn call<R: Send + 'static>(
        &self,
        index: usize,
        f: impl FnOnce(&Rc<BlkQueue>) -> R + Send + 'static,
    ) -> Result<R> {
        let (reply, result) = mpsc::sync_channel(1);
        self.queue(index).post(move |queue| {
            // Cannot fail: the wait below ends only with the answer.
            let _ = reply.send(f(queue));
        })?;
        Ok(wait(&result)?)
    }

    /// Flushes the disk, and waits for it.
    fn flush(&self) -> io::Result<()> {
        execute(self.device.control(), IoOp::Flush)
    }

    pub(super) fn set_features(&mut self, acked: u64) -> Result<()> {
        let unknown = acked & !self.features();
        if unknown != 0 {
            return Err(SessionError::BadFeatures(unknown));
        }
        self.check_log_switch(acked)?;
        self.accept_features(acked)?;
        let before = std::mem::replace(&mut self.acked, acked);
        self.switch_log(before & LOG_ALL != 0, acked & LOG_ALL != 0)?;
        tracing::debug!(
            disk = self.device.state().name,
            features = format!("{acked:#x}"),
            "features accepted by the driver"
        );
        Ok(())
    }

    pub(super) fn set_memory(&mut self, memory: GuestMemory) -> Result<()> {
        self.check_log_covers(&memory)?;
        self.memory = Arc::new(memory);
        for (index, vring) in self.vrings.iter().enumerate() {
            if vring.running {
                let memory = Arc::clone(&self.memory);
                self.call(index, move |queue| queue.set_memory(&memory))?;
            }
        }
        self.start_ready()
    }

    pub(super) fn set_memory_table(
        &mut self,
        table: impl ExactSizeIterator<Item = RegionInfo>,
        files: Vec<File>,
    ) -> Result<()> {
        if files.len() != table.len() {
            return Err(SessionError::BadFiles {
                files: files.len(),
                regions: table.len(),
            });
        }
        self.set_memory(self.memory.replaced_by(table.zip(files))?)
    }

    pub(super) fn add_region(&mut self, info: RegionInfo, file: &File) -> Result<()> {
        self.set_memory(self.memory.with_region(info, file)?)
    }

    pub(super) fn remove_region(&mut self, info: RegionInfo) -> Result<()> {
        self.set_memory(self.memory.without_region(info.guest, info.user, info.len)?)
    }

    fn reset(&mut self) -> Result<()> {
        self.channel.reset();
        self.stop_all()?;
        for index in 0..self.vrings.len() {
            self.call(index, |queue| {
                queue.set_enabled(false);
                queue.set_call(None);
                queue.set_err(None);
            })?;
        }
        self.device.reset();
        Ok(())
    }
}

/// Waits for an IOThread.
fn wait<R>(result: &mpsc::Receiver<R>) -> std::result::Result<R, Gone> {
    result.recv().map_err(|_| Gone)
}

/// Executes an operation of the disk on an IOThread, and waits for it.
fn execute(control: &NodeControl, op: IoOp) -> io::Result<()> {
    let started = control.start(op).map_err(io::Error::other)?;
    wait(&started).map_err(io::Error::other)?
}

impl Drop for Session<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.reset()
            && let DeviceState { name: disk, log, .. } = &**self.device.state()
            && let Some(suppressed) = log.pass("not reset", "")
        {
            let error = chain(&error);
            tracing::error!(
                disk,
                error,
                suppressed,
                "cannot reset the disk after its frontend left"
            );
        }
        self.device.state().below.set_flush_witness(None);
    }
}

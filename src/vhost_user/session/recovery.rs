//! What outlives a session, and the process, in memory that the frontend keeps: the chains in flight, the cache mode, and
//! what became of the flushes.

use std::fs::File;
use std::sync::Arc;

use super::{Result, Session};
use crate::blk::device::DeviceState;
use crate::storage::FlushWitness;
use crate::vhost_user::SessionError;
use crate::virtqueue::{InflightArea, InflightRegion, RegionLayout, SpareByte};

/// Bytes of the region that are no queue's, by their numbers.
const FLUSH_FAILED: usize = 0;
const FLUSH_RUNNING: usize = 1;

/// Where chains in flight are tracked.
#[derive(Debug)]
pub(super) enum Inflight {
    /// Nowhere: the frontend does not ask for it.
    Untracked,
    Region(InflightRegion),
    /// The frontend's region was refused. Serving the rings without it would lose or repeat requests.
    Refused,
}

/// What became of the flushes: two bytes, each 0 or 1. Any thread.
#[derive(Debug)]
struct FlushMarks {
    /// One has failed for good: writes are lost.
    failed: SpareByte,
    /// One takes the kernel's report of failed writes, and has not ended.
    running: SpareByte,
}

impl FlushMarks {
    /// `None` for a region that has no room for them.
    fn of(region: &InflightRegion) -> Option<Self> {
        Some(Self {
            failed: region.spare(FLUSH_FAILED)?,
            running: region.spare(FLUSH_RUNNING)?,
        })
    }
}

impl FlushWitness for FlushMarks {
    fn begun(&self) {
        self.running.set(1);
    }

    fn succeeded(&self) {
        self.running.set(0);
    }

    fn failed(&self) {
        self.failed.set(1);
        self.running.set(0);
    }
}

impl Session<'_> {
    /// Makes an in-flight region for the frontend to keep.
    pub(in crate::vhost_user) fn create_inflight(
        &self,
        queues: u16,
        queue_size: u16,
    ) -> Result<(RegionLayout, File)> {
        let max = self.vrings.len();
        if usize::from(queues) > max {
            return Err(SessionError::InflightQueues {
                asked: queues,
                queues: max,
            });
        }
        Ok(InflightRegion::create(queues, queue_size)?)
    }

    /// Tracks what is in flight in a region that the frontend has kept; rings that start go on from there.
    pub(in crate::vhost_user) fn set_inflight(&mut self, layout: RegionLayout, file: &File) -> Result<()> {
        if let Some(running) = self.vrings.iter().position(|vring| vring.running) {
            return Err(SessionError::Running(running));
        }
        self.inflight = Inflight::Refused;
        self.device.state().node.set_flush_witness(None);
        let region = InflightRegion::map(file, layout)?;
        self.follow_flushes(&region);
        if let Some(writeback) = region.device_state() {
            self.recall_writeback(writeback != 0)?;
        }
        self.inflight = Inflight::Region(region);
        self.record_writeback();
        self.start_ready()
    }

    /// Learns what became of the flushes of the processes before, and tells those that come after.
    fn follow_flushes(&self, region: &InflightRegion) {
        let Some(marks) = FlushMarks::of(region) else {
            return;
        };
        let state = self.device.state();
        let (disk, node) = (&state.name, &state.node);
        if marks.failed.get() != 0 {
            if !node.flushes_fail() {
                tracing::error!(
                    disk,
                    "a flush failed before this process took over: writes are lost, and all flushes fail"
                );
            }
            node.fail_flushes();
        } else if marks.running.get() != 0 {
            let outcome = match node.doubt_last_flush() {
                true => "the next flush asks the whole file system if a write was lost",
                false => "if it failed, nobody knows",
            };
            tracing::warn!(
                disk,
                "the process before this one was killed during a flush: {outcome}"
            );
        }
        node.set_flush_witness(Some(Arc::new(marks)));
    }

    /// Where the chains of a ring of `size` descriptors are to be tracked.
    pub(super) fn inflight_area(&self, index: usize, size: u32) -> Result<Option<InflightArea>> {
        match &self.inflight {
            Inflight::Untracked => Ok(None),
            Inflight::Region(region) if !region.has_room_for(size) => {
                self.warn_of_untracked(index, size);
                Ok(None)
            }
            Inflight::Region(region) => Ok(Some(region.queue(index, size)?)),
            Inflight::Refused => Err(SessionError::InflightRefused(index)),
        }
    }

    fn warn_of_untracked(&self, index: usize, size: u32) {
        let DeviceState { name: disk, log, .. } = &**self.device.state();
        if let Some(suppressed) = log.pass("untracked ring", index) {
            tracing::warn!(
                disk,
                queue = index,
                size,
                suppressed,
                "the frontend's in-flight region has no room for a ring of this size: requests in flight are lost if this \
                 process is killed"
            );
        }
    }

    /// Lets a successor know what the driver has been told.
    pub(super) fn record_writeback(&self) {
        if let Inflight::Region(region) = &self.inflight {
            region.set_device_state(u8::from(self.device.cache().mode().writeback));
        }
    }
}

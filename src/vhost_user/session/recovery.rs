//! What outlives a session, and the process: the chains in flight and the cache mode, in memory that the frontend keeps.

use std::fs::File;

use super::{Result, Session};
use crate::blk::device::DeviceState;
use crate::vhost_user::SessionError;
use crate::virtqueue::{InflightArea, InflightRegion, RegionLayout};

/// Where chains in flight are tracked.
#[derive(Debug)]
pub(super) enum Inflight {
    /// Nowhere: the frontend does not ask for it.
    Untracked,
    Region(InflightRegion),
    /// The frontend's region was refused. Serving the rings without it would lose or repeat requests.
    Refused,
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
        let region = InflightRegion::map(file, layout)?;
        if let Some(writeback) = region.device_state() {
            self.recall_writeback(writeback != 0)?;
        }
        self.inflight = Inflight::Region(region);
        self.record_writeback();
        self.start_ready()
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

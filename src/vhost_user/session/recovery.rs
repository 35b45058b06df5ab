//! State that outlives the session and the process, in memory that the frontend keeps: the chains in flight, the cache
//! mode, and the outcome of flushes.

use std::fs::File;
use std::sync::Arc;

use super::inflight::{FlushMarks, Inflight, LastFlush};
use super::{Result, Session};
use crate::blk::device::DeviceState;
use crate::memory::kept;
use crate::vhost_user::SessionError;
use crate::virtqueue::{InflightArea, InflightRegion, RegionError, RegionLayout};

impl Session<'_> {
    /// Creates an in-flight region for the frontend to keep.
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

    /// Tracks chains in flight in a region that the frontend has kept. Rings that start later resume from its contents.
    pub(in crate::vhost_user) fn set_inflight(&mut self, layout: RegionLayout, file: &File) -> Result<()> {
        if let Some(running) = self.vrings.iter().position(|vring| vring.running) {
            return Err(SessionError::Running(running));
        }
        self.inflight = Inflight::Refused;
        self.device.state().below.set_flush_witness(None);
        let region = InflightRegion::map(file, layout)?;
        self.follow_flushes(&region);
        if let Some(writeback) = region.device_state() {
            self.recall_writeback(writeback != 0)?;
        }
        let kept = kept(file).map_err(RegionError::from)?;
        self.inflight = Inflight::Region(region, kept.map(|file| (file, layout)));
        self.record_writeback();
        self.start_ready()
    }

    /// Learns the outcome of flushes from earlier processes, and records it for later ones.
    fn follow_flushes(&self, region: &InflightRegion) {
        let Some(marks) = FlushMarks::of(region) else {
            return;
        };
        let state = self.device.state();
        let (disk, node) = (&state.name, &state.below.view().node);
        let fail = |loss| {
            if !node.flushes_fail() {
                tracing::error!(disk, "{loss}: all flushes will fail");
            }
            node.fail_flushes();
        };
        match marks.last() {
            LastFlush::Ended => {}
            LastFlush::Failed => fail("a flush failed before this process took over: writes are lost"),
            LastFlush::TakingReport => {
                fail("the process before this one was killed while it asked whether writes were lost");
            }
            LastFlush::Running => {
                let outcome = match node.doubt_last_flush() {
                    true => "the next flush checks the whole file system for lost writes",
                    false => "whether it failed is unknown",
                };
                tracing::warn!(
                    disk,
                    "the process before this one was killed during a flush: {outcome}"
                );
            }
        }
        state.below.set_flush_witness(Some(Arc::new(marks)));
    }

    /// Returns the area that tracks the chains of a ring of `size` descriptors.
    pub(super) fn inflight_area(&self, index: usize, size: u32) -> Result<Option<InflightArea>> {
        match &self.inflight {
            Inflight::Untracked => Ok(None),
            Inflight::Region(region, _) if !region.has_room_for(size) => {
                self.warn_of_untracked(index, size);
                Ok(None)
            }
            Inflight::Region(region, _) => Ok(Some(region.queue(index, size)?)),
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
                "the frontend's in-flight region has no room for a ring of this size: requests in flight will be lost if \
                 this process is killed"
            );
        }
    }

    /// Records the cache mode that the driver has seen, for a successor.
    pub(super) fn record_writeback(&self) {
        if let Inflight::Region(region, _) = &self.inflight {
            region.set_device_state(u8::from(self.device.cache().mode().writeback));
        }
    }
}

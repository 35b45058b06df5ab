//! Restores a session that another process has parked.

use std::fs::File;
use std::io;
use std::sync::Arc;

use super::{ParkError, ParkedKick, ParkedRing, ParkedSession, Result};
use crate::blk::write_cache::{CacheMode, WriteCache};
use crate::memory::{GuestMemory, RegionInfo};
use crate::succession::Bundle;
use crate::vhost_user::error::chain;
use crate::vhost_user::session::Session;
use crate::vhost_user::vring::{Kick, Vring};
use crate::virtqueue::{RegionLayout, RingAddresses};

impl Session<'_> {
    /// Restores the cache mode of the queues. Call this before the features are set again, so that these change nothing.
    pub(in crate::vhost_user) fn restore_cache(&mut self, parked: &ParkedSession) -> Result<()> {
        let mode = CacheMode {
            acked: parked.features,
            writeback: parked.writeback,
        };
        let (have, handed) = (self.vrings.len(), parked.rings.len());
        if have != handed {
            return Err(ParkError::Queues { have, handed });
        }
        let cached = parked.cached;
        for index in 0..self.vrings.len() {
            self.call(index, move |queue| queue.set_write_through(!cached))?;
        }
        self.device.set_cache(WriteCache::restore(mode, cached));
        Ok(())
    }

    /// Restores everything else, after the features. The rings do not run yet.
    pub(in crate::vhost_user) fn restore(
        &mut self,
        parked: &ParkedSession,
        bundle: &mut Bundle,
    ) -> Result<()> {
        let mut table = Vec::new();
        for region in &parked.regions {
            let info = RegionInfo {
                guest: region.guest,
                len: region.len,
                user: region.user,
                file_offset: region.file_offset,
            };
            table.push((info, File::from(bundle.take(region.file)?)));
        }
        let removed = parked.removed.iter().map(|&(start, end)| start..end);
        self.memory = Arc::new(GuestMemory::map(table)?.with_removed(removed));
        if let Some(log) = &parked.log {
            self.set_log(&File::from(bundle.take(log.file)?), log.offset, log.size)?;
        }
        if let Some(inflight) = &parked.inflight {
            let layout = RegionLayout {
                size: inflight.size,
                offset: inflight.offset,
                queues: inflight.queues,
                queue_size: inflight.queue_size,
            };
            self.set_inflight(layout, &File::from(bundle.take(inflight.file)?))?;
        }
        let name = self.device.state().name.clone();
        let backend = parked
            .backend_channel
            .map(|place| bundle.take(place))
            .transpose()?;
        self.channel.set(backend, &name);
        if parked.config_changed || parked.capacity != self.device.state().capacity() {
            self.channel.config_changed();
        }
        for (index, ring) in parked.rings.iter().enumerate() {
            self.restore_ring(index, ring, bundle)?;
        }
        Ok(())
    }

    fn restore_ring(&mut self, index: usize, ring: &ParkedRing, bundle: &mut Bundle) -> Result<()> {
        let queue = u32::try_from(index).map_err(io::Error::other)?;
        if let Some(size) = ring.size {
            self.set_vring_num(queue, size)?;
        }
        if let Some([desc, avail, used]) = ring.addresses {
            self.set_vring_addr(queue, RingAddresses { desc, avail, used }, ring.log)?;
        }
        self.set_vring_base(queue, ring.base.into())?;
        self.set_vring_call(queue, bundle.take_file(ring.call)?)?;
        self.set_vring_err(queue, bundle.take_file(ring.err)?)?;
        self.call(index, {
            let enabled = ring.enabled;
            move |queue| queue.set_enabled(enabled)
        })?;
        let kick = match ring.kick {
            ParkedKick::Unset => Kick::Unset,
            ParkedKick::Polled => Kick::Pending(None),
            ParkedKick::Eventfd(place) => Kick::Pending(Some(Arc::new(bundle.take(place)?.into()))),
        };
        let vring: &mut Vring = &mut self.vrings[index];
        // The ring starts when the predecessor has let go.
        (vring.kick, vring.failed, vring.was_started) = (kick, ring.failed, ring.was_started);
        Ok(())
    }

    /// Starts the rings that the predecessor ran. A ring that could not start there stays as it is.
    pub(in crate::vhost_user) fn start_restored(&mut self) {
        for index in 0..self.vrings.len() {
            if let Err(error) = self.start_if_ready(index) {
                let (disk, error) = (&self.device.state().name, chain(&error));
                tracing::error!(
                    disk,
                    queue = index,
                    error,
                    "cannot start the ring after the take-over"
                );
                self.failed = true;
            }
        }
    }
}

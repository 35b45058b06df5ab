//! Parks a session: stops its rings when nothing is in flight, and describes it.

use std::fs::File;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Instant;

use super::{
    Negotiated, ParkError, ParkedDisk, ParkedInflight, ParkedKick, ParkedLog, ParkedRegion, ParkedRing,
    ParkedSession, Result, take_back,
};
use crate::blk::queue::Stop;
use crate::memory::RegionInfo;
use crate::succession::Bundle;
use crate::vhost_user::SessionError;
use crate::vhost_user::session::Session;
use crate::vhost_user::session::inflight::Inflight;
use crate::vhost_user::vring::{Kick, Vring};

impl Session<'_> {
    /// Stops all rings once no request is in flight, at most until `deadline`, and describes the session. The image stays
    /// locked.
    ///
    /// # Errors
    /// The session cannot be parked now. It goes on, unless [`unpark`](Self::unpark) fails.
    pub(in crate::vhost_user) fn park(
        &mut self,
        connection: impl AsFd,
        negotiated: Negotiated,
        deadline: Instant,
    ) -> Result<(ParkedDisk, Bundle)> {
        let handle = Arc::clone(self.device.handle());
        let quiesced = handle.quiesce_until(deadline)?.ok_or(ParkError::Busy)?;
        self.check_parkable()?;
        self.released = ParkedDisk::settle(self.device, deadline)?;
        self.device.keep_image(true);
        let stopped = self.stop_to_park();
        drop(quiesced);
        stopped?;
        let mut bundle = Bundle::default();
        let session = self.describe(connection, negotiated, &mut bundle)?;
        let disk = ParkedDisk::new(self.device, self.released, Some(session), &mut bundle)?;
        Ok((disk, bundle))
    }

    /// Goes on with the session after [`park`](Self::park), also if that failed.
    ///
    /// # Errors
    /// A ring cannot be started again.
    pub(in crate::vhost_user) fn unpark(&mut self) -> std::result::Result<(), SessionError> {
        self.device.keep_image(false);
        if std::mem::take(&mut self.released) {
            take_back(self.device);
        }
        let mut started = Ok(());
        for index in 0..self.vrings.len() {
            if std::mem::take(&mut self.vrings[index].parked) {
                started = started.and(self.start_if_ready(index));
            }
        }
        started
    }

    fn check_parkable(&self) -> Result<()> {
        if matches!(self.inflight, Inflight::Refused) {
            return Err(ParkError::InflightRefused);
        }
        self.device.cache().settled().ok_or(ParkError::Unflushed)?;
        for (index, vring) in self.vrings.iter().enumerate() {
            let Some(size) = vring.size.filter(|_| vring.running) else {
                continue;
            };
            let standing = self.call(index, |queue| queue.standing())?;
            if standing.paused {
                return Err(ParkError::Paused(index));
            }
            let tracked = matches!(&self.inflight, Inflight::Region(region, _) if region.has_room_for(size));
            if standing.owned > 0 && !tracked {
                return Err(ParkError::Held(index));
            }
        }
        Ok(())
    }

    /// Stops the rings that run. Requests that are still in flight stay so.
    fn stop_to_park(&mut self) -> Result<()> {
        for index in 0..self.vrings.len() {
            if !self.vrings[index].running {
                continue;
            }
            let kick = match &self.vrings[index].kick {
                Kick::Pending(kick) | Kick::Taken(kick) => Kick::Pending(kick.clone()),
                Kick::Unset => Kick::Unset,
            };
            self.vrings[index].parked = true;
            let stopped = self.begin_stop(index, Stop::Suspend)?;
            self.vrings[index].kick = kick;
            self.end_stop(index, stopped)?;
        }
        Ok(())
    }

    fn describe(
        &self,
        connection: impl AsFd,
        negotiated: Negotiated,
        bundle: &mut Bundle,
    ) -> Result<ParkedSession> {
        let (mode, cached) = self.device.cache().settled().ok_or(ParkError::Unflushed)?;
        let (backend, config_changed) = self.channel.parked();
        let removed = self.memory.removed_ranges();
        Ok(ParkedSession {
            rings: self.describe_rings(bundle)?,
            connection: bundle.add(connection)?,
            features_offered: negotiated.offered,
            features: self.acked,
            protocol_features: negotiated.protocol_features,
            writeback: mode.writeback,
            cached,
            capacity: self.device.state().capacity(),
            backend_channel: backend.map(|file| bundle.add(file)).transpose()?,
            config_changed,
            regions: self.describe_memory(bundle)?,
            removed: removed.iter().map(|range| (range.start, range.end)).collect(),
            log: self.describe_log(bundle)?,
            inflight: self.describe_inflight(bundle)?,
        })
    }

    fn describe_rings(&self, bundle: &mut Bundle) -> Result<Vec<ParkedRing>> {
        let add = |bundle: &mut Bundle, file: Option<&File>| file.map(|file| bundle.add(file)).transpose();
        let ring = |(index, vring): (usize, &Vring)| {
            let enabled = self.call(index, |queue| queue.standing().enabled)?;
            Ok(ParkedRing {
                size: vring.size,
                addresses: vring.addresses.map(|at| [at.desc, at.avail, at.used]),
                log: vring.log,
                base: vring.base,
                kick: match &vring.kick {
                    Kick::Unset => ParkedKick::Unset,
                    Kick::Pending(None) | Kick::Taken(None) => ParkedKick::Polled,
                    Kick::Pending(Some(file)) | Kick::Taken(Some(file)) => {
                        ParkedKick::Eventfd(bundle.add(file)?)
                    }
                },
                call: add(bundle, vring.call.as_deref())?,
                err: add(bundle, vring.err.as_deref())?,
                enabled,
                failed: vring.failed,
                was_started: vring.was_started,
            })
        };
        self.vrings.iter().enumerate().map(ring).collect()
    }

    fn describe_log(&self, bundle: &mut Bundle) -> Result<Option<ParkedLog>> {
        match (&self.log, &self.log_file) {
            (None, _) => Ok(None),
            (Some(_), None) => Err(ParkError::NotKept),
            (Some(_), Some((file, offset, size))) => Ok(Some(ParkedLog {
                file: bundle.add(file)?,
                offset: *offset,
                size: *size,
            })),
        }
    }

    fn describe_inflight(&self, bundle: &mut Bundle) -> Result<Option<ParkedInflight>> {
        match &self.inflight {
            Inflight::Untracked => Ok(None),
            Inflight::Refused => Err(ParkError::InflightRefused),
            Inflight::Region(_, None) => Err(ParkError::NotKept),
            Inflight::Region(_, Some((file, layout))) => Ok(Some(ParkedInflight {
                file: bundle.add(file)?,
                offset: layout.offset,
                size: layout.size,
                queues: layout.queues,
                queue_size: layout.queue_size,
            })),
        }
    }

    fn describe_memory(&self, bundle: &mut Bundle) -> Result<Vec<ParkedRegion>> {
        let regions = self.memory.regions().ok_or(ParkError::NotKept)?;
        let region = |(info, file): (RegionInfo, Arc<File>)| {
            Ok(ParkedRegion {
                guest: info.guest,
                len: info.len,
                user: info.user,
                file_offset: info.file_offset,
                file: bundle.add(file)?,
            })
        };
        regions.into_iter().map(region).collect()
    }
}

//! The rings of a session: set up in any order of messages, started when everything is known, stopped and drained.

use std::fs::File;
use std::io;
use std::sync::{Arc, mpsc};

use super::log::check_log_address;
use super::{LOG_ALL, PROTOCOL_FEATURES, Result, Session, Suspends, chain, execute, wait};
use crate::blk::config::features;
use crate::blk::device::DeviceState;
use crate::blk::queue::{RingSetup, Stop};
use crate::eventfd::is_eventfd;
use crate::vhost_user::SessionError;
use crate::vhost_user::vring::{Kick, Vring};
use crate::virtqueue::{RingAddresses, RingFeatures};

impl Session<'_> {
    pub(in crate::vhost_user) fn set_vring_num(&mut self, index: u32, size: u32) -> Result<()> {
        let index = self.index_of_stopped(index)?;
        let max = self.device.config().queue_size;
        if !size.is_power_of_two() || size > u32::from(max) {
            return Err(SessionError::BadQueueSize { size, max });
        }
        let before = self.vrings[index].size.replace(size);
        self.vrings[index].failed &= before == Some(size);
        self.start_if_ready(index)
    }

    /// `log` is the used ring's guest address, if writes to it are logged. This may change while the ring runs.
    pub(in crate::vhost_user) fn set_vring_addr(
        &mut self,
        index: u32,
        addresses: RingAddresses,
        log: Option<u64>,
    ) -> Result<()> {
        let index = self.index(index)?;
        log.map_or(Ok(()), check_log_address)?;
        let vring = &mut self.vrings[index];
        if vring.running && vring.addresses != Some(addresses) {
            return Err(SessionError::Running(index));
        }
        vring.addresses = Some(addresses);
        vring.log = log;
        vring.failed = false;
        if vring.running {
            self.apply_ring_log(index)?;
        }
        self.start_if_ready(index)
    }

    pub(in crate::vhost_user) fn set_vring_base(&mut self, index: u32, base: u32) -> Result<()> {
        let index = self.index_of_stopped(index)?;
        self.vrings[index].base = u16::try_from(base).map_err(|_| SessionError::BadBase(base))?;
        Ok(())
    }

    fn index_of_stopped(&self, index: u32) -> Result<usize> {
        let index = self.index(index)?;
        if self.vrings[index].running {
            Err(SessionError::Running(index))
        } else {
            Ok(index)
        }
    }

    /// Stops the ring, waits for its requests in flight, and returns the position at which to continue.
    pub(in crate::vhost_user) fn get_vring_base(&mut self, index: u32) -> Result<u16> {
        let stop = match self.suspends {
            Suspends::Always => Stop::Suspend,
            Suspends::Never | Suspends::WhenAsked => Stop::HandOver,
        };
        self.stop(index, stop)
    }

    /// As [`get_vring_base`](Self::get_vring_base), but requests that wait for room on the disk stay in flight.
    pub(in crate::vhost_user) fn get_vring_base_skip_drain(&mut self, index: u32) -> Result<u16> {
        match self.suspends {
            Suspends::WhenAsked => self.stop(index, Stop::Suspend),
            Suspends::Never | Suspends::Always => Err(SessionError::Unsupported),
        }
    }

    fn stop(&mut self, index: u32, stop: Stop) -> Result<u16> {
        let index = self.index(index)?;
        let stopped = self.begin_stop(index, stop)?;
        self.end_stop(index, stopped)?;
        Ok(self.vrings[index].base)
    }

    pub(super) fn begin_stop(&mut self, index: usize, stop: Stop) -> Result<Option<mpsc::Receiver<u16>>> {
        let vring = &mut self.vrings[index];
        vring.kick = Kick::Unset;
        if !std::mem::take(&mut vring.running) {
            return Ok(None);
        }
        vring.draining = true;
        let (done, stopped) = mpsc::channel();
        self.queue(index).post(move |queue| queue.stop(stop, done))?;
        Ok(Some(stopped))
    }

    pub(super) fn end_stop(&mut self, index: usize, stopped: Option<mpsc::Receiver<u16>>) -> Result<()> {
        let Some(stopped) = stopped else { return Ok(()) };
        let base = wait(&stopped)?;
        let vring = &mut self.vrings[index];
        vring.base = base;
        vring.draining = false;
        if self.vrings.iter().all(Vring::is_idle) {
            self.channel.suspend();
            let handed_over = self.hand_over();
            // This fails the stop only while the VM migrates: without an answer, the VM stays where it is.
            if self.acked & LOG_ALL != 0 {
                handed_over.map_err(SessionError::HandOver)?;
            }
        }
        Ok(())
    }

    pub(in crate::vhost_user) fn set_vring_kick(&mut self, index: u32, kick: Option<File>) -> Result<()> {
        let index = self.index(index)?;
        let kick = kick.map(checked).transpose()?.map(Arc::new);
        if self.vrings[index].running {
            let new = kick.clone();
            let set = self.call(index, move |queue| queue.set_kick(new))?;
            set.map_err(|source| SessionError::Kick { index, source })?;
            self.vrings[index].kick = Kick::Taken(kick);
            return Ok(());
        }
        self.vrings[index].kick = Kick::Pending(kick);
        self.vrings[index].failed = false;
        self.start_if_ready(index)
    }

    /// Flushes, and lets others use the image, after the last ring has stopped.
    fn hand_over(&mut self) -> io::Result<()> {
        self.device.deactivate(execute)
    }

    pub(in crate::vhost_user) fn set_vring_call(&mut self, index: u32, call: Option<File>) -> Result<()> {
        let index = self.index(index)?;
        let call = call.map(checked).transpose()?.map(Arc::new);
        self.vrings[index].call.clone_from(&call);
        self.call(index, move |queue| queue.set_call(call))
    }

    pub(in crate::vhost_user) fn set_vring_err(&mut self, index: u32, err: Option<File>) -> Result<()> {
        let index = self.index(index)?;
        let err = err.map(checked).transpose()?.map(Arc::new);
        self.vrings[index].err.clone_from(&err);
        self.call(index, move |queue| queue.set_err(err))
    }

    pub(in crate::vhost_user) fn set_vring_enable(&mut self, index: u32, enable: bool) -> Result<()> {
        let index = self.index(index)?;
        if enable {
            self.warn_of_missing_memory(index);
        }
        self.call(index, move |queue| queue.set_enabled(enable))
    }

    /// Warns about missing shared memory: QEMU does not report it, and the guest just hangs.
    fn warn_of_missing_memory(&self, index: usize) {
        let DeviceState { name: disk, log, .. } = &**self.device.state();
        if self.memory.is_empty()
            && self.vrings[index].is_ready()
            && let Some(suppressed) = log.pass("no memory", "")
        {
            tracing::warn!(
                disk,
                queue = index,
                suppressed,
                "the frontend has enabled a queue but shared no memory: the queue waits for memory (QEMU: set share=on on \
                 the memory backend of the guest)"
            );
        }
    }

    /// Starts every ring that is ready, after a change that affects all of them.
    ///
    /// A ring that cannot start does not keep the others from starting.
    pub(super) fn start_ready(&mut self) -> Result<()> {
        let mut started = Ok(());
        for index in 0..self.vrings.len() {
            self.vrings[index].failed = false;
            started = started.and(self.start_if_ready(index));
        }
        started
    }

    /// Starts a ring if it is ready. Frontends differ in the order of their messages.
    ///
    /// A ring that cannot start keeps its kick eventfd, and is tried again after a message that could change that.
    pub(super) fn start_if_ready(&mut self, index: usize) -> Result<()> {
        let vring = &self.vrings[index];
        let (Some(addresses), Some(size)) = (vring.addresses, vring.size) else {
            return Ok(());
        };
        if !vring.is_ready() || self.memory.is_empty() {
            return Ok(());
        }
        let started = self.start(index, addresses, size);
        self.vrings[index].failed = started.is_err();
        started?;
        self.hand_over_kick(index)
    }

    /// Makes the queue set up the ring, which runs from the first kick on.
    fn start(&mut self, index: usize, addresses: RingAddresses, size: u32) -> Result<()> {
        let setup = RingSetup {
            inflight: self.inflight_area(index, size)?,
            log: self.ring_log(index),
            memory: Arc::clone(&self.memory),
            addresses,
            size,
            base: self.vrings[index].base,
            features: RingFeatures {
                event_idx: self.acked & features::EVENT_IDX != 0,
                indirect: self.acked & features::INDIRECT_DESC != 0,
            },
        };
        let resized = self.device.activate(execute);
        let resized = resized.map_err(|source| {
            // Otherwise the driver would wait forever without an error.
            self.failed = true;
            SessionError::Lock { index, source }
        })?;
        let started = self.call(index, move |queue| queue.start(setup))?;
        let resumed = started.map_err(|source| SessionError::Ring { index, source })?;
        self.vrings[index].running = true;
        self.channel.resume();
        let predecessors = !std::mem::replace(&mut self.vrings[index].was_started, true);
        if let Some(requests) = resumed.filter(|&requests| predecessors || requests > 0) {
            self.log_resumed(index, requests);
        }
        if predecessors && resumed.is_some() || resized {
            // The predecessor may have served a disk of another size, and another host may have resized it.
            self.channel.config_changed();
        }
        Ok(())
    }

    fn log_resumed(&self, index: usize, requests: usize) {
        let DeviceState { name: disk, log, .. } = &**self.device.state();
        if let Some(suppressed) = log.pass_normal("resumed", index) {
            tracing::info!(
                disk,
                queue = index,
                requests,
                suppressed,
                "ring resumed, with its requests in flight"
            );
        }
    }

    /// Returns the maximum number of descriptors in a request, given the driver's features and queue sizes. Without
    /// indirect descriptors, a request must fit into the smallest queue.
    pub(super) fn room_of_requests(&self) -> u16 {
        let largest = self.device.config().queue_size;
        if self.acked == 0 || self.acked & features::INDIRECT_DESC != 0 {
            return largest;
        }
        let smallest = self.vrings.iter().filter_map(|vring| vring.size).min();
        smallest
            .and_then(|size| u16::try_from(size).ok())
            .unwrap_or(largest)
    }

    fn hand_over_kick(&mut self, index: usize) -> Result<()> {
        let Kick::Pending(kick) = &self.vrings[index].kick else {
            return Ok(());
        };
        let kick = kick.clone();
        self.vrings[index].kick = Kick::Taken(kick.clone());
        // Without this feature there is no SET_VRING_ENABLE, and a running ring is enabled.
        let enable = self.acked & PROTOCOL_FEATURES == 0;
        let set = self.call(index, move |queue| {
            if enable {
                queue.set_enabled(true);
            }
            queue.set_kick(kick)
        })?;
        set.map_err(|source| SessionError::Kick { index, source })
    }

    /// Stops all rings: first tells each one, then waits for each one.
    pub(in crate::vhost_user) fn stop_all(&mut self) -> Result<()> {
        let indices = 0..self.vrings.len();
        let stopping = indices
            .map(|index| self.begin_stop(index, Stop::End))
            .collect::<Result<Vec<_>>>()?;
        for (index, stopped) in stopping.into_iter().enumerate() {
            self.end_stop(index, stopped)?;
        }
        Ok(())
    }

    /// Stops the rings and waits for their requests in flight, as far as possible.
    pub(in crate::vhost_user) fn finish(&mut self) {
        if let Err(error) = self.stop_all()
            && let DeviceState { name: disk, log, .. } = &**self.device.state()
            && let Some(suppressed) = log.pass("not stopped", "")
        {
            let error = chain(&error);
            tracing::error!(disk, error, suppressed, "cannot stop the rings");
        }
    }

    /// Disables all rings (RESET_OWNER). They stay set up, and SET_VRING_ENABLE makes them run again.
    pub(in crate::vhost_user) fn disable_all(&mut self) -> Result<()> {
        (0..self.vrings.len()).try_for_each(|index| self.call(index, |queue| queue.set_enabled(false)))
    }

    /// Stops and disables all rings, and forgets their setup (RESET_DEVICE).
    ///
    /// The memory table, the call eventfds and `writeback` are kept: QEMU gives the next driver the `writeback` value
    /// that it remembers itself.
    pub(in crate::vhost_user) fn reset_device(&mut self) -> Result<()> {
        self.stop_all()?;
        self.disable_all()?;
        for vring in &mut self.vrings {
            *vring = Vring {
                call: vring.call.take(),
                err: vring.err.take(),
                ..Vring::default()
            };
        }
        Ok(())
    }
}

/// Accepts only an eventfd. Other files may not be pollable, may always be ready, or may have side effects when written.
fn checked(file: File) -> Result<File> {
    match is_eventfd(&file).map_err(SessionError::EventFd)? {
        true => Ok(file),
        false => Err(SessionError::NoEventFd),
    }
}

//! Switching of the write cache by a session's driver, with its features or in the configuration space.

use super::{Result, Session};
use crate::blk::config::BlkConfig;
use crate::blk::device::DeviceState;
use crate::blk::write_cache::CacheMode;
use crate::vhost_user::SessionError;

impl Session<'_> {
    /// Reads the configuration space.
    pub(in crate::vhost_user) fn read_config(&self, offset: u32, len: usize) -> Result<Vec<u8>> {
        let room = self.room_of_requests();
        Ok(self.device.read_config(room, offset, len)?)
    }

    /// Writes to the configuration space, and records the change for a successor.
    ///
    /// If the driver switches the write cache off, this returns when all completed writes are stable.
    pub(in crate::vhost_user) fn write_config(&mut self, offset: u32, data: &[u8]) -> Result<()> {
        self.set_writeback(BlkConfig::written_writeback(offset, data)?)?;
        self.record_writeback();
        Ok(())
    }

    fn set_writeback(&mut self, writeback: bool) -> Result<()> {
        self.switch_cache(self.with_writeback(writeback))
    }

    fn with_writeback(&self, writeback: bool) -> CacheMode {
        CacheMode {
            writeback,
            ..self.device.cache().mode()
        }
    }

    /// Restores `writeback`, which the driver set while a predecessor served it.
    pub(super) fn recall_writeback(&mut self, writeback: bool) -> Result<()> {
        let mode = self.with_writeback(writeback);
        let mut cache = self.device.cache();
        if mode.is_cached() == cache.mode().is_cached() {
            // The queues learn of this with the driver's features, which may not be known yet.
            cache.recall(writeback);
            self.device.set_cache(cache);
            return Ok(());
        }
        self.adopt(mode)
    }

    /// Applies the features that the driver accepted. For a driver that cannot flush, every write becomes stable.
    pub(super) fn accept_features(&mut self, acked: u64) -> Result<()> {
        self.adopt(CacheMode {
            acked,
            ..self.device.cache().mode()
        })
    }

    /// Switches to the mode that a new driver sets, or set before. If the flush fails, the writes were lost before this
    /// driver came, and later flushes report it. So the driver may still read the remaining data.
    fn adopt(&mut self, mode: CacheMode) -> Result<()> {
        match self.switch_cache(mode) {
            Err(SessionError::Flush(error)) => {
                let DeviceState { name: disk, log, .. } = &**self.device.state();
                if let Some(suppressed) = log.pass("unflushed", "") {
                    tracing::error!(
                        disk, %error, suppressed,
                        "flush failed while applying the driver's cache mode: earlier writes may be lost; going on, and \
                         later flushes report it"
                    );
                }
                let mut cache = self.device.cache();
                cache.go_on_unflushed(mode);
                self.device.set_cache(cache);
                Ok(())
            }
            switched => switched,
        }
    }

    fn switch_cache(&mut self, mode: CacheMode) -> Result<()> {
        let mut cache = self.device.cache();
        let before = cache.is_on();
        let write_through = |on| {
            let set = |index| self.call(index, move |queue| queue.set_write_through(on));
            (0..self.vrings.len()).try_for_each(set)
        };
        let flush = || self.flush().map_err(SessionError::Flush);
        let switched = cache.switch(mode, write_through, flush);
        self.device.set_cache(cache);
        let cached = cache.is_on();
        let DeviceState { name: disk, log, .. } = &**self.device.state();
        if cached != before
            && let Some(suppressed) = log.pass("write cache", cached)
        {
            tracing::info!(disk, cached, suppressed, "write cache switched by the driver");
        }
        switched
    }
}

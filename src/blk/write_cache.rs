//! The write cache of a disk: the mode that the driver was told, and the mode that the queues use. Control thread only.
//!
//! The two differ after a failed flush: the queues do not cache writes any more, but the driver still flushes as if the
//! cache were on. So no promise to the driver is broken, and no write counts as stable that is not.

use super::config::features;

/// The driver's settings for the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheMode {
    /// The features that the driver has accepted.
    pub acked: u64,
    /// The `writeback` field of the configuration space, which the driver may write.
    pub writeback: bool,
}

impl CacheMode {
    /// The settings before the driver has changed any.
    pub const RESET: Self = Self {
        acked: 0,
        writeback: true,
    };

    /// True if writes are cached. The driver must be able to flush them, and want the cache (5.2.6.2).
    pub fn is_cached(self) -> bool {
        if self.acked & features::CONFIG_WCE != 0 {
            self.writeback
        } else {
            self.acked & features::FLUSH != 0
        }
    }
}

/// The cache mode of the queues.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Writes are stable after the next flush.
    On,
    /// Every write is stable before it completes, but earlier writes may not be stable.
    Unflushed,
    /// Every write that has completed is stable.
    Off,
}

/// The write cache of a disk.
#[derive(Clone, Copy, Debug)]
pub struct WriteCache {
    mode: CacheMode,
    state: State,
}

impl Default for WriteCache {
    fn default() -> Self {
        Self {
            mode: CacheMode::RESET,
            state: State::On,
        }
    }
}

impl WriteCache {
    /// Returns the driver's settings, as far as they were confirmed to the driver.
    pub fn mode(&self) -> CacheMode {
        self.mode
    }

    /// True if the queues cache writes.
    pub fn is_on(&self) -> bool {
        self.state == State::On
    }

    /// Returns the settings and whether the queues cache writes, or `None` if completed writes still have to be flushed.
    pub fn settled(&self) -> Option<(CacheMode, bool)> {
        (self.state != State::Unflushed).then_some((self.mode, self.is_on()))
    }

    /// Makes the state that [`settled`](Self::settled) has returned.
    pub fn restore(mode: CacheMode, on: bool) -> Self {
        Self {
            mode,
            state: if on { State::On } else { State::Off },
        }
    }

    /// Resets the settings for the next driver. The queues follow when that driver has accepted its features.
    pub fn reset(&mut self) {
        self.mode = CacheMode::RESET;
    }

    /// Switches to the driver's new settings. `write_through(true)` makes all queues complete writes only when they are
    /// stable, and returns when they do so; `write_through(false)` ends that. `flush` makes stable what has completed
    /// before.
    ///
    /// # Errors
    /// `write_through` or `flush` failed. The caller must tell the driver. The driver's settings stay, so `writeback`
    /// reads as before. But if only the flush failed, the queues complete writes only when they are stable until the
    /// driver switches the cache on. Further attempts to switch it off fail until a flush succeeds.
    pub fn switch<E>(
        &mut self,
        mode: CacheMode,
        write_through: impl FnOnce(bool) -> Result<(), E>,
        flush: impl FnOnce() -> Result<(), E>,
    ) -> Result<(), E> {
        let cached = mode.is_cached();
        if cached != self.is_on() {
            write_through(!cached)?;
            self.state = if cached { State::On } else { State::Unflushed };
        }
        if self.state == State::Unflushed {
            flush()?;
            self.state = State::Off;
        }
        self.mode = mode;
        Ok(())
    }

    /// Restores the `writeback` field, which the driver has set while another process served it. The queues do not
    /// change their mode.
    pub fn recall(&mut self, writeback: bool) {
        self.mode.writeback = writeback;
    }

    /// Confirms settings without a cache to the driver, although the flush has failed.
    pub fn go_on_unflushed(&mut self, mode: CacheMode) {
        debug_assert!(!mode.is_cached() && !self.is_on());
        self.mode = mode;
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    const CACHED: CacheMode = CacheMode {
        acked: features::FLUSH | features::CONFIG_WCE,
        writeback: true,
    };
    const UNCACHED: CacheMode = CacheMode {
        writeback: false,
        ..CACHED
    };

    /// Switches, with a flush that may fail. Returns the calls that were made, in order.
    fn switch(cache: &mut WriteCache, mode: CacheMode, flush: Result<(), &'static str>) -> String {
        let log = RefCell::new(Vec::new());
        let through = |on| {
            log.borrow_mut().push(if on { "through" } else { "cached" });
            Ok(())
        };
        let flush = || {
            log.borrow_mut().push("flush");
            flush
        };
        let before = cache.mode();
        let switched = cache.switch(mode, through, flush);
        let expected = if switched.is_ok() { mode } else { before };
        assert_eq!(
            cache.mode(),
            expected,
            "what the driver reads is what it was told"
        );
        log.borrow_mut().extend(switched.err());
        log.into_inner().join(" ")
    }

    #[test]
    fn the_cache_needs_a_driver_that_flushes() {
        for (acked, writeback, cached) in [
            (0, true, false),
            (features::FLUSH, true, true),
            (features::FLUSH, false, true),
            (features::CONFIG_WCE, true, true),
            (features::CONFIG_WCE, false, false),
            (features::FLUSH | features::CONFIG_WCE, false, false),
        ] {
            assert_eq!(
                CacheMode { acked, writeback }.is_cached(),
                cached,
                "{acked:#x} {writeback}"
            );
        }
    }

    #[test]
    fn queues_switch_before_the_flush() {
        let mut cache = WriteCache::default();
        assert_eq!(switch(&mut cache, CACHED, Ok(())), "");
        assert_eq!(switch(&mut cache, UNCACHED, Ok(())), "through flush");
        assert_eq!(switch(&mut cache, UNCACHED, Ok(())), "");
        assert_eq!(switch(&mut cache, CACHED, Ok(())), "cached");
        assert!(cache.is_on());
    }

    #[test]
    fn a_failed_flush_is_repeated() {
        let mut cache = WriteCache::default();
        switch(&mut cache, CACHED, Ok(()));
        assert_eq!(
            switch(&mut cache, UNCACHED, Err("failed")),
            "through flush failed"
        );
        assert!(!cache.is_on() && cache.mode().writeback);
        assert_eq!(switch(&mut cache, UNCACHED, Err("failed")), "flush failed");
        assert_eq!(switch(&mut cache, UNCACHED, Ok(())), "flush");
        assert_eq!(switch(&mut cache, UNCACHED, Ok(())), "");
        switch(&mut cache, CACHED, Ok(()));
        switch(&mut cache, UNCACHED, Err("failed"));
        assert_eq!(
            switch(&mut cache, CACHED, Ok(())),
            "cached",
            "the driver wants it after all"
        );
    }

    #[test]
    fn going_on_unflushed_still_requires_the_flush() {
        let mut cache = WriteCache::default();
        switch(&mut cache, CACHED, Ok(()));
        switch(&mut cache, CacheMode::RESET, Err("failed"));
        cache.go_on_unflushed(CacheMode::RESET);
        assert!(!cache.is_on());
        assert_eq!(switch(&mut cache, UNCACHED, Err("failed")), "flush failed");
        assert_eq!(switch(&mut cache, UNCACHED, Ok(())), "flush");
    }
}

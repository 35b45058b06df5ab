//! The write cache of a disk: what the driver was told about it, and what its queues do. Control thread only.
//!
//! The two differ after a flush that failed: the cache is used no more then, though the driver still flushes, as it does
//! for a cache that is on. So nothing that was promised is broken, and no write counts as stable that is not.

use super::config::features;

/// What a driver has said about the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheMode {
    /// The features that it has accepted.
    pub acked: u64,
    /// The `writeback` field of the configuration space, which it may write.
    pub writeback: bool,
}

impl CacheMode {
    /// A driver that has said nothing yet.
    pub const RESET: Self = Self {
        acked: 0,
        writeback: true,
    };

    /// Writes are cached only where the driver can flush them and wants the cache (5.2.6.2).
    pub fn is_cached(self) -> bool {
        if self.acked & features::CONFIG_WCE != 0 {
            self.writeback
        } else {
            self.acked & features::FLUSH != 0
        }
    }
}

/// What the queues do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// A write is stable after the next flush.
    On,
    /// Every write is stable before it completes, but those before may not be.
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
    /// What the driver has said, as far as it was told that this is so.
    pub fn mode(&self) -> CacheMode {
        self.mode
    }

    /// Whether the queues cache writes.
    pub fn is_on(&self) -> bool {
        self.state == State::On
    }

    /// The next driver finds the `writeback` field as the first one did. The queues learn of it with its features.
    pub fn reset(&mut self) {
        self.mode = CacheMode::RESET;
    }

    /// Switches to what the driver says now. `write_through` has all queues make each write stable before it completes, or
    /// no more, and returns when they do; `flush` makes stable what has completed before.
    ///
    /// # Errors
    /// Theirs. The driver is to be told, and nothing has changed for it: the `writeback` field reads as before. But the
    /// queues make each write stable from then on, until the driver says again that the cache is on; and who switches it
    /// off again is not told that this is done before a flush has succeeded.
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

    /// The driver had set the `writeback` field when another process served it. That changes nothing of what the queues
    /// do.
    pub fn recall(&mut self, writeback: bool) {
        self.mode.writeback = writeback;
    }

    /// The driver is told that its mode, one without a cache, is set, though the flush for it has failed.
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

    /// Switches, with a flush that may fail; returns what was done on the way.
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
    fn only_who_can_flush_and_wants_to_has_a_cache() {
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
    fn the_queues_follow_before_the_flush_and_only_a_change_is_work() {
        let mut cache = WriteCache::default();
        assert_eq!(switch(&mut cache, CACHED, Ok(())), "");
        assert_eq!(switch(&mut cache, UNCACHED, Ok(())), "through flush");
        assert_eq!(switch(&mut cache, UNCACHED, Ok(())), "");
        assert_eq!(switch(&mut cache, CACHED, Ok(())), "cached");
        assert!(cache.is_on());
    }

    #[test]
    fn after_a_flush_that_failed_every_write_is_stable_and_the_flush_is_still_owed() {
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
    fn a_driver_that_goes_on_without_the_flush_does_not_make_up_for_it() {
        let mut cache = WriteCache::default();
        switch(&mut cache, CACHED, Ok(()));
        switch(&mut cache, CacheMode::RESET, Err("failed"));
        cache.go_on_unflushed(CacheMode::RESET);
        assert!(!cache.is_on());
        assert_eq!(switch(&mut cache, UNCACHED, Err("failed")), "flush failed");
        assert_eq!(switch(&mut cache, UNCACHED, Ok(())), "flush");
    }
}

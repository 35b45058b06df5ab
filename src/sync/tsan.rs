//! The C library's mutex and condition variable in place of std's, for ThreadSanitizer (`--cfg tsan`).
//!
//! ThreadSanitizer cannot see into a standard library that is not instrumented. It misses the synchronisation of a
//! contended std mutex, and reports a data race on the data that the mutex guards. It does know the C library's mutex.

use std::cell::UnsafeCell;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::sync::LockResult;
use std::time::Duration;

#[derive(Debug)]
pub(crate) struct Mutex<T> {
    /// Never moves.
    raw: Box<UnsafeCell<libc::pthread_mutex_t>>,
    value: UnsafeCell<T>,
}

// SAFETY: only the holder of the lock reaches the value, so threads use it one after the other.
unsafe impl<T: Send> Send for Mutex<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Mutex<T> {}

/// A held lock. Not `Send`, because the thread that locked must unlock.
#[derive(Debug)]
pub(crate) struct MutexGuard<'a, T>(&'a Mutex<T>, PhantomData<*const ()>);

impl<T> Mutex<T> {
    pub(crate) fn new(value: T) -> Self {
        Self {
            raw: Box::new(UnsafeCell::new(libc::PTHREAD_MUTEX_INITIALIZER)),
            value: UnsafeCell::new(value),
        }
    }

    pub(crate) fn lock(&self) -> LockResult<MutexGuard<'_, T>> {
        // SAFETY: an initialised mutex that never moves.
        assert_eq!(unsafe { libc::pthread_mutex_lock(self.raw.get()) }, 0);
        Ok(MutexGuard(self, PhantomData))
    }
}

impl<T> Deref for MutexGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: the lock is held.
        unsafe { &*self.0.value.get() }
    }
}

impl<T> DerefMut for MutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: the lock is held, and the guard is borrowed exclusively.
        unsafe { &mut *self.0.value.get() }
    }
}

impl<T> Drop for MutexGuard<'_, T> {
    fn drop(&mut self) {
        // SAFETY: this thread has locked it.
        assert_eq!(unsafe { libc::pthread_mutex_unlock(self.0.raw.get()) }, 0);
    }
}

#[derive(Debug)]
pub(crate) struct Condvar(Box<UnsafeCell<libc::pthread_cond_t>>);

// SAFETY: all functions of a condition variable may be called by any thread.
unsafe impl Send for Condvar {}
// SAFETY: as above.
unsafe impl Sync for Condvar {}

/// The result of a wait: whether it timed out.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WaitTimeoutResult(bool);

impl WaitTimeoutResult {
    pub(crate) fn timed_out(self) -> bool {
        self.0
    }
}

impl Condvar {
    pub(crate) fn new() -> Self {
        Self(Box::new(UnsafeCell::new(libc::PTHREAD_COND_INITIALIZER)))
    }

    pub(crate) fn wait<'a, T>(&self, guard: MutexGuard<'a, T>) -> LockResult<MutexGuard<'a, T>> {
        // SAFETY: both are alive, and this thread has locked the mutex.
        assert_eq!(
            unsafe { libc::pthread_cond_wait(self.0.get(), guard.0.raw.get()) },
            0
        );
        Ok(guard)
    }

    pub(crate) fn wait_timeout<'a, T>(
        &self,
        guard: MutexGuard<'a, T>,
        time: Duration,
    ) -> LockResult<(MutexGuard<'a, T>, WaitTimeoutResult)> {
        // SAFETY: an all-zero timespec is valid.
        let mut until: libc::timespec = unsafe { std::mem::zeroed() };
        // SAFETY: `until` is valid.
        unsafe { libc::clock_gettime(libc::CLOCK_REALTIME, &raw mut until) };
        until.tv_sec += libc::time_t::try_from(time.as_secs()).unwrap_or(libc::time_t::from(i32::MAX)) + 1;
        // SAFETY: as for `wait`, and `until` is valid.
        let result =
            unsafe { libc::pthread_cond_timedwait(self.0.get(), guard.0.raw.get(), &raw const until) };
        Ok((guard, WaitTimeoutResult(result == libc::ETIMEDOUT)))
    }

    pub(crate) fn notify_one(&self) {
        // SAFETY: it lives.
        unsafe { libc::pthread_cond_signal(self.0.get()) };
    }

    pub(crate) fn notify_all(&self) {
        // SAFETY: it lives.
        unsafe { libc::pthread_cond_broadcast(self.0.get()) };
    }
}

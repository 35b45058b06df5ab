//! Listeners for sizes that a server has changed by itself. Any thread.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// Is called when the size of a disk has changed without being asked for.
pub struct SizeListener(pub Box<dyn Fn() + Send + Sync>);

impl fmt::Debug for SizeListener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SizeListener")
    }
}

/// The listeners of a disk.
#[derive(Debug, Default)]
pub(super) struct SizeListeners(Mutex<Vec<Weak<SizeListener>>>);

impl SizeListeners {
    fn lock(&self) -> MutexGuard<'_, Vec<Weak<SizeListener>>> {
        // Consistent even after a panic, because each change is one call.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Calls `listener` with each change from now on, as long as it lives.
    pub(super) fn add(&self, listener: &Arc<SizeListener>) {
        let mut listeners = self.lock();
        listeners
            .retain(|other| other.strong_count() > 0 && !std::ptr::eq(other.as_ptr(), Arc::as_ptr(listener)));
        listeners.push(Arc::downgrade(listener));
    }

    /// Calls the listeners. None is called under the lock.
    pub(super) fn tell(&self) {
        let listeners = self.lock().clone();
        for listener in listeners.iter().filter_map(Weak::upgrade) {
            (listener.0)();
        }
    }
}

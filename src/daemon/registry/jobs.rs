//! Work that may wait for storage: opening, closing and resizing images, taking and releasing their locks, quiescing
//! disks. Each piece runs on a short-lived thread, so that one file system that hangs holds up nothing else.
//!
//! Operations check what they can on the main thread, start their work, and come back to the main thread with the
//! result. What they depend on may have changed by then, unless they have marked it as busy.

use std::sync::{Arc, mpsc};

use super::error::OperationError;
use super::{Call, Registry};
use crate::sandbox::ThreadKind;

type Outcome<T> = Result<T, OperationError>;

impl Registry {
    /// Runs work that may wait on other threads from now on. They come back to the main thread through `come_back`.
    pub(in crate::daemon) fn set_way_back(&mut self, come_back: impl Fn(Call) + Send + Sync + 'static) {
        self.come_back = Some(Arc::new(come_back));
    }

    /// Runs `work` on a thread of its own, then `then` with its result on the main thread. At the start, both run at
    /// once.
    pub(super) fn run_aside<T, W, F>(&mut self, work: W, then: F)
    where
        T: Send + 'static,
        W: FnOnce() -> Outcome<T> + Send + 'static,
        F: FnOnce(&mut Self, Outcome<T>) + Send + 'static,
    {
        let (Some(come_back), Some(running)) = (self.come_back.clone(), &self.running) else {
            let outcome = work();
            return then(self, outcome);
        };
        // Handed over afterwards, because a thread that cannot be created would drop them.
        let (give, take) = mpsc::channel::<(W, F)>();
        let body = move || {
            let Ok((work, then)) = take.recv() else { return };
            let outcome = work();
            come_back(Box::new(move |registry| then(registry, outcome)));
        };
        let spawned = running
            .sandbox
            .spawn(ThreadKind::Manager, "storage".to_owned(), body);
        match spawned {
            // Cannot fail: the thread waits for this.
            Ok(_) => drop(give.send((work, then))),
            Err(source) => then(self, Err(OperationError::Thread { source })),
        }
    }

    /// Drops `what` on a thread of its own, because closing a file may wait for its file system. Nothing changes for
    /// anybody when that is over.
    pub(super) fn drop_aside(&mut self, what: impl Send + 'static) {
        let work = move || {
            drop(what);
            Ok(())
        };
        self.run_aside(work, |_, _| ());
    }
}

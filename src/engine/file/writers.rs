//! Pools of one worker for the writes of files. They are recycled, because dropping a pool waits for its worker.

use std::cell::RefCell;
use std::rc::Rc;

use crate::aio::AioContext;
use crate::thread_pool::ThreadPool;

/// The pools that no file uses at the moment. Idle workers end by themselves. IOThread only.
#[derive(Clone, Debug, Default)]
pub(in crate::engine) struct Writers(Rc<RefCell<Vec<ThreadPool>>>);

/// A pool of one worker for the use of one file. Dropping this returns the pool for other files.
#[derive(Debug)]
pub(in crate::engine) struct Writer {
    pool: Option<ThreadPool>,
    home: Writers,
}

impl Writers {
    /// Takes an idle pool, or creates one whose worker is created like those of `pool`.
    pub(in crate::engine) fn take(&self, ctx: &AioContext, pool: &ThreadPool) -> Writer {
        let idle = self.0.borrow_mut().pop();
        Writer {
            pool: Some(idle.unwrap_or_else(|| pool.serial_sibling(ctx))),
            home: self.clone(),
        }
    }
}

impl Writer {
    pub(super) fn pool(&self) -> &ThreadPool {
        self.pool.as_ref().expect("present until the drop")
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.home.0.borrow_mut().extend(self.pool.take());
    }
}

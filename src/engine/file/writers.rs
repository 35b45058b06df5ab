//! Serial pools for the writes of files, recycled: dropping a pool joins its worker, which may take for ever.

use std::cell::RefCell;
use std::rc::Rc;

use crate::aio::AioContext;
use crate::thread_pool::ThreadPool;

/// Serial pools that no file uses at the moment; their workers end by themselves. IOThread only.
#[derive(Clone, Debug, Default)]
pub(in crate::engine) struct Writers(Rc<RefCell<Vec<ThreadPool>>>);

/// A pool of one worker that a file has for itself. Dropped, it waits for the next file.
#[derive(Debug)]
pub(in crate::engine) struct Writer {
    pool: Option<ThreadPool>,
    home: Writers,
}

impl Writers {
    /// Takes an idle pool, or makes one whose thread is created as those of `pool` are.
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

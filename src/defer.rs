//! defer-call scopes: work that is worth doing once per batch is put off to the batch's end.
//!
//! Whoever processes several things in a row (completions, the requests of one kick) holds a [`DeferScope`]; whoever
//! wants something done afterwards, such as a used buffer notification, [defers](DeferredCall::defer) it. Neither
//! needs to know of the other: outside any scope a deferred call runs at once.
//!
//! Everything here belongs to one thread and takes no lock. In the steady state nothing is allocated.

use std::{
    any::Any,
    cell::{Cell, RefCell},
    fmt, mem,
    panic::{self, AssertUnwindSafe},
    rc::Rc,
    thread,
};

thread_local! {
    static QUEUE: Queue = const { Queue { depth: Cell::new(0), next: RefCell::new(Vec::new()), spare: Cell::new(Vec::new()) } };
}

/// What the current thread has put off.
struct Queue {
    /// Open scopes.
    depth: Cell<usize>,
    /// The batch that is being collected, in the order of first deferral.
    next: RefCell<Vec<Rc<Target>>>,
    /// The last batch's storage, kept for its capacity.
    spare: Cell<Vec<Rc<Target>>>,
}

struct Target {
    /// Is in `Queue::next`.
    queued: Cell<bool>,
    coalesce: Cell<bool>,
    call: Box<dyn Fn()>,
}

/// A call that can be put off to the end of the outermost scope, where it runs once however often it was deferred.
///
/// Belongs to the thread that made it. If it is dropped while it is put off, it still runs.
pub struct DeferredCall {
    target: Rc<Target>,
}

impl DeferredCall {
    /// Makes `call` deferrable; coalescing is on.
    pub fn new(call: impl Fn() + 'static) -> Self {
        let target = Target {
            queued: Cell::new(false),
            coalesce: Cell::new(true),
            call: Box::new(call),
        };
        Self {
            target: Rc::new(target),
        }
    }

    /// Runs the call at the end of the outermost open scope of this thread, or right now if there is none.
    ///
    /// A call deferred from within a deferred call joins the next batch of the same end; one that defers itself each
    /// time never lets the scope end.
    pub fn defer(&self) {
        QUEUE.with(|queue| {
            if queue.depth.get() == 0 || !self.target.coalesce.get() {
                (self.target.call)();
            } else if !self.target.queued.replace(true) {
                queue.next.borrow_mut().push(Rc::clone(&self.target));
            }
        });
    }

    /// Switches coalescing of this call on or off, from now on.
    ///
    /// When off, every [`defer`](Self::defer) runs the call at once, inside a scope too: one call per completion, for
    /// measuring what coalescing gains. What is put off already still runs at the end of its scope.
    pub fn set_coalescing(&self, on: bool) {
        self.target.coalesce.set(on);
    }
}

impl fmt::Debug for DeferredCall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeferredCall")
            .field("queued", &self.target.queued.get())
            .field("coalesce", &self.target.coalesce.get())
            .finish_non_exhaustive()
    }
}

/// While it lives, deferred calls of this thread are put off. Scopes nest; the drop of the outermost runs the calls.
///
/// If deferred calls panic, the others run nevertheless and the first panic goes on from the end of the scope.
#[must_use = "the scope ends when this is dropped"]
#[derive(Debug)]
pub struct DeferScope {
    /// Not `Send`: the scope belongs to its thread.
    _thread: std::marker::PhantomData<*const ()>,
}

impl DeferScope {
    /// Opens a scope on the current thread.
    pub fn enter() -> Self {
        QUEUE.with(|queue| queue.depth.set(queue.depth.get() + 1));
        Self {
            _thread: std::marker::PhantomData,
        }
    }
}

impl Drop for DeferScope {
    fn drop(&mut self) {
        let panic = QUEUE.with(|queue| {
            // The scope stays open while its calls run, so that what they defer is put off as well.
            let panic = if queue.depth.get() == 1 {
                queue.run_all()
            } else {
                None
            };
            queue.depth.set(queue.depth.get() - 1);
            panic
        });
        if let Some(payload) = panic
            && !thread::panicking()
        {
            panic::resume_unwind(payload);
        }
    }
}

impl Queue {
    /// Runs batch after batch until nothing is put off; returns the first panic.
    fn run_all(&self) -> Option<Box<dyn Any + Send>> {
        let mut first_panic = None;
        while !self.next.borrow().is_empty() {
            let mut batch = self.next.replace(self.spare.take());
            for target in batch.drain(..) {
                target.queued.set(false);
                let result = panic::catch_unwind(AssertUnwindSafe(|| (target.call)()));
                first_panic = first_panic.or(result.err());
            }
            self.spare.set(mem::take(&mut batch));
        }
        first_panic
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Log = Rc<RefCell<Vec<&'static str>>>;

    fn logging(log: &Log, name: &'static str) -> DeferredCall {
        let log = Rc::clone(log);
        DeferredCall::new(move || log.borrow_mut().push(name))
    }

    #[test]
    fn outside_a_scope_a_call_runs_at_once() {
        let log = Log::default();
        logging(&log, "a").defer();
        assert_eq!(*log.borrow(), ["a"]);
    }

    #[test]
    fn only_the_outermost_end_runs_what_was_deferred() {
        let log = Log::default();
        let a = logging(&log, "a");
        let outer = DeferScope::enter();
        let inner = DeferScope::enter();
        a.defer();
        drop(inner);
        assert!(log.borrow().is_empty());
        drop(outer);
        assert_eq!(*log.borrow(), ["a"]);
    }

    #[test]
    fn a_call_deferred_twice_runs_once_in_the_order_of_first_deferral() {
        let log = Log::default();
        let (a, b) = (logging(&log, "a"), logging(&log, "b"));
        let scope = DeferScope::enter();
        a.defer();
        b.defer();
        a.defer();
        drop(scope);
        assert_eq!(*log.borrow(), ["a", "b"]);
    }

    #[test]
    fn a_call_can_be_deferred_again_in_the_next_scope() {
        let log = Log::default();
        let a = logging(&log, "a");
        for _ in 0..2 {
            let _scope = DeferScope::enter();
            a.defer();
        }
        assert_eq!(*log.borrow(), ["a", "a"]);
    }

    #[test]
    fn what_a_deferred_call_defers_joins_the_next_batch_of_the_same_end() {
        let log = Log::default();
        let b = logging(&log, "b");
        let late = Rc::new(logging(&log, "late"));
        let a = DeferredCall::new({
            let (log, late) = (Rc::clone(&log), Rc::clone(&late));
            move || {
                let scope = DeferScope::enter();
                late.defer();
                drop(scope);
                log.borrow_mut().push("a");
            }
        });
        let scope = DeferScope::enter();
        a.defer();
        b.defer();
        drop(scope);
        assert_eq!(*log.borrow(), ["a", "b", "late"]);
    }

    #[test]
    fn a_call_may_defer_itself_from_its_own_run() {
        let runs = Rc::new(Cell::new(0));
        let own = Rc::new(RefCell::new(None::<Rc<DeferredCall>>));
        let call = Rc::new(DeferredCall::new({
            let (runs, own) = (Rc::clone(&runs), Rc::clone(&own));
            move || {
                runs.set(runs.get() + 1);
                if runs.get() < 3 {
                    own.borrow().as_ref().expect("set below").defer();
                }
            }
        }));
        own.replace(Some(Rc::clone(&call)));
        let scope = DeferScope::enter();
        call.defer();
        drop(scope);
        assert_eq!(runs.get(), 3);
        own.take();
    }

    #[test]
    fn with_coalescing_off_every_deferral_runs_at_once() {
        let log = Log::default();
        let a = logging(&log, "a");
        a.set_coalescing(false);
        let scope = DeferScope::enter();
        a.defer();
        a.defer();
        assert_eq!(*log.borrow(), ["a", "a"]);
        a.set_coalescing(true);
        a.defer();
        a.defer();
        drop(scope);
        assert_eq!(*log.borrow(), ["a", "a", "a"]);
    }

    #[test]
    fn a_call_dropped_while_put_off_still_runs() {
        let log = Log::default();
        let scope = DeferScope::enter();
        logging(&log, "a").defer();
        drop(scope);
        assert_eq!(*log.borrow(), ["a"]);
    }

    #[test]
    fn a_panic_in_one_call_keeps_no_other_from_running_and_leaves_no_scope_open() {
        let log = Log::default();
        let (bad, good) = (DeferredCall::new(|| panic!("bad")), logging(&log, "good"));
        let result = panic::catch_unwind(AssertUnwindSafe(|| {
            let _scope = DeferScope::enter();
            bad.defer();
            good.defer();
        }));
        assert!(result.is_err());
        assert_eq!(*log.borrow(), ["good"]);
        good.defer();
        assert_eq!(log.borrow().len(), 2, "no scope is open any more");
    }

    #[test]
    fn a_scope_that_ends_in_a_panic_runs_what_was_deferred() {
        let log = Log::default();
        let a = logging(&log, "a");
        let result = panic::catch_unwind(AssertUnwindSafe(|| {
            let _scope = DeferScope::enter();
            a.defer();
            panic!("in the scope");
        }));
        assert!(result.is_err());
        assert_eq!(*log.borrow(), ["a"]);
    }
}

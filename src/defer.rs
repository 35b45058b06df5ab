//! defer-call scopes: work that is needed only once per batch is deferred to the end of the batch.
//!
//! Code that processes several things in a row (completions, the requests of one kick) holds a [`DeferScope`]. Code
//! that wants something done afterwards, such as a used buffer notification, [defers](DeferredCall::defer) it. The two
//! need not know of each other: outside any scope a deferred call runs at once.
//!
//! Everything here belongs to one thread and takes no lock. In the steady state nothing is allocated.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::panic::{self, AssertUnwindSafe};
use std::rc::Rc;
use std::{fmt, thread};

thread_local! {
    static QUEUE: Queue = const {
        Queue {
            depth: Cell::new(0),
            weight: Cell::new(0),
            next: RefCell::new(Vec::new()),
            spare: Cell::new(Vec::new()),
        }
    };
}

/// The weight of a batch that is run before the outermost scope ends.
pub const ENOUGH: usize = 128 << 10;

/// The deferred calls of the current thread.
struct Queue {
    /// The number of open scopes.
    depth: Cell<usize>,
    /// The weight of the batch: see [`DeferScope::weigh`].
    weight: Cell<usize>,
    /// The batch being collected, in the order of first deferral.
    next: RefCell<Vec<Rc<Target>>>,
    /// The last batch's storage, kept for its capacity.
    spare: Cell<Vec<Rc<Target>>>,
}

struct Target {
    /// The target is in `Queue::next`.
    queued: Cell<bool>,
    coalesce: Cell<bool>,
    call: Box<dyn Fn()>,
}

/// A call that can be deferred to the end of the outermost scope. There it runs once, however often it was deferred.
///
/// A deferred call belongs to the thread that made it. If it is dropped while deferred, it still runs.
pub struct DeferredCall {
    target: Rc<Target>,
}

impl DeferredCall {
    /// Makes `call` deferrable. Coalescing is on.
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
    /// If a deferred call defers another call, that one joins the next batch at the end of the same scope. A call that
    /// defers itself on every run never lets the scope end.
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
    /// When off, every [`defer`](Self::defer) runs the call at once, even inside a scope. This makes one call per
    /// completion, to measure what coalescing gains. A call already deferred still runs at the end of its scope.
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

/// A scope that defers calls on this thread while it lives. Scopes nest; dropping the outermost one runs the calls.
///
/// If a deferred call panics, the other calls still run. The first panic then resumes at the end of the scope.
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

    /// Announces work of this weight, whose calls will be deferred. Calls that were deferred before run first if the batch
    /// would weigh more than [`ENOUGH`].
    ///
    /// A batch that weighs so much is run at the end of this scope, also if there is one scope around it.
    pub fn weigh(&self, weight: usize) {
        QUEUE.with(|queue| {
            let is_empty = queue.next.borrow().is_empty();
            if !is_empty && queue.weight.get() + weight > ENOUGH {
                resume(queue.run_all());
            }
            queue.weight.set(queue.weight.get() + weight);
        });
    }
}

impl Drop for DeferScope {
    fn drop(&mut self) {
        let panic = QUEUE.with(|queue| {
            // The scope stays open while its calls run, so that the calls they defer are deferred too.
            let panic = match queue.depth.get() {
                1 => queue.run_all(),
                2 if queue.weight.get() >= ENOUGH => queue.run_all(),
                _ => None,
            };
            queue.depth.set(queue.depth.get() - 1);
            panic
        });
        resume(panic);
    }
}

/// Resumes a panic, unless the thread is panicking already.
fn resume(panic: Option<Box<dyn Any + Send>>) {
    if let Some(payload) = panic
        && !thread::panicking()
    {
        panic::resume_unwind(payload);
    }
}

impl Queue {
    /// Runs batch after batch until no call is deferred. Returns the first panic.
    fn run_all(&self) -> Option<Box<dyn Any + Send>> {
        let mut first_panic = None;
        self.weight.set(0);
        while !self.next.borrow().is_empty() {
            let mut batch = self.next.replace(self.spare.take());
            for target in batch.drain(..) {
                target.queued.set(false);
                let result = panic::catch_unwind(AssertUnwindSafe(|| (target.call)()));
                first_panic = first_panic.or(result.err());
            }
            self.spare.set(batch);
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
    fn calls_outside_a_scope_run_at_once() {
        let log = Log::default();
        logging(&log, "a").defer();
        assert_eq!(*log.borrow(), ["a"]);
    }

    #[test]
    fn only_the_outermost_scope_runs_deferred_calls() {
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
    fn calls_run_once_in_order_of_first_deferral() {
        let log = Log::default();
        let (a, b) = (logging(&log, "a"), logging(&log, "b"));
        let scope = DeferScope::enter();
        a.defer();
        b.defer();
        a.defer();
        drop(scope);
        assert_eq!(*log.borrow(), ["a", "b"]);
    }

    /// Enters a scope, announces work of this weight, and defers a call.
    fn weighed(weight: usize, call: &DeferredCall) {
        let scope = DeferScope::enter();
        scope.weigh(weight);
        call.defer();
    }

    #[test]
    fn a_heavy_batch_does_not_wait_for_the_outermost_scope() {
        let log = Log::default();
        let (a, b) = (logging(&log, "a"), logging(&log, "b"));
        let _scope = DeferScope::enter();
        for expected in [&["a", "b"][..], &["a", "b", "a", "b"]] {
            weighed(ENOUGH / 2, &a);
            assert!(log.borrow().len() < expected.len() - 1);
            weighed(ENOUGH / 2, &b);
            assert_eq!(*log.borrow(), expected);
        }
    }

    #[test]
    fn heavy_work_does_not_delay_earlier_calls() {
        let log = Log::default();
        let (a, b) = (logging(&log, "a"), logging(&log, "b"));
        let outer = DeferScope::enter();
        weighed(1, &a);
        assert!(log.borrow().is_empty());
        let inner = DeferScope::enter();
        inner.weigh(ENOUGH);
        assert_eq!(*log.borrow(), ["a"]);
        b.defer();
        assert_eq!(*log.borrow(), ["a"]);
        drop(inner);
        assert_eq!(*log.borrow(), ["a", "b"]);
        drop(outer);
        assert_eq!(log.borrow().len(), 2);
    }

    #[test]
    fn the_next_scope_can_defer_a_call_again() {
        let log = Log::default();
        let a = logging(&log, "a");
        for _ in 0..2 {
            let _scope = DeferScope::enter();
            a.defer();
        }
        assert_eq!(*log.borrow(), ["a", "a"]);
    }

    #[test]
    fn calls_deferred_by_calls_join_the_next_batch() {
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
    fn a_call_may_defer_itself() {
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
    fn without_coalescing_every_deferral_runs_at_once() {
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
    fn a_call_dropped_while_deferred_still_runs() {
        let log = Log::default();
        let scope = DeferScope::enter();
        logging(&log, "a").defer();
        drop(scope);
        assert_eq!(*log.borrow(), ["a"]);
    }

    #[test]
    fn after_a_panic_other_calls_still_run() {
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
    fn a_panicking_scope_still_runs_deferred_calls() {
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

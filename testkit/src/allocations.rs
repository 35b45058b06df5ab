//! A global allocator that counts allocations.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The system's allocator. A test program that counts makes this its global allocator.
#[derive(Debug)]
pub struct Counting;

static TOTAL: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    static COUNT: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: the system's allocator does all the work. Counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.with(|count| count.set(count.get() + 1));
        TOTAL.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller keeps the contract, which is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract, which is the same.
        unsafe { System.dealloc(ptr, layout) }
    }
}

/// Returns the number of allocations by the calling thread.
pub fn of_this_thread() -> usize {
    COUNT.get()
}

/// Returns the number of allocations by all threads.
pub fn of_all_threads() -> usize {
    TOTAL.load(Ordering::Relaxed)
}

/// Runs rounds until several of them in a row allocate nothing, by `count`. Before, lists grow whenever more requests
/// than ever before are in them. Returns false if each of these series has allocated something.
pub fn settle(count: impl Fn() -> usize, mut round: impl FnMut()) -> bool {
    (0..200).any(|_| {
        let before = count();
        (0..20).for_each(|_| round());
        count() == before
    })
}

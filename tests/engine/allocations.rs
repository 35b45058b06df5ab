//! Splitting requests allocates nothing. A global allocator counts the allocations of each thread.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::rc::Rc;

use vhost_user_blk::io::{IoOp, Requests, Splitter};

use crate::split::{Back, request};

struct Counting;

thread_local! {
    static COUNT: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: the system's allocator does all the work. Counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.with(|count| count.set(count.get() + 1));
        // SAFETY: the caller keeps the contract, which is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract, which is the same.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn splitting_allocates_nothing_once_warm() {
    let (splitter, back) = (Splitter::new(), Rc::<Back>::default());
    let mut memory: Vec<Vec<Vec<u8>>> = (0..8).map(|_| vec![vec![0; 512]; 20]).collect();
    let mut parents: Requests = memory
        .iter_mut()
        .map(|memory| request(IoOp::Read, 0, memory, &back))
        .collect();
    let mut children = Requests::new();
    let mut round = || {
        for mut parent in parents.drain(..) {
            parent.set_completer(Rc::clone(&back) as _);
            let split = splitter.split(parent);
            // Groups of twenty ranges, which do not fit into a list without allocating.
            for at in (0..20).map(|n| n * 512) {
                children.push(split.child(at, 512));
            }
            let mut group = split.child(0, 10240);
            group.absorb(split.child(0, 10240));
            children.push(group);
        }
        children.drain(..).for_each(|child| child.finish());
        while back.count() > 0 {
            parents.push(back.take_one());
        }
        assert_eq!(parents.len(), 8);
    };
    round();
    // Boxes are not reused in the order in which they were taken. Repeat until each one has held the longest list.
    (0..200).for_each(|_| round());
    let before = COUNT.get();
    (0..50).for_each(|_| round());
    assert_eq!(COUNT.get(), before);
}

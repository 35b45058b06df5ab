//! Requests below requests: a parent is cut into children, and completes when the last of them has.
//!
//! Formats that map, mirrors and fault injection need this: what arrives as one request goes down as several. A parent
//! waits in a slot; each child knows its slot, so that no map is searched. Boxes and slots are recycled: once as many were
//! in use at the same time as ever will be, nothing is allocated.

use std::cell::RefCell;
use std::io;
use std::rc::{Rc, Weak};

use send_wrapper::SendWrapper;

use super::{Completer, IoRequest, IoVecs, Requests};

/// Cuts requests into children and puts their results together. IOThread only.
#[derive(Debug)]
pub struct Splitter {
    me: Weak<Self>,
    slots: RefCell<Slots>,
}

#[derive(Debug, Default)]
struct Slots {
    slots: Vec<Slot>,
    /// Slots without a parent.
    free: Vec<usize>,
    /// Idle children.
    children: Requests,
}

/// A parent that waits for its children.
#[derive(Debug)]
struct Slot {
    parent: Option<Box<IoRequest>>,
    /// Children that are out, and one more while the parent is still being cut.
    left: usize,
    /// The first error of a child.
    error: Option<io::Error>,
}

/// A child's hold on its parent: as long as this exists, the parent stays in its slot.
#[derive(Debug)]
pub(super) struct Parent {
    splitter: SendWrapper<Rc<Splitter>>,
    slot: usize,
}

impl Parent {
    /// Calls `f` with the memory of the parent.
    pub(super) fn with_memory(&self, f: impl FnOnce(&IoVecs)) {
        let slots = self.splitter.slots.borrow();
        let parent = slots.slots[self.slot].parent.as_ref();
        f(parent.expect("it waits for its children").alone());
    }
}

impl Splitter {
    /// Makes a splitter without parents.
    pub fn new() -> Rc<Self> {
        Rc::new_cyclic(|me| Self {
            me: Weak::clone(me),
            slots: RefCell::default(),
        })
    }

    /// Takes over `parent`, which comes back to its completer when the returned [`Split`] is dropped and every child made
    /// with it is back. The first error of a child is the parent's result.
    ///
    /// # Panics
    /// If `parent` carries followers: each of them needs a result of its own.
    pub fn split(&self, parent: Box<IoRequest>) -> Split {
        assert!(!parent.is_merged(), "followers need results of their own");
        let mut slots = self.slots.borrow_mut();
        let slot = slots.free.pop().unwrap_or_else(|| {
            slots.slots.push(Slot {
                parent: None,
                left: 0,
                error: None,
            });
            slots.slots.len() - 1
        });
        slots.slots[slot].parent = Some(parent);
        slots.slots[slot].left = 1;
        let splitter = self.me.upgrade().expect("called on a live splitter");
        Split { splitter, slot }
    }

    /// The number of parents that wait.
    pub fn waiting(&self) -> usize {
        let slots = self.slots.borrow();
        slots.slots.len() - slots.free.len()
    }

    fn child(&self, parent: Parent, at: usize, len: usize) -> Box<IoRequest> {
        let mut slots = self.slots.borrow_mut();
        let mut child = slots.children.pop().unwrap_or_default();
        let slot = &mut slots.slots[parent.slot];
        slot.left += 1;
        let parent_request = slot.parent.as_ref().expect("it is being cut");
        (child.op, child.token) = (parent_request.op, parent_request.token);
        child.offset = parent_request.offset.saturating_add(at as u64);
        child.ranges.clear();
        child.result = Ok(());
        drop(slots);
        child.become_part(parent, at, len);
        child.set_completer(self.me.upgrade().expect("called on a live splitter"));
        child
    }

    /// One of those that a parent waits for is over; `error` is its result if it failed.
    fn end_one(&self, index: usize, error: Option<io::Error>) {
        let mut slots = self.slots.borrow_mut();
        let slot = &mut slots.slots[index];
        slot.left -= 1;
        if slot.error.is_none() {
            slot.error = error;
        }
        if slot.left > 0 {
            return;
        }
        let result = slot.error.take().map_or(Ok(()), Err);
        let parent = slot.parent.take();
        slots.free.push(index);
        drop(slots);
        if let Some(mut parent) = parent {
            parent.result = result;
            parent.finish();
        }
    }
}

impl Completer for Splitter {
    fn complete(&self, mut child: Box<IoRequest>) {
        let parent = child.leave_parent().expect("only children have this completer");
        assert!(
            std::ptr::eq(&raw const **parent.splitter, self),
            "a child of another splitter"
        );
        let error = std::mem::replace(&mut child.result, Ok(())).err();
        self.slots.borrow_mut().children.push(child);
        self.end_one(parent.slot, error);
    }
}

/// A parent that is being cut. Dropping it ends that: without children the parent then comes back at once.
#[derive(Debug)]
pub struct Split {
    splitter: Rc<Splitter>,
    slot: usize,
}

impl Split {
    /// Makes a child that is about `len` bytes of the parent, from its byte `at` on: it has that part of the memory, and
    /// the operation, token and place of the parent. Operation, place and ranges may be changed.
    pub fn child(&self, at: usize, len: usize) -> Box<IoRequest> {
        let parent = Parent {
            splitter: SendWrapper::new(Rc::clone(&self.splitter)),
            slot: self.slot,
        };
        self.splitter.child(parent, at, len)
    }

    /// Has the parent fail with `error`, unless a child has failed before.
    pub fn fail(&self, error: io::Error) {
        let mut slots = self.splitter.slots.borrow_mut();
        slots.slots[self.slot].error.get_or_insert(error);
    }

    /// Looks at the parent.
    pub fn with_parent<T>(&self, f: impl FnOnce(&IoRequest) -> T) -> T {
        let slots = self.splitter.slots.borrow();
        f(slots.slots[self.slot].parent.as_ref().expect("it is being cut"))
    }
}

impl Drop for Split {
    fn drop(&mut self) {
        self.splitter.end_one(self.slot, None);
    }
}

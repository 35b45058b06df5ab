//! Parents and children: a parent request is split into children, and completes with the last of them.
//!
//! Image formats, mirrors and fault injection turn one request into several for the layer below. A parent waits in a
//! slot. Each child knows the slot, so no map is searched. Boxes and slots are recycled, so nothing is allocated once
//! the splitter has warmed up.

use std::cell::RefCell;
use std::io;
use std::rc::{Rc, Weak};

use send_wrapper::SendWrapper;

use super::request::{Completer, IoRequest, Parent, Requests};

/// Splits requests into children and combines their results. IOThread only.
#[derive(Debug)]
pub struct Splitter {
    me: Weak<Self>,
    slots: RefCell<Slots>,
}

#[derive(Debug, Default)]
struct Slots {
    slots: Vec<Slot>,
    /// Indices of the slots without a parent.
    free: Vec<usize>,
    /// Idle children.
    children: Requests,
}

/// The place of a parent that waits for its children.
#[derive(Debug)]
struct Slot {
    parent: Option<Box<IoRequest>>,
    /// Number of children in flight, plus one while the parent is still being split.
    left: usize,
    /// The first error of a child.
    error: Option<io::Error>,
}

impl Splitter {
    /// Creates a splitter without parents.
    pub fn new() -> Rc<Self> {
        Rc::new_cyclic(|me| Self {
            me: Weak::clone(me),
            slots: RefCell::default(),
        })
    }

    /// Takes over `parent`. It completes once the returned [`Split`] is dropped and every child made with it has
    /// completed. The first error of a child is the parent's result.
    ///
    /// # Panics
    /// `parent` has followers: each of them would need a result of its own.
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

    /// Returns the number of parents that wait.
    pub fn waiting(&self) -> usize {
        let slots = self.slots.borrow();
        slots.slots.len() - slots.free.len()
    }

    fn child(&self, parent: Parent, at: usize, len: usize) -> Box<IoRequest> {
        let mut slots = self.slots.borrow_mut();
        let mut child = slots.children.pop().unwrap_or_default();
        let slot = &mut slots.slots[parent.slot];
        slot.left += 1;
        let parent_request = slot.parent.as_ref().expect("the parent is being split");
        (child.op, child.token) = (parent_request.op, parent_request.token);
        child.offset = parent_request.offset.saturating_add(at as u64);
        child.ranges.clear();
        child.result = Ok(());
        // SAFETY: the parent waits in this slot, without followers, until its last child has left it.
        unsafe { child.become_part(parent, parent_request.alone(), at, len) };
        drop(slots);
        child.set_completer(self.me.upgrade().expect("called on a live splitter"));
        child
    }

    /// Records that a child has completed, or that the parent has been split. `error` is the child's error, if it
    /// failed.
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
            std::ptr::addr_eq(Rc::as_ptr(&parent.splitter), self),
            "a child of another splitter"
        );
        let error = std::mem::replace(&mut child.result, Ok(())).err();
        self.slots.borrow_mut().children.push(child);
        self.end_one(parent.slot, error);
    }
}

/// A parent that is being split, until this is dropped. Without children the parent then completes at once.
#[derive(Debug)]
pub struct Split {
    splitter: Rc<Splitter>,
    slot: usize,
}

impl Split {
    /// Creates a child for `len` bytes of the parent from byte `at` on. It has this part of the memory, and the
    /// operation, token and offset of the parent. The caller may change operation, offset and ranges.
    pub fn child(&self, at: usize, len: usize) -> Box<IoRequest> {
        let parent = Parent {
            splitter: SendWrapper::new(Rc::clone(&self.splitter) as _),
            slot: self.slot,
        };
        self.splitter.child(parent, at, len)
    }

    /// Makes the parent fail with `error`, unless a child has failed before.
    pub fn fail(&self, error: io::Error) {
        let mut slots = self.splitter.slots.borrow_mut();
        slots.slots[self.slot].error.get_or_insert(error);
    }

    /// Calls `f` with the parent.
    pub fn with_parent<T>(&self, f: impl FnOnce(&IoRequest) -> T) -> T {
        let slots = self.splitter.slots.borrow();
        f(slots.slots[self.slot]
            .parent
            .as_ref()
            .expect("the parent is being split"))
    }
}

impl Drop for Split {
    fn drop(&mut self) {
        self.splitter.end_one(self.slot, None);
    }
}

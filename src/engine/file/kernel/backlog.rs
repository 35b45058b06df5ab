//! Requests that wait for room in the kernel, by file. IOThread only.
//!
//! A quarter of the room is divided evenly between all files, and kept for them. Of the rest, a file may have as much as is
//! left. So a file that does not answer leaves nearly half of the room to others, and any number of such files leave the
//! part of each other file.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

use crate::io::{IoRequest, Requests};

/// A file's part of the queue.
#[derive(Debug, Default)]
pub(super) struct Part {
    waiting: RefCell<VecDeque<Box<IoRequest>>>,
    /// Requests in the kernel.
    in_flight: Cell<usize>,
}

impl Part {
    pub(super) fn begin(&self) {
        self.in_flight.set(self.in_flight.get() + 1);
    }

    pub(super) fn end(&self) {
        self.in_flight.set(self.in_flight.get() - 1);
    }
}

/// The room in the kernel.
#[derive(Clone, Copy, Debug)]
pub(super) struct Room {
    pub(super) capacity: usize,
    pub(super) left: usize,
    /// The files that share it.
    pub(super) files: usize,
}

impl Room {
    /// Returns whether a file that has this number of requests in the kernel may have another one.
    fn has_place_for(&self, in_flight: usize) -> bool {
        let part = self.capacity / (4 * self.files);
        let left = self.left.saturating_sub(part * self.files);
        self.files == 1 || in_flight < part || in_flight - part < left
    }
}

/// The files that have waiting requests, in the order of their turns.
#[derive(Debug)]
pub(super) struct Backlog<F> {
    files: VecDeque<Rc<F>>,
}

impl<F> Default for Backlog<F> {
    fn default() -> Self {
        Self {
            files: VecDeque::new(),
        }
    }
}

impl<F: AsRef<Part>> Backlog<F> {
    /// Adds requests that `chosen` selects from a batch.
    pub(super) fn take_from(
        &mut self,
        file: &Rc<F>,
        batch: &mut Requests,
        chosen: impl Fn(&IoRequest) -> bool,
    ) {
        let mut waiting = file.as_ref().as_ref().waiting.borrow_mut();
        let waited = !waiting.is_empty();
        waiting.extend(batch.extract_if(.., |request| chosen(request)));
        if !waited && !waiting.is_empty() {
            self.files.push_back(Rc::clone(file));
        }
    }

    /// Takes a request that has room, of the file whose turn it is.
    pub(super) fn next(&mut self, room: Room) -> Option<(Rc<F>, Box<IoRequest>)> {
        if room.left == 0 {
            return None;
        }
        let may_go = |file: &Rc<F>| room.has_place_for(file.as_ref().as_ref().in_flight.get());
        let turn = self.files.iter().position(may_go)?;
        let file = self.files.remove(turn)?;
        let mut waiting = file.as_ref().as_ref().waiting.borrow_mut();
        let request = waiting.pop_front()?;
        if !waiting.is_empty() {
            self.files.push_back(Rc::clone(&file));
        }
        drop(waiting);
        Some((file, request))
    }

    /// Takes back a request that was taken just now.
    pub(super) fn put_back(&mut self, file: Rc<F>, request: Box<IoRequest>) {
        let mut waiting = file.as_ref().as_ref().waiting.borrow_mut();
        let waited = !waiting.is_empty();
        waiting.push_front(request);
        drop(waiting);
        if !waited {
            self.files.push_front(file);
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        let waiting = |file: &Rc<F>| file.as_ref().as_ref().waiting.borrow().len();
        self.files.iter().map(waiting).sum()
    }
}

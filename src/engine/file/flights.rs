//! Requests in the kernel.

/// Requests that were prepared and not reaped yet, indexed by the number that comes back with each completion.
#[derive(Debug)]
pub(super) struct Flights<T> {
    slots: Vec<Option<T>>,
    free: Vec<usize>,
    pub(super) count: usize,
}

impl<T> Default for Flights<T> {
    fn default() -> Self {
        Self {
            slots: Vec::new(),
            free: Vec::new(),
            count: 0,
        }
    }
}

impl<T> Flights<T> {
    /// Keeps a request in place until [`end`](Self::end) is called with the returned number.
    pub(super) fn begin(&mut self, pending: T) -> usize {
        self.count += 1;
        match self.free.pop() {
            Some(number) => {
                self.slots[number] = Some(pending);
                number
            }
            None => {
                self.slots.push(Some(pending));
                self.slots.len() - 1
            }
        }
    }

    pub(super) fn end(&mut self, number: usize) -> T {
        self.count -= 1;
        self.free.push(number);
        self.slots[number].take().expect("each request completes once")
    }

    pub(super) fn get(&self, number: usize) -> &T {
        self.slots[number].as_ref().expect("the request has just begun")
    }
}

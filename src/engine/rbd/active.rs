//! The requests of a link that are not over. IOThread only.

use std::io;

use crate::io::{IoOp, IoRequest, Requests};

/// All requests of a link.
#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) places: Vec<Place>,
    pub(super) free: Vec<usize>,
    /// Requests that are over.
    pub(super) done: Requests,
}

/// A place for a request.
#[derive(Debug, Default)]
pub(super) struct Place {
    /// Counts the requests that have had this place.
    pub(super) generation: u64,
    pub(super) active: Option<Active>,
}

/// A request and the progress of its operations.
#[derive(Debug)]
pub(super) struct Active {
    pub(super) request: Box<IoRequest>,
    /// The channel that has submitted it.
    pub(super) channel: u64,
    /// Number of its operations that are not over yet.
    pub(super) left: u32,
    /// The first error.
    pub(super) error: Option<i32>,
    /// After the last operation, a flush makes the data stable.
    pub(super) flush_after: bool,
    /// Its ring stops.
    pub(super) stopping: bool,
}

impl Active {
    /// Takes the result of an operation.
    pub(super) fn take(&self, buffer: &[u8], result: i64) -> Result<(), i32> {
        if result < 0 {
            return Err(i32::try_from(-result).unwrap_or(libc::EIO));
        }
        let is_read = matches!(self.request.op, IoOp::Read | IoOp::Salvage);
        if !is_read {
            return Ok(());
        }
        if usize::try_from(result) != Ok(buffer.len()) {
            return Err(libc::EIO);
        }
        self.request.whole().write_at(0, buffer);
        Ok(())
    }
}

impl State {
    /// Returns the number of requests that are not over.
    pub(super) fn len(&self) -> usize {
        self.places.len() - self.free.len()
    }

    pub(super) fn actives(&mut self) -> impl Iterator<Item = &mut Active> {
        self.places.iter_mut().filter_map(|place| place.active.as_mut())
    }

    pub(super) fn insert(&mut self, request: Box<IoRequest>, channel: u64) -> usize {
        let place = self.free.pop().unwrap_or_else(|| {
            self.places.push(Place::default());
            self.places.len() - 1
        });
        self.places[place].active = Some(Active {
            request,
            channel,
            left: 0,
            error: None,
            flush_after: false,
            stopping: false,
        });
        place
    }

    pub(super) fn request(&self, place: usize) -> Option<&IoRequest> {
        self.places[place].active.as_ref().map(|active| &*active.request)
    }

    pub(super) fn flush_after(&mut self, place: usize, durable: bool) {
        if let Some(active) = &mut self.places[place].active {
            active.flush_after = durable;
        }
    }

    /// Ends a request.
    pub(super) fn end(&mut self, place: usize, error: Option<i32>) {
        let Some(Active { mut request, .. }) = self.places[place].active.take() else {
            return;
        };
        self.places[place].generation += 1;
        self.free.push(place);
        request.result = match error {
            None => Ok(()),
            Some(errno) => Err(io::Error::from_raw_os_error(errno)),
        };
        if request.op == IoOp::Salvage {
            request.op = IoOp::Read;
            if request.result.is_err() && error != Some(libc::ECANCELED) {
                request.whole().write_zeroes();
                request.result = Ok(());
            }
        }
        self.done.push(request);
    }
}

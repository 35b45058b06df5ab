//! Calls that are over, kept for the next operations of a link, with their buffers. IOThread only.

use std::sync::Arc;

use super::mailbox::{Mailbox, Transfer};
use crate::ceph::{Call, Image};

/// The largest sum of the buffers that are kept, in bytes.
const KEPT_MAX: usize = 1 << 20;
/// The memory of a call without its buffer, roughly, in bytes.
const CALL: usize = 128;

/// The spare calls of a link.
#[derive(Default)]
pub(super) struct Spares {
    #[allow(clippy::vec_box, reason = "librbd gets their addresses")]
    calls: Vec<Box<Call<Transfer>>>,
    /// The memory of all of them.
    bytes: usize,
}

impl Spares {
    /// Returns a call for an operation of the request `owner`, with a buffer of `len` bytes.
    pub(super) fn take(
        &mut self,
        image: &Arc<Image>,
        mailbox: &Arc<Mailbox>,
        owner: (usize, u64),
        len: usize,
    ) -> Box<Call<Transfer>> {
        match self.calls.pop() {
            Some(mut call) => {
                self.bytes -= size(&call);
                call.completion.reuse(owner, len);
                call
            }
            None => Call::new(image, Transfer::new(mailbox, owner, len)),
        }
    }

    /// Keeps a call that is over, if there is room.
    pub(super) fn put(&mut self, call: Box<Call<Transfer>>) {
        let size = size(&call);
        if self.bytes + size <= KEPT_MAX {
            self.bytes += size;
            self.calls.push(call);
        }
    }
}

fn size(call: &Call<Transfer>) -> usize {
    CALL + call.completion.capacity()
}

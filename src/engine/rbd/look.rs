//! Reads of an image before an IOThread uses it. On the thread that opens the disk, which waits with a limit.

use std::sync::Arc;
use std::sync::mpsc::{self, SyncSender};
use std::time::Duration;

use crate::ceph::{Completion, Image, Operation};

/// The longest wait for the cluster.
const LOOK_TIME: Duration = Duration::from_secs(5);

/// A read, and the thread that waits for it.
struct Look {
    buffer: Vec<u8>,
    reply: SyncSender<Option<Vec<u8>>>,
}

impl Completion for Look {
    fn buffer(&mut self) -> &mut [u8] {
        &mut self.buffer
    }

    fn complete(self: Box<Self>, result: i64) {
        let whole = usize::try_from(result) == Ok(self.buffer.len());
        // The thread may have stopped waiting.
        let _ = self.reply.try_send(whole.then_some(self.buffer));
    }
}

/// Reads a range. Returns `None` if the cluster cannot, or does not answer.
pub(super) fn read(image: &Arc<Image>, offset: u64, len: u32) -> Option<Vec<u8>> {
    let (reply, answer) = mpsc::sync_channel(1);
    let (buffer, owner) = (vec![0; len as usize], Arc::clone(image));
    let start = move |_: &Image| owner.start(Operation::Read { offset }, Box::new(Look { buffer, reply }));
    image.run(LOOK_TIME, start)?.ok()?;
    answer.recv_timeout(LOOK_TIME).ok()?
}

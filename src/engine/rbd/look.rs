//! Reads of an image before an IOThread uses it. On the thread that opens the disk, which waits with a limit.

use std::sync::Arc;
use std::sync::mpsc::{self, SyncSender};
use std::time::Duration;

use crate::ceph::{Call, Completion, Image, Operation};

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

    fn complete(call: Box<Call<Self>>, result: i64) {
        let Self { buffer, reply } = call.completion;
        let whole = usize::try_from(result) == Ok(buffer.len());
        // The thread may have stopped waiting.
        let _ = reply.try_send(whole.then_some(buffer));
    }
}

/// Reads a range. Returns `None` if the cluster cannot, or does not answer.
pub(super) fn read(image: &Arc<Image>, offset: u64, len: u32) -> Option<Vec<u8>> {
    let (reply, answer) = mpsc::sync_channel(1);
    let buffer = vec![0; len as usize];
    let call = Call::new(image, Look { buffer, reply });
    let start = move |_: &Image| call.start(Operation::Read { offset }).map_err(|(_, code)| code);
    image.run(LOOK_TIME, start)?.ok()?;
    answer.recv_timeout(LOOK_TIME).ok()?
}

//! Reads of an image before an IOThread uses it. On the thread that opens the disk, which waits with a limit.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError, SyncSender};
use std::time::{Duration, Instant};

use crate::ceph::{Call, Completion, Image, Operation};
use crate::interrupt;

/// The longest wait for the cluster.
const LOOK_TIME: Duration = Duration::from_secs(5);

/// The time after which a wait looks whether the process has to end.
const GLANCE: Duration = Duration::from_millis(100);

/// A read, and the thread that waits for it.
struct Look {
    buffer: Vec<u8>,
    reply: SyncSender<Result<Vec<u8>, String>>,
}

impl Completion for Look {
    fn buffer(&mut self) -> &mut [u8] {
        &mut self.buffer
    }

    fn complete(call: Box<Call<Self>>, result: i64) {
        let Self { buffer, reply } = call.completion;
        let answer = match i32::try_from(result) {
            Ok(code @ ..0) => Err(text(code)),
            _ if usize::try_from(result) == Ok(buffer.len()) => Ok(buffer),
            _ => Err("the image ends there".to_owned()),
        };
        // The thread may have stopped waiting.
        let _ = reply.try_send(answer);
    }
}

fn text(code: i32) -> String {
    let error = io::Error::from_raw_os_error(-code);
    format!("the cluster cannot read it: {error}")
}

/// Reads a range.
///
/// # Errors
/// The cluster cannot, or does not answer, or a signal ends the process.
pub(super) fn read(image: &Arc<Image>, offset: u64, len: u32) -> Result<Vec<u8>, String> {
    let (reply, answer) = mpsc::sync_channel(1);
    let buffer = vec![0; len as usize];
    let call = Call::new(image, Look { buffer, reply });
    let start = move |_: &Image| call.start(Operation::Read { offset }).map_err(|(_, code)| code);
    let silent = || match interrupt::is_requested() {
        true => interrupt::TOLD,
        false => "the cluster does not answer",
    };
    let started = image.run_unless_interrupted(LOOK_TIME, start);
    started.ok_or_else(silent)?.map_err(text)?;
    let end = Instant::now() + LOOK_TIME;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        match answer.recv_timeout(left.min(GLANCE)) {
            Err(RecvTimeoutError::Timeout) if !left.is_zero() && !interrupt::is_requested() => {}
            answer => return answer.map_err(|_| silent())?,
        }
    }
}

//! The channel for messages from the backend to the frontend (BACKEND_REQ). Its only message says that the
//! configuration has changed.
//!
//! The `vhost` crate takes the channel's socket and cannot send this message on it, so the inbox duplicates the socket
//! before the crate sees it. The control thread sets the channel; any thread may use it.
//!
//! While all rings are stopped, the device is suspended and sends nothing. The message waits for the next start.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::net::{SendFlags, send};

use crate::aio::Gone;
use crate::blk::device::DeviceState;
use crate::engine::{BlockNode, NodeControl, SizeListener};
use crate::io::IoOp;
use crate::log_limit::LogLimit;

/// VHOST_USER_BACKEND_CONFIG_CHANGE_MSG, protocol version 1, without payload and without asking for a reply.
const CONFIG_CHANGE: [u32; 3] = [2, 1, 0];

/// The channel to the connected frontend, if it has set one up. Clones share the channel.
#[derive(Clone, Debug, Default)]
pub struct BackendChannel(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    log: LogLimit,
}

#[derive(Debug, Default)]
struct State {
    peer: Option<Peer>,
    /// At least one ring runs.
    running: bool,
    /// The configuration has changed while no ring was running.
    changed: bool,
}

#[derive(Debug)]
struct Peer {
    socket: File,
    /// Name of the disk, for log lines.
    disk: String,
}

impl BackendChannel {
    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere leaves a valid state.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends messages to this socket from now on, or discards them if it is `None`.
    pub(super) fn set(&self, socket: Option<OwnedFd>, disk: &str) {
        self.lock().peer = socket.map(|socket| Peer {
            socket: socket.into(),
            disk: disk.to_owned(),
        });
    }

    /// Forgets the frontend and any pending message: a new frontend reads the current configuration anyway.
    pub(super) fn reset(&self) {
        *self.lock() = State::default();
    }

    /// Returns the socket, and whether a message is pending, for another process.
    pub(super) fn parked(&self) -> (Option<File>, bool) {
        let state = self.lock();
        let socket = state.peer.as_ref().and_then(|peer| peer.socket.try_clone().ok());
        (socket, state.changed)
    }

    /// Records that no ring runs any more.
    pub(super) fn suspend(&self) {
        self.lock().running = false;
    }

    /// Records that a ring runs, and sends a pending message.
    pub(super) fn resume(&self) {
        let mut state = self.lock();
        state.running = true;
        if std::mem::take(&mut state.changed) {
            state.send(&self.0.log);
        }
    }

    /// Tells the frontend that the configuration space has changed, now or when the next ring starts. Never blocks. Any
    /// thread.
    ///
    /// Without a connected channel nothing is sent: the next frontend reads the configuration anyway.
    pub fn config_changed(&self) {
        let mut state = self.lock();
        match state.running {
            true => state.send(&self.0.log),
            false => state.changed = true,
        }
    }
}

impl State {
    fn send(&self, log: &LogLimit) {
        let Some(Peer { socket, disk }) = &self.peer else {
            return;
        };
        let message = CONFIG_CHANGE.map(u32::to_ne_bytes).concat();
        if let Err(error) = send(socket, &message, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)
            && let Some(suppressed) = log.pass("untold", "")
        {
            // If the socket is full, it already holds such messages.
            tracing::warn!(disk, %error, suppressed, "cannot tell the frontend that the configuration has changed");
        }
    }
}

/// Checks whether the size of a disk has changed, and tells the frontend.
#[derive(Clone, Debug)]
pub struct Resizer {
    state: Arc<DeviceState>,
    control: Arc<NodeControl>,
    channel: BackendChannel,
    /// The size that the frontend was told last. Checks may overlap, and other exports of the node resize it too.
    announced: Arc<AtomicU64>,
    /// Announces sizes that the disk finds by itself.
    listener: Arc<SizeListener>,
}

impl Resizer {
    pub(super) fn new(state: Arc<DeviceState>, control: Arc<NodeControl>, channel: BackendChannel) -> Self {
        let announced = Arc::new(AtomicU64::new(state.below.view().size()));
        let own = (Arc::clone(&state), channel.clone(), Arc::clone(&announced));
        let listener = Arc::new(SizeListener(Box::new(move || announce(&own.0, &own.1, &own.2))));
        state.below.view().node.watch_size(&listener);
        Self {
            announced,
            state,
            control,
            channel,
            listener,
        }
    }

    /// Returns whether this is about that disk.
    pub fn is_of(&self, node: &Arc<BlockNode>) -> bool {
        Arc::ptr_eq(&self.state.below.view().node, node)
    }

    /// Returns whether an operation of a control thread on this disk has not ended, such as a flush. Any thread.
    pub fn is_busy(&self) -> bool {
        self.control.is_busy()
    }

    /// Tells the frontend if the size has changed. Any thread; never waits.
    pub fn announce(&self) {
        // The node may be another one.
        self.state.below.view().node.watch_size(&self.listener);
        announce(&self.state, &self.channel, &self.announced);
    }

    /// Makes an IOThread read the size of the disk again, without waiting for it. Any thread.
    ///
    /// If the size has changed, requests are checked against the new size from then on, and the frontend is told. A size
    /// that is invalid for a disk is logged, and the old size stays.
    ///
    /// # Errors
    /// The IOThread has ended.
    pub fn refresh(&self) -> Result<(), Gone> {
        let (state, channel, announced) = (
            Arc::clone(&self.state),
            self.channel.clone(),
            Arc::clone(&self.announced),
        );
        self.control.submit(IoOp::RefreshSize, move |result| {
            match result {
                Ok(()) => announce(&state, &channel, &announced),
                Err(error) => {
                    let view = state.below.view();
                    let disk = view.node.path().display();
                    tracing::error!(%disk, %error, "new size of the image cannot be used, and the old one stays");
                }
            }
        })
    }
}

fn announce(state: &DeviceState, channel: &BackendChannel, announced: &AtomicU64) {
    let view = state.below.view();
    let (disk, after) = (view.node.path().display(), view.size());
    // Relaxed: no other data depends on this number.
    let before = announced.swap(after, Ordering::Relaxed);
    if after != before {
        tracing::info!(%disk, before, after, "disk resized");
        channel.config_changed();
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn suspended_device_reports_changes_when_it_runs() {
        use std::io::Read;

        let (mut theirs, ours) = UnixStream::pair().unwrap();
        theirs.set_nonblocking(true).unwrap();
        let channel = BackendChannel::default();
        channel.set(Some(ours.into()), "disk.img");
        for _ in 0..2 {
            channel.config_changed();
            channel.config_changed();
            assert!(theirs.read(&mut [0; 24]).is_err());
            channel.resume();
            assert_eq!(theirs.read(&mut [0; 48]).unwrap(), 12, "one message for both");
            channel.suspend();
            channel.resume();
            assert!(theirs.read(&mut [0; 24]).is_err(), "the message is sent once");
            channel.suspend();
        }
    }

    #[test]
    fn deaf_frontend_blocks_nothing() {
        let (theirs, ours) = UnixStream::pair().unwrap();
        let channel = BackendChannel::default();
        channel.config_changed();
        channel.set(Some(ours.into()), "disk.img");
        channel.resume();
        (0..100_000).for_each(|_| channel.config_changed());
        drop(theirs);
        channel.config_changed();
    }
}

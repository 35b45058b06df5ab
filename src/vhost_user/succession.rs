//! A server's part when one process takes over from another: parks its session, or goes on with that of a predecessor.
//!
//! Runs on the disk's control thread.

use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};

use rustix::io::dup3;
use vhost::vhost_user::BackendReqHandler;

use super::error::{SessionError, chain};
use super::handler::Handler;
use super::inheritance::{Inheritance, Legacy};
use super::serve::{count_frontend, lock};
use super::server::{Server, Socket};
use super::session::Session;
use super::session::parked::{Negotiated, ParkError, ParkedDisk, ParkedSession, take_back};
use super::stopper::{Never, Park};
use crate::blk::device::{BlkDevice, DeviceState};
use crate::engine::NodeControl;
use crate::succession::Bundle;

/// Requests of the protocol, with which a session's features are restored.
const GET_FEATURES: u32 = 1;
const SET_FEATURES: u32 = 2;
const SET_PROTOCOL_FEATURES: u32 = 16;
/// Flags of a message: protocol version 1.
const VERSION: u32 = 1;

impl Park {
    /// Answers while no frontend is connected, and waits. Returns if the other process has not taken over.
    pub(super) fn without_session(self, device: &BlkDevice) {
        let mut bundle = Bundle::default();
        let settled = ParkedDisk::settle(device, self.deadline);
        let released = settled.as_ref().is_ok_and(|released| *released);
        let disk = settled.and_then(|released| ParkedDisk::new(device, released, None, &mut bundle));
        self.answer(disk.map(|disk| (disk, bundle)));
        if released {
            take_back(device);
        }
    }

    /// Parks the session of a frontend, and waits. Returns if the other process has not taken over.
    ///
    /// # Errors
    /// The session cannot go on.
    pub(super) fn session(self, socket: &UnixStream, handler: &mut Handler<'_>) -> Result<(), SessionError> {
        let negotiated = Negotiated {
            offered: handler.answers.is_offered(),
            protocol_features: handler.protocol_features,
        };
        let parked = handler.session.park(socket, negotiated, self.deadline);
        self.answer(parked);
        handler.session.unpark()
    }

    fn answer(self, parked: Result<(ParkedDisk, Bundle), ParkError>) {
        if self.parked.send(parked).is_ok() {
            // Ends only with an error.
            let _: Result<Never, _> = self.goes_on.recv();
        }
    }
}

impl Server {
    /// Goes on with the session of a predecessor until the frontend leaves. Returns false if the take-over failed.
    pub(super) fn serve_inherited(&mut self, inheritance: Inheritance, device: &mut BlkDevice) -> bool {
        let (disk, bundle) = match inheritance.legacy.recv() {
            Ok(Legacy::Parked(disk, bundle)) => (disk, bundle),
            Ok(Legacy::Nothing) => {
                begin_anew(device);
                // A connection cannot begin anew. Its end tells the frontend.
                return matches!(self.socket, Socket::Listening(_));
            }
            // Nothing is taken over, and the process ends.
            Err(_) => return false,
        };
        let restored = inheritance.restored.clone();
        match self.go_on(*disk, bundle, device, inheritance) {
            Ok(started) => started,
            Err(error) => {
                // The other end reports it, and then the process ends.
                let _ = restored.send(Err(error));
                false
            }
        }
    }

    fn go_on(
        &mut self,
        disk: ParkedDisk,
        mut bundle: Bundle,
        device: &mut BlkDevice,
        inheritance: Inheritance,
    ) -> Result<bool, ParkError> {
        let Inheritance {
            restored,
            starts,
            negotiation: (ours, mut messages),
            ..
        } = inheritance;
        disk.restore_image(device, &mut bundle)?;
        disk.restore_statistics(device);
        let Some(parked) = disk.session else {
            return Ok(restored.send(Ok(())).is_ok() && starts.recv().is_ok());
        };
        let state = Arc::clone(device.state());
        let socket = UnixStream::from(bundle.take(parked.connection)?);
        let number = ours.as_raw_fd();
        let handler = Handler::new(Session::new(device, self.channel().clone()), &socket);
        let handler = Arc::new(Mutex::new(handler));
        let mut requests = BackendReqHandler::from_stream(ours, Arc::clone(&handler));
        lock(&handler).session.restore_cache(&parked)?;
        negotiate(&mut requests, &mut messages, &parked)?;
        // SAFETY: `requests` owns this descriptor, and is alive. It is not closed here.
        let mut place = ManuallyDrop::new(unsafe { OwnedFd::from_raw_fd(number) });
        dup3(&socket, &mut place, rustix::io::DupFlags::CLOEXEC).map_err(io::Error::from)?;
        lock(&handler).session.restore(&parked, &mut bundle)?;
        if restored.send(Ok(())).is_err() || starts.recv().is_err() {
            return Ok(false);
        }
        lock(&handler).session.start_restored();
        count_frontend(&state, &socket);
        self.serve_to_end(&socket, requests, handler, &state);
        Ok(true)
    }
}

/// Locks the image, as at the start of the process. If others have it, the first ring that starts tries again.
fn begin_anew(device: &BlkDevice) {
    let DeviceState {
        name: disk, below, ..
    } = &**device.state();
    if !below.view().activity.get() {
        return;
    }
    if let Err(error) = device.activate(NodeControl::run) {
        tracing::error!(disk, error = chain(&error), "the image cannot be locked yet");
    }
}

/// Makes the `vhost` crate's part of a connection know the features that the frontend has negotiated, by messages on
/// another connection.
fn negotiate(
    requests: &mut BackendReqHandler<Mutex<Handler<'_>>>,
    messages: &mut UnixStream,
    parked: &ParkedSession,
) -> Result<(), ParkError> {
    let offered = parked.features_offered.then_some((GET_FEATURES, None));
    let acked = (parked.features != 0).then_some((SET_FEATURES, Some(parked.features)));
    let protocol = parked
        .protocol_features
        .map(|features| (SET_PROTOCOL_FEATURES, Some(features)));
    for (request, value) in [offered, protocol, acked].into_iter().flatten() {
        let len: u32 = if value.is_some() { 8 } else { 0 };
        let mut message = [request, VERSION, len].map(u32::to_ne_bytes).concat();
        message.extend(value.into_iter().flat_map(u64::to_ne_bytes));
        io::Write::write_all(messages, &message)?;
        let handled = requests.handle_request();
        handled.map_err(|error| ParkError::Features(error.to_string()))?;
    }
    Ok(())
}

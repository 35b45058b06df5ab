//! The sockets that the process was started with: descriptors that exports name, and those of a service manager.
//!
//! Main thread, before anything is opened.

use std::os::fd::{AsRawFd, OwnedFd};

use crate::daemon::error::Error;
use crate::daemon::registry::SocketError;
use crate::daemon::settings::Settings;
use crate::vhost_user::inherited::{self, InheritedError};

/// The sockets that this process was started with.
#[derive(Debug, Default)]
pub(in crate::daemon) struct Handed {
    pub(super) descriptors: Vec<(String, OwnedFd)>,
    pub(super) activation: Option<OwnedFd>,
}

/// Takes over the sockets that this process was started with. Must be called before anything is opened.
///
/// # Errors
/// A descriptor is not open, or the service manager violates its protocol.
pub(in crate::daemon) fn handed_over(settings: &Settings) -> Result<Handed, Error> {
    let mut handed = Handed::default();
    for (name, number) in settings.descriptors() {
        if handed.descriptors.iter().any(|(known, _)| *known == name) {
            // A second export that names this descriptor is refused.
            continue;
        }
        // SAFETY: nothing was opened yet, so this descriptor was handed over to us. Each number occurs only once.
        let fd = unsafe { inherited::by_number(number) };
        let fd = fd.map_err(|error| Error::Descriptor(error.into()))?;
        handed.descriptors.push((name, fd));
    }
    if settings.is_activated() || settings.named_sockets().next().is_some() {
        take_from_service_manager(settings, &mut handed)
            .map_err(|error| Error::Activation(SocketError::from(error)))?;
    }
    Ok(handed)
}

/// Takes over the sockets that exports name, or the only one.
fn take_from_service_manager(settings: &Settings, handed: &mut Handed) -> Result<(), InheritedError> {
    let mut passed = inherited::from_service_manager()?;
    passed.retain(|socket| {
        handed
            .descriptors
            .iter()
            .all(|(_, fd)| fd.as_raw_fd() != socket.number)
    });
    if settings.is_activated() {
        if passed.len() > 1 {
            return Err(InheritedError::Several(passed.len()));
        }
        // SAFETY: nothing was opened yet, and no number was taken over twice.
        let taken = passed
            .pop()
            .map(|socket| unsafe { inherited::by_number(socket.number) });
        handed.activation = taken.transpose()?;
        return Ok(());
    }
    for name in settings.named_sockets() {
        let mut namesakes = passed.extract_if(.., |socket| socket.name == name);
        let (first, second) = (namesakes.next(), namesakes.next());
        drop(namesakes);
        match (first, second) {
            (_, Some(_)) => return Err(InheritedError::SameName(name)),
            // SAFETY: as above.
            (Some(socket), None) => handed
                .descriptors
                .push((name, unsafe { inherited::by_number(socket.number) }?)),
            // The export that names it is refused.
            (None, None) => {}
        }
    }
    for socket in passed {
        tracing::warn!(
            name = socket.name,
            "no export uses this socket of the service manager (LISTEN_FDNAMES): whoever connects to it waits for ever"
        );
    }
    Ok(())
}

//! The sockets of exports: made by path, or handed over to this process.

use std::os::fd::OwnedFd;
use std::path::PathBuf;

use super::error::{OperationError, SocketError, require};
use crate::account::{Account, Groups, find_group};
use crate::daemon::options::{Address, AddressType, ValueError};
use crate::opener::SocketRequest;
use crate::vhost_user::path::SocketAccess;
use crate::vhost_user::server::Server;

/// The socket of an export.
#[derive(Debug)]
pub(super) enum Socket {
    Ready(Server),
    /// Made by path with the rights of this process. It will belong to the user to switch to.
    ByPath(Address, Option<Account>),
}

impl Socket {
    /// Makes the socket, unless it is ready. May wait for its file system. Any thread.
    pub(super) fn open(self) -> Result<Server, OperationError> {
        match self {
            Self::Ready(server) => Ok(server),
            Self::ByPath(address, account) => bind(&address, account.as_ref()),
        }
    }
}

/// Plans sockets by path, or takes sockets that were handed over.
#[derive(Debug, Default)]
pub(super) struct Sockets {
    /// The user to switch to, who will own the sockets.
    pub(super) account: Option<Account>,
    /// Descriptors that were handed over, by number or name.
    pub(super) descriptors: Vec<(String, OwnedFd)>,
    /// The socket from the service manager.
    pub(super) activation: Option<OwnedFd>,
    /// Sockets can no longer be made by this process.
    pub(super) confined: bool,
    /// The groups of this machine as they were at the start, for when they cannot be read any more.
    pub(super) groups: Groups,
}

impl Sockets {
    /// Returns the socket with this address.
    pub(super) fn find(&mut self, address: &Address) -> Result<Socket, OperationError> {
        let ready = match address.kind {
            AddressType::Unix => return Ok(Socket::ByPath(address.clone(), self.account.clone())),
            AddressType::Fd => {
                let name = require("addr.str", address.text.as_deref())?;
                let place = self.descriptors.iter().position(|(known, _)| known == name);
                let place = place.ok_or_else(|| ValueError::Other {
                    path: "addr.str".to_owned(),
                    reason: match name {
                        "0" | "1" | "2" => {
                            "0, 1 and 2 are standard input, output and error: pass the socket as 3 or above"
                                .to_owned()
                        }
                        _ if address.name().is_some() => format!(
                            "no socket with the name {name} was handed over, or it is in use already{}",
                            environment()
                        ),
                        _ => format!("descriptor {name} was not handed over, or is in use already"),
                    },
                })?;
                let (_, fd) = self.descriptors.swap_remove(place);
                Server::from_fd(fd).map_err(|error| OperationError::Descriptor(error.into()))
            }
            AddressType::ServiceManager => {
                let fd = self.activation.take();
                let fd = fd.ok_or_else(|| OperationError::NoActivation(environment()))?;
                if address.mode.is_some() || address.group.is_some() {
                    return Err(OperationError::ActivationAccess);
                }
                Server::from_fd(fd).map_err(|error| OperationError::Activation(SocketError::from(error)))
            }
            AddressType::Inet | AddressType::Vsock => Err(OperationError::AddressType),
        };
        ready.map(Socket::Ready)
    }

    /// Returns the socket that another process has to make, if this process is confined and the address is a path.
    pub(super) fn named(
        &self,
        address: &Address,
    ) -> Result<Option<(PathBuf, SocketRequest)>, OperationError> {
        if !self.confined || address.kind != AddressType::Unix {
            return Ok(None);
        }
        let path = require("addr.path", address.path.clone())?;
        let group = address
            .group
            .as_deref()
            .map(|group| self.groups.find(group))
            .transpose();
        let request = SocketRequest {
            path: path.clone(),
            mode: mode(address.mode.as_deref())?,
            group: group.map_err(OperationError::Group)?,
        };
        Ok(Some((path, request)))
    }
}

fn bind(address: &Address, account: Option<&Account>) -> Result<Server, OperationError> {
    let path = require("addr.path", address.path.as_deref())?;
    let group = address.group.as_deref().map(find_group).transpose();
    let group = group.map_err(OperationError::Group)?;
    let access = SocketAccess {
        mode: mode(address.mode.as_deref())?,
        owner: account.map(Account::uid),
        group: group.or(account.map(Account::gid)),
    };
    Ok(Server::bind(path, &access)?)
}

/// Explains why the socket of the service manager is missing, if the environment mentions one.
fn environment() -> String {
    let Ok(number) = std::env::var("LISTEN_FDS") else {
        return String::new();
    };
    let pid = std::env::var("LISTEN_PID").unwrap_or_default();
    let own = std::process::id();
    if pid == own.to_string() {
        let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
        return format!(" (LISTEN_FDNAMES={names})");
    }
    format!(" (LISTEN_FDS={number} LISTEN_PID={pid} hands none to process {own})")
}

fn mode(text: Option<&str>) -> Result<libc::mode_t, OperationError> {
    let Some(text) = text else {
        return Ok(SocketAccess::default().mode);
    };
    let octal = !text.is_empty() && text.bytes().all(|digit| matches!(digit, b'0'..=b'7'));
    let mode = u32::from_str_radix(text, 8).ok();
    let mode = mode.filter(|&mode| octal && mode <= SocketAccess::MODES);
    Ok(mode.ok_or_else(|| ValueError::Type {
        path: "addr.mode".to_owned(),
        expected: "an octal number from 0000 to 0777, as in 0660".to_owned(),
    })?)
}

//! The path that a server's socket has: who may connect, how it appears, how it goes.

use std::ffi::CString;
use std::fs;
use std::io::{self, ErrorKind};
use std::mem;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use super::server::ServerError;
use crate::status::status;

/// Connections that may wait to be accepted.
const BACKLOG: libc::c_int = 128;

/// Who may connect to a socket: whoever may write to its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketAccess {
    /// Permission bits of the file.
    pub mode: libc::mode_t,
    /// Its owner; the process's user if there is none given.
    pub owner: Option<libc::uid_t>,
    /// Its group; likewise.
    pub group: Option<libc::gid_t>,
}

impl SocketAccess {
    /// The bits that matter.
    pub const MODES: libc::mode_t = 0o777;
}

impl Default for SocketAccess {
    fn default() -> Self {
        Self {
            mode: 0o600,
            owner: None,
            group: None,
        }
    }
}

impl SocketAccess {
    /// Sets owner and group before the mode: so at no time may anybody connect who may not in the end.
    fn grant(&self, path: &Path) -> io::Result<()> {
        let (path, here, flags) = (c_string(path)?, libc::AT_FDCWD, libc::AT_SYMLINK_NOFOLLOW);
        if self.owner.is_some() || self.group.is_some() {
            // All ones: leave it as it is.
            let (owner, group) = (self.owner.unwrap_or(u32::MAX), self.group.unwrap_or(u32::MAX));
            // SAFETY: the path is a C string that lives during the call.
            status(unsafe { libc::fchownat(here, path.as_ptr(), owner, group, flags) })?;
        }
        // SAFETY: the path is a C string that lives during the call.
        status(unsafe { libc::fchmodat(here, path.as_ptr(), self.mode & Self::MODES, flags) })
    }
}

/// A socket's path; removed when dropped, if it is still that socket.
#[derive(Debug)]
pub(super) struct SocketPath {
    path: PathBuf,
    inode: (u64, u64),
}

impl SocketPath {
    pub(super) fn new(path: &Path) -> io::Result<Self> {
        Ok(Self {
            path: path.to_owned(),
            inode: inode(path)?,
        })
    }
}

impl Drop for SocketPath {
    fn drop(&mut self) {
        if inode(&self.path).is_ok_and(|now| now == self.inode)
            && let Err(error) = fs::remove_file(&self.path)
        {
            tracing::warn!(path = %self.path.display(), %error, "socket cannot be removed");
        }
    }
}

fn inode(path: &Path) -> io::Result<(u64, u64)> {
    let metadata = fs::symlink_metadata(path)?;
    Ok((metadata.dev(), metadata.ino()))
}

/// Listens at `path`, where nothing is.
///
/// Between bind and listen a socket refuses connections, so it appears at its path only afterwards: whoever waits for
/// the path can connect.
pub(super) fn listen(path: &Path, access: &SocketAccess) -> io::Result<UnixListener> {
    // A path that nobody could connect to is refused before anything is made.
    SocketAddr::from_pathname(path)?;
    let hidden = path.with_file_name(format!(".{}", std::process::id()));
    let Ok(listener) = listen_here(&hidden, access) else {
        // Too long a name for here, or one that is taken: then without the detour.
        return listen_here(path, access);
    };
    rename_no_replace(&hidden, path).inspect_err(|_| {
        let _ = fs::remove_file(&hidden);
    })?;
    Ok(listener)
}

/// Binds a socket that nobody may connect to, lets in whom `access` says, and listens.
fn listen_here(path: &Path, access: &SocketAccess) -> io::Result<UnixListener> {
    // SAFETY: takes numbers only.
    let socket = unsafe { libc::socket(libc::AF_UNIX, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) };
    status(socket.min(0))?;
    // SAFETY: it was made just now, and nobody else has it.
    let socket = unsafe { OwnedFd::from_raw_fd(socket) };
    // The file that bind makes has the mode of the socket, less what the umask forbids.
    // SAFETY: takes numbers only.
    status(unsafe { libc::fchmod(socket.as_raw_fd(), 0) })?;
    let (address, len) = address(path)?;
    // SAFETY: the address is valid for its length.
    status(unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), len) })?;
    let granted = access
        .grant(path)
        .map_err(|e| io::Error::other(format!("owner, group or mode: {e}")));
    let ready = granted.and_then(|()| {
        // SAFETY: takes numbers only.
        status(unsafe { libc::listen(socket.as_raw_fd(), BACKLOG) })
    });
    ready.inspect_err(|_| {
        let _ = fs::remove_file(path);
    })?;
    Ok(socket.into())
}

fn address(path: &Path) -> io::Result<(libc::sockaddr_un, libc::socklen_t)> {
    // SAFETY: all-zero bytes are a valid address.
    let mut address: libc::sockaddr_un = unsafe { mem::zeroed() };
    address.sun_family = libc::AF_UNIX.try_into().map_err(io::Error::other)?;
    let bytes = path.as_os_str().as_bytes();
    // The last byte stays zero.
    let room = address.sun_path.len() - 1;
    if bytes.len() > room {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in address.sun_path.iter_mut().zip(bytes) {
        *to = from.cast_signed();
    }
    let len = mem::offset_of!(libc::sockaddr_un, sun_path) + bytes.len() + 1;
    Ok((address, len.try_into().map_err(io::Error::other)?))
}

fn rename_no_replace(from: &Path, to: &Path) -> io::Result<()> {
    let (from, to) = (c_string(from)?, c_string(to)?);
    let here = libc::AT_FDCWD;
    // SAFETY: both are C strings that live during the call.
    status(unsafe { libc::renameat2(here, from.as_ptr(), here, to.as_ptr(), libc::RENAME_NOREPLACE) })
}

/// Removes a socket at `path` that nobody listens on.
pub(super) fn remove_stale(path: &Path) -> Result<(), ServerError> {
    let Ok(metadata) = fs::symlink_metadata(path) else {
        return Ok(());
    };
    if !metadata.file_type().is_socket() {
        return Err(ServerError::NotASocket(path.to_owned()));
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(|source| ServerError::Bind {
                path: path.to_owned(),
                source,
            })
        }
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) if error.kind() == ErrorKind::PermissionDenied => Err(ServerError::Bind {
            path: path.to_owned(),
            source: error,
        }),
        _ => Err(ServerError::InUse(path.to_owned())),
    }
}

fn c_string(path: &Path) -> io::Result<CString> {
    Ok(CString::new(path.as_os_str().as_bytes())?)
}

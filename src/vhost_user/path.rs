//! The path of a server's socket: access rights, creation and removal.

use std::ffi::CString;
use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::mem;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use super::server_error::ServerError;
use crate::advice;
use crate::holders::process;
use crate::status::status;

/// Maximum number of connections that wait to be accepted.
const BACKLOG: libc::c_int = 128;

/// Advice if the owner, group or mode of a socket cannot be set.
const GRANT_HINT: &str = "only a member of a group may give it a file (--socket-group), and only root may give a file to \
                          another user (--user)";

/// Time that another daemon may take to set up its socket in the same directory, and pause between attempts to lock it.
const LOCK_TIME: Duration = Duration::from_secs(3);
const LOCK_PAUSE: Duration = Duration::from_millis(1);

/// The access rights of a socket: users who may write to its file may connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketAccess {
    /// Permission bits of the file.
    pub mode: libc::mode_t,
    /// Owner of the file; `None` for the user of the process.
    pub owner: Option<libc::uid_t>,
    /// Group of the file; `None` for the group of the process.
    pub group: Option<libc::gid_t>,
}

impl SocketAccess {
    /// The permission bits that may be set.
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
    /// Sets owner and group, and sets the mode again because the umask may have cleared some of its bits.
    fn grant(&self, path: &Path) -> io::Result<()> {
        let (path, here, flags) = (c_string(path)?, libc::AT_FDCWD, libc::AT_SYMLINK_NOFOLLOW);
        if self.owner.is_some() || self.group.is_some() {
            // All ones means no change.
            let (owner, group) = (self.owner.unwrap_or(u32::MAX), self.group.unwrap_or(u32::MAX));
            // SAFETY: the path is a C string that lives during the call.
            status(unsafe { libc::fchownat(here, path.as_ptr(), owner, group, flags) })?;
        }
        // SAFETY: the path is a C string that lives during the call.
        status(unsafe { libc::fchmodat(here, path.as_ptr(), self.mode & Self::MODES, flags) })
    }
}

/// A socket's path. Dropping this removes the file, if it is still the same socket.
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
            tracing::warn!(path = %self.path.display(), %error, "cannot remove the socket file");
        }
    }
}

fn inode(path: &Path) -> io::Result<(u64, u64)> {
    let metadata = fs::symlink_metadata(path)?;
    Ok((metadata.dev(), metadata.ino()))
}

/// Listens at `path`, with the rights in `access`. A stale socket is replaced.
///
/// The directory is locked from the check for an existing socket until the new socket listens. So two daemons that start
/// at the same time never both get the path.
pub(super) fn listen(path: &Path, access: &SocketAccess) -> Result<UnixListener, ServerError> {
    let failed = |source| bind_error(path, source);
    let address = address(path).map_err(failed)?;
    let lock = lock_directory(path);
    if is_stale(path)? {
        // The holder of the lock may be about to replace the socket.
        lock.as_ref().map_err(|_| ServerError::Locked(path.to_owned()))?;
        fs::remove_file(path).map_err(failed)?;
    }
    listen_at(path, &address, access).map_err(|error| match error.kind() {
        ErrorKind::AddrInUse => ServerError::InUse(path.to_owned(), "another process".to_owned()),
        _ => failed(error),
    })
}

/// Locks the directory of `path` against other daemons, until the returned file is closed. Returns `Ok(None)` if the
/// directory cannot be locked, because it is not readable or its file system has no locks.
///
/// # Errors
/// Another process keeps the directory locked.
fn lock_directory(path: &Path) -> io::Result<Option<File>> {
    let Ok(directory) = File::open(advice::directory_of(path)) else {
        return Ok(None);
    };
    let deadline = Instant::now() + LOCK_TIME;
    loop {
        // SAFETY: takes numbers only.
        let locked = status(unsafe { libc::flock(directory.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) });
        match locked {
            Ok(()) => return Ok(Some(directory)),
            Err(error) if error.kind() != ErrorKind::WouldBlock => return Ok(None),
            Err(error) if Instant::now() > deadline => return Err(error),
            Err(_) => thread::sleep(LOCK_PAUSE),
        }
    }
}

/// Binds a socket, sets its access rights, and then listens. Nobody can connect before it listens, whatever the rights.
fn listen_at(
    path: &Path,
    (address, len): &(libc::sockaddr_un, libc::socklen_t),
    access: &SocketAccess,
) -> io::Result<UnixListener> {
    // SAFETY: takes numbers only.
    let socket = unsafe { libc::socket(libc::AF_UNIX, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) };
    status(socket.min(0))?;
    // SAFETY: the socket was just created and has no other owner.
    let socket = unsafe { OwnedFd::from_raw_fd(socket) };
    // `bind` creates the file with the mode of the socket, minus the umask.
    // SAFETY: takes numbers only.
    status(unsafe { libc::fchmod(socket.as_raw_fd(), access.mode & SocketAccess::MODES) })?;
    // SAFETY: the address is valid for its length.
    status(unsafe { libc::bind(socket.as_raw_fd(), (&raw const *address).cast(), *len) })?;
    let granted = access
        .grant(path)
        .map_err(|e| io::Error::new(e.kind(), format!("{e}: {GRANT_HINT}")));
    let ready = granted.and_then(|()| {
        // SAFETY: takes numbers only.
        status(unsafe { libc::listen(socket.as_raw_fd(), BACKLOG) })
    });
    ready.inspect_err(|_| {
        let _ = fs::remove_file(path);
    })?;
    Ok(socket.into())
}

/// Converts the error of creating a socket, with advice if the directory is the cause.
fn bind_error(path: &Path, source: io::Error) -> ServerError {
    let why = match source.raw_os_error() {
        Some(libc::ENOENT | libc::ENOTDIR) => advice::no_directory(path),
        Some(libc::EACCES) => Some(advice::denied_directory(path)),
        _ => None,
    };
    let path = path.to_owned();
    match why {
        Some(why) => ServerError::Directory { path, why },
        None => ServerError::Bind { path, source },
    }
}

fn address(path: &Path) -> io::Result<(libc::sockaddr_un, libc::socklen_t)> {
    // SAFETY: all-zero bytes are a valid address.
    let mut address: libc::sockaddr_un = unsafe { mem::zeroed() };
    address.sun_family = libc::AF_UNIX.try_into().map_err(io::Error::other)?;
    let bytes = path.as_os_str().as_bytes();
    // The last byte stays zero.
    let room = address.sun_path.len() - 1;
    if bytes.len() > room || bytes.contains(&0) {
        let text = format!(
            "the path has {} bytes: at most {room} are allowed, and no NUL",
            bytes.len()
        );
        return Err(io::Error::new(ErrorKind::InvalidInput, text));
    }
    for (to, from) in address.sun_path.iter_mut().zip(bytes) {
        *to = from.cast_signed();
    }
    let len = mem::offset_of!(libc::sockaddr_un, sun_path) + bytes.len() + 1;
    Ok((address, len.try_into().map_err(io::Error::other)?))
}

/// Returns whether there is a stale socket at `path`, or false if nothing is there.
///
/// # Errors
/// Another process listens at `path`, or the file there is not a socket or cannot be checked.
fn is_stale(path: &Path) -> Result<bool, ServerError> {
    let failed = |source| bind_error(path, source);
    let Ok(metadata) = fs::symlink_metadata(path) else {
        return Ok(false);
    };
    if !metadata.file_type().is_socket() {
        return Err(ServerError::NotASocket(path.to_owned()));
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => Ok(true),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) if error.kind() == ErrorKind::PermissionDenied => Err(failed(error)),
        Ok(stream) => Err(ServerError::InUse(path.to_owned(), listener_of(&stream))),
        Err(_) => Err(ServerError::InUse(path.to_owned(), "another process".to_owned())),
    }
}

/// Describes the process that listens at the other end.
fn listener_of(stream: &UnixStream) -> String {
    let mut peer = libc::ucred {
        pid: 0,
        uid: 0,
        gid: 0,
    };
    let mut len = libc::socklen_t::try_from(size_of_val(&peer)).unwrap_or(0);
    // SAFETY: the value and its length are valid during the call.
    let asked = status(unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut peer).cast(),
            &raw mut len,
        )
    });
    match u32::try_from(peer.pid) {
        Ok(pid @ 1..) if asked.is_ok() => process(pid),
        _ => "another process".to_owned(),
    }
}

fn c_string(path: &Path) -> io::Result<CString> {
    Ok(CString::new(path.as_os_str().as_bytes())?)
}

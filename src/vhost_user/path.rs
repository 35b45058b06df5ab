//! The path of a server's socket: access rights, creation and removal.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, CWD, FlockOperation, Gid, Mode, Uid, chownat, fchmod, flock};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, socket_with};

use super::server_error::ServerError;
use crate::advice;
use crate::holders::process;
use crate::sys;

/// Maximum number of connections that wait to be accepted.
const BACKLOG: i32 = 128;

/// Maximum length of a socket's path in bytes: what an address has room for, except for its NUL.
const PATH_MAX: usize = 107;

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
        if self.owner.is_some() || self.group.is_some() {
            let (owner, group) = (self.owner.map(Uid::from_raw), self.group.map(Gid::from_raw));
            chownat(CWD, path, owner, group, AtFlags::SYMLINK_NOFOLLOW)?;
        }
        sys::file::set_mode(path, self.mode & Self::MODES)
    }
}

/// A file, by device and inode number.
type Inode = (u64, u64);

/// The sockets that this process has made and not removed yet.
static OURS: Mutex<Vec<Inode>> = Mutex::new(Vec::new());

fn ours() -> MutexGuard<'static, Vec<Inode>> {
    OURS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A socket's file. Dropping this removes it, if it is still the same socket.
#[derive(Debug)]
pub(crate) struct SocketFile {
    path: PathBuf,
    inode: Inode,
}

impl SocketFile {
    /// Listens at `path`, with the rights in `access`. A stale socket is replaced.
    pub(crate) fn listen(path: &Path, access: &SocketAccess) -> Result<(UnixListener, Self), ServerError> {
        let listener = listen(path, access)?;
        let inode = inode(path).map_err(|source| ServerError::Bind {
            path: path.to_owned(),
            source,
        })?;
        let path = path.to_owned();
        ours().push(inode);
        Ok((listener, Self { path, inode }))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        ours().retain(|&inode| inode != self.inode);
        if inode(&self.path).is_ok_and(|now| now == self.inode)
            && let Err(error) = fs::remove_file(&self.path)
        {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove the socket file");
        }
    }
}

fn inode(path: &Path) -> io::Result<Inode> {
    let metadata = fs::symlink_metadata(path)?;
    Ok((metadata.dev(), metadata.ino()))
}

/// Listens at `path`, with the rights in `access`. A stale socket is replaced.
///
/// The directory is locked from the check for an existing socket until the new socket listens. So two daemons that start
/// at the same time never both get the path.
fn listen(path: &Path, access: &SocketAccess) -> Result<UnixListener, ServerError> {
    let failed = |source| bind_error(path, source);
    let address = address(path).map_err(failed)?;
    let lock = lock_directory(path);
    if is_stale(path)? {
        // The holder of the lock may be about to replace the socket.
        lock.as_ref().map_err(|_| ServerError::Locked(path.to_owned()))?;
        fs::remove_file(path).map_err(failed)?;
    }
    let socket = bind_to(&address, access).map_err(|error| match error.kind() {
        ErrorKind::AddrInUse => ServerError::InUse(path.to_owned(), "another process".to_owned()),
        _ => failed(error),
    })?;
    let granted = access.grant(path).map_err(|source| ServerError::Grant {
        path: path.to_owned(),
        source,
    });
    // Nobody can connect before this.
    let listens = || rustix::net::listen(&socket, BACKLOG).map_err(|error| failed(error.into()));
    granted.and_then(|()| listens()).inspect_err(|_| {
        let _ = fs::remove_file(path);
    })?;
    Ok(socket.into())
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
        match flock(&directory, FlockOperation::NonBlockingLockExclusive).map_err(io::Error::from) {
            Ok(()) => return Ok(Some(directory)),
            Err(error) if error.kind() != ErrorKind::WouldBlock => return Ok(None),
            Err(error) if Instant::now() > deadline => return Err(error),
            Err(_) => thread::sleep(LOCK_PAUSE),
        }
    }
}

/// Makes a socket and binds it. It has its mode as far as the umask allows.
fn bind_to(address: &SocketAddrUnix, access: &SocketAccess) -> io::Result<OwnedFd> {
    let socket = socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
    // `bind` creates the file with the mode of the socket, minus the umask.
    fchmod(&socket, Mode::from_raw_mode(access.mode & SocketAccess::MODES))?;
    bind(&socket, address)?;
    Ok(socket)
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

fn address(path: &Path) -> io::Result<SocketAddrUnix> {
    let bytes = path.as_os_str().as_bytes();
    if bytes.len() > PATH_MAX || bytes.contains(&0) {
        let text = format!(
            "the path has {} bytes: at most {PATH_MAX} are allowed, and no NUL",
            bytes.len()
        );
        return Err(io::Error::new(ErrorKind::InvalidInput, text));
    }
    Ok(SocketAddrUnix::new(path)?)
}

/// Returns whether there is a stale socket at `path`, or false if nothing is there.
///
/// # Errors
/// A process listens at `path`, or the file there is not a socket or cannot be checked.
fn is_stale(path: &Path) -> Result<bool, ServerError> {
    let failed = |source| bind_error(path, source);
    let Ok(metadata) = fs::symlink_metadata(path) else {
        return Ok(false);
    };
    if !metadata.file_type().is_socket() {
        return Err(ServerError::NotASocket(path.to_owned()));
    }
    if ours().contains(&(metadata.dev(), metadata.ino())) {
        return Err(ServerError::Ours(path.to_owned()));
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
    let peer = sys::socket::peer_credentials(stream.as_fd());
    match peer.map(|peer| u32::try_from(peer.pid)) {
        Ok(Ok(pid @ 1..)) => process(pid),
        _ => "another process".to_owned(),
    }
}

//! The path of a server's socket: access rights, creation and removal.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{
    AtFlags, CWD, FileType, FlockOperation, Gid, Mode, OFlags, ResolveFlags, Uid, chmodat, chownat, fchmod,
    flock, openat2, statat, unlinkat,
};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, socket_with};

use super::server_error::ServerError;
use crate::advice;
use crate::holders::process;
use crate::succession;
use crate::sys;

/// Maximum number of connections that wait to be accepted.
pub(crate) const BACKLOG: i32 = 128;

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
    fn grant(&self, place: &SocketPlace<'_>) -> io::Result<()> {
        let (owner, group) = (self.owner.map(Uid::from_raw), self.group.map(Gid::from_raw));
        let mode = self.mode & Self::MODES;
        let Some(directory) = place.directory else {
            if owner.is_some() || group.is_some() {
                chownat(CWD, place.path, owner, group, AtFlags::SYMLINK_NOFOLLOW)?;
            }
            return sys::file::set_mode(place.path, mode);
        };
        // One lookup for both, because the directory may belong to others.
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = openat2(directory, place.name, flags, Mode::empty(), ResolveFlags::BENEATH)?;
        if owner.is_some() || group.is_some() {
            chownat(&file, "", owner, group, AtFlags::EMPTY_PATH)?;
        }
        let same = format!("/proc/self/fd/{}", file.as_raw_fd());
        Ok(chmodat(CWD, same, Mode::from_raw_mode(mode), AtFlags::empty())?)
    }
}

/// A socket's file. Dropping this removes it, if it is still the same socket.
pub(crate) struct SocketFile {
    path: PathBuf,
    inode: Option<Inode>,
    removal: Removal,
}

enum Removal {
    /// This process removes the file.
    Own,
    /// Another process does, when this is called.
    Elsewhere(Option<Box<dyn FnOnce() + Send + Sync>>),
}

/// A file, by device and inode number.
pub(crate) type Inode = (u64, u64);

/// The sockets that were made for this process and not removed yet.
static OURS: Mutex<Vec<Inode>> = Mutex::new(Vec::new());

fn ours() -> MutexGuard<'static, Vec<Inode>> {
    OURS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Returns whether this process serves the socket at `path`.
pub(crate) fn is_ours(path: &Path) -> bool {
    inode(None, path).is_ok_and(|inode| ours().contains(&inode))
}

impl SocketFile {
    /// Listens at `path`, with the rights in `access`. A stale socket is replaced.
    pub(crate) fn listen(path: &Path, access: &SocketAccess) -> Result<(UnixListener, Self), ServerError> {
        let place = SocketPlace {
            directory: None,
            name: path,
            path,
        };
        let (listener, inode) = listen_at(&place, access).map_err(|error| error.explain(path))?;
        Ok((listener, Self::new(path, Some(inode), Removal::Own)))
    }

    /// Describes the file of a socket that another process has passed, which this process removes. Returns `None` if the
    /// socket does not have this path, or the path names another file by now.
    pub(crate) fn passed(path: &Path, listener: &UnixListener) -> Option<Self> {
        let address = listener.local_addr().ok()?;
        let stat = statat(CWD, path, AtFlags::SYMLINK_NOFOLLOW).ok()?;
        let is_it = address.as_pathname() == Some(path) && FileType::from_raw_mode(stat.st_mode).is_socket();
        is_it.then(|| Self::new(path, Some((stat.st_dev, stat.st_ino)), Removal::Own))
    }

    /// Describes a file that another process has made, and removes when `remove` is called.
    pub(crate) fn elsewhere(path: &Path, remove: impl FnOnce() + Send + Sync + 'static) -> Self {
        Self::new(
            path,
            inode(None, path).ok(),
            Removal::Elsewhere(Some(Box::new(remove))),
        )
    }

    fn new(path: &Path, inode: Option<Inode>, removal: Removal) -> Self {
        ours().extend(inode);
        Self {
            path: path.to_owned(),
            inode,
            removal,
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Returns whether this process removes the file.
    pub(crate) fn is_own(&self) -> bool {
        matches!(self.removal, Removal::Own)
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        ours().retain(|&inode| Some(inode) != self.inode);
        match &mut self.removal {
            Removal::Own => {
                if succession::may_clean_up()
                    && inode(None, &self.path).ok() == self.inode
                    && let Err(error) = fs::remove_file(&self.path)
                {
                    tracing::warn!(path = %self.path.display(), %error, "cannot remove the socket file");
                }
            }
            Removal::Elsewhere(remove) => {
                if let Some(remove) = remove.take() {
                    remove();
                }
            }
        }
    }
}

impl fmt::Debug for SocketFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SocketFile")
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

/// The place of a socket.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SocketPlace<'a> {
    /// The directory that `name` is in, if that is not part of `name`. Then no other name is looked up but to bind and to
    /// connect to `path`.
    pub(crate) directory: Option<BorrowedFd<'a>>,
    /// The name of the file.
    pub(crate) name: &'a Path,
    /// The address of the socket.
    pub(crate) path: &'a Path,
}

/// The reason why a socket cannot be made.
#[derive(Debug)]
pub(crate) enum ListenError {
    /// This process serves the socket already.
    Ours,
    /// A process listens there, which is named if it is visible.
    InUse(Option<u32>),
    /// The socket is stale, but another process may be about to replace it.
    Locked,
    /// Another file is there.
    NotASocket,
    /// The address does not lead to the directory.
    Elsewhere,
    /// The file cannot get its owner, group or mode.
    Grant(io::Error),
    /// The socket cannot be made or checked.
    Bind(io::Error),
}

impl ListenError {
    /// Adds the path, and advice if the directory is the cause.
    fn explain(self, path: &Path) -> ServerError {
        let owned = || path.to_owned();
        match self {
            Self::Ours => ServerError::Ours(owned()),
            Self::InUse(Some(pid)) => ServerError::InUse(owned(), process(pid)),
            Self::InUse(None) => ServerError::InUse(owned(), "another process".to_owned()),
            Self::Locked => ServerError::Locked(owned()),
            Self::NotASocket => ServerError::NotASocket(owned()),
            Self::Elsewhere => bind_error(path, io::ErrorKind::NotFound.into()),
            Self::Grant(source) => ServerError::Grant {
                path: owned(),
                source,
            },
            Self::Bind(source) => bind_error(path, source),
        }
    }
}

impl From<Errno> for ListenError {
    fn from(error: Errno) -> Self {
        Self::Bind(error.into())
    }
}

/// Returns what identifies a file, which may be a symbolic link.
pub(crate) fn inode(directory: Option<BorrowedFd<'_>>, name: &Path) -> io::Result<Inode> {
    let stat = statat(directory.unwrap_or(CWD), name, AtFlags::SYMLINK_NOFOLLOW)?;
    Ok((stat.st_dev, stat.st_ino))
}

/// Listens at `place`, with the rights in `access`. A stale socket is replaced. Returns the socket and its file.
///
/// The directory is locked from the check for an existing socket until the new socket listens. So two daemons that start
/// at the same time never both get the path.
pub(crate) fn listen_at(
    place: &SocketPlace<'_>,
    access: &SocketAccess,
) -> Result<(UnixListener, Inode), ListenError> {
    let address = address(place.path).map_err(ListenError::Bind)?;
    let lock = lock_directory(place);
    if is_stale(place, &address)? {
        // The holder of the lock may be about to replace the socket.
        lock.as_ref().map_err(|_| ListenError::Locked)?;
        remove(place)?;
    }
    let socket = bind_to(&address, access).map_err(|error| match error.kind() {
        ErrorKind::AddrInUse => ListenError::InUse(None),
        _ => ListenError::Bind(error),
    })?;
    let made = inode(None, place.path).map_err(ListenError::Bind)?;
    if inode(place.directory, place.name).ok() != Some(made) {
        // Nobody else has made this file.
        let _ = fs::remove_file(place.path);
        return Err(ListenError::Elsewhere);
    }
    let granted = access.grant(place).map_err(ListenError::Grant);
    // Nobody can connect before this.
    let listens = || Ok(rustix::net::listen(&socket, BACKLOG)?);
    granted.and_then(|()| listens()).inspect_err(|_| {
        let _ = remove(place);
    })?;
    Ok((socket.into(), made))
}

fn remove(place: &SocketPlace<'_>) -> Result<(), ListenError> {
    match place.directory {
        Some(directory) => unlinkat(directory, place.name, AtFlags::empty())?,
        None => fs::remove_file(place.name).map_err(ListenError::Bind)?,
    }
    Ok(())
}

/// Locks the directory of a socket against other daemons, until the returned file is closed. Returns `Ok(None)` if the
/// directory cannot be locked, because it is not readable or its file system has no locks.
///
/// # Errors
/// Another process keeps the directory locked.
fn lock_directory(place: &SocketPlace<'_>) -> io::Result<Option<File>> {
    let opened = match place.directory {
        Some(directory) => {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            openat2(directory, ".", flags, Mode::empty(), ResolveFlags::BENEATH).map(File::from)
        }
        None => File::open(advice::directory_of(place.name)).map_err(|_| Errno::ACCESS),
    };
    let Ok(directory) = opened else {
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

/// Returns whether there is a stale socket at `place`, or false if nothing is there.
///
/// # Errors
/// A process listens there, or the file there is not a socket or cannot be checked.
fn is_stale(place: &SocketPlace<'_>, address: &SocketAddrUnix) -> Result<bool, ListenError> {
    let directory = place.directory.unwrap_or(CWD);
    let Ok(stat) = statat(directory, place.name, AtFlags::SYMLINK_NOFOLLOW) else {
        return Ok(false);
    };
    if !FileType::from_raw_mode(stat.st_mode).is_socket() {
        return Err(ListenError::NotASocket);
    }
    if ours().contains(&(stat.st_dev, stat.st_ino)) {
        return Err(ListenError::Ours);
    }
    // A connection to a process that does not accept any could wait for ever.
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let probe = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    match connect(&probe, address) {
        Err(Errno::CONNREFUSED) => Ok(true),
        Err(Errno::NOENT) => Ok(false),
        Err(error @ Errno::ACCESS) => Err(error.into()),
        Ok(()) => Err(ListenError::InUse(listener_of(&probe))),
        Err(_) => Err(ListenError::InUse(None)),
    }
}

/// Returns the process that listens at the other end, if it is visible.
fn listener_of(stream: impl AsFd) -> Option<u32> {
    let peer = sys::socket::peer_credentials(stream.as_fd()).ok()?;
    u32::try_from(peer.pid).ok().filter(|pid| *pid > 0)
}

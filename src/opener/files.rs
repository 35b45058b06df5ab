//! Opens images. Helper only.

use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, fstat, openat2};
use rustix::io::Errno;

use super::message::{FileRequest, Refusal};

/// An image, and the same file open for O_DIRECT.
pub(super) type Opened = (OwnedFd, Option<OwnedFd>);

/// Opens a path that must not lead out of the directory, for lookups only.
pub(super) fn find(directory: BorrowedFd<'_>, rest: &Path, flags: OFlags) -> Result<OwnedFd, Refusal> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    loop {
        match openat2(
            directory,
            rest,
            OFlags::PATH | OFlags::CLOEXEC | flags,
            Mode::empty(),
            resolve,
        ) {
            Err(Errno::XDEV) => return Err(Refusal::LeadsOut),
            // With BENEATH, the kernel may lose track while somebody else moves directories.
            Err(Errno::INTR | Errno::AGAIN) => {}
            found => return found.map_err(refusal),
        }
    }
}

/// Opens an image.
pub(super) fn open(directory: BorrowedFd<'_>, rest: &Path, wanted: FileRequest) -> Result<Opened, Refusal> {
    // Checked before it is opened: opening a FIFO blocks, and opening some devices has side effects.
    let found = find(directory, rest, OFlags::empty())?;
    let stat = fstat(&found).map_err(refusal)?;
    if !matches!(
        FileType::from_raw_mode(stat.st_mode),
        FileType::RegularFile | FileType::BlockDevice
    ) {
        return Err(Refusal::Kind);
    }
    let direct = if wanted.direct {
        OFlags::DIRECT
    } else {
        OFlags::empty()
    };
    let readable = || reopen(&found, OFlags::RDONLY | direct);
    let image = match wanted.writable {
        false => readable(),
        true => match reopen(&found, OFlags::RDWR | direct) {
            Err(Errno::ACCESS | Errno::PERM | Errno::ROFS) if wanted.or_read_only => readable(),
            opened => opened,
        },
    };
    let image = image.map_err(refusal)?;
    let sibling =
        (wanted.writable && !wanted.direct).then(|| reopen(&found, OFlags::RDONLY | OFlags::DIRECT));
    Ok((image, sibling.and_then(Result::ok)))
}

/// Opens a file that was found. Its path may name another file by now.
fn reopen(found: &OwnedFd, flags: OFlags) -> Result<OwnedFd, Errno> {
    let path = format!("/proc/self/fd/{}", found.as_raw_fd());
    loop {
        match openat2(
            CWD,
            &path,
            flags | OFlags::CLOEXEC,
            Mode::empty(),
            ResolveFlags::empty(),
        ) {
            Err(Errno::INTR) => {}
            opened => return opened,
        }
    }
}

pub(super) fn refusal(error: Errno) -> Refusal {
    Refusal::Os(error.raw_os_error())
}

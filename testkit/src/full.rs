//! A tmpfs of a few MiB, to test a full disk.

use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::Command;

use tempfile::{NamedTempFile, TempDir};

use crate::daemon::{Daemon, IMAGE, SOCKET, binary};
use crate::machine::host;
use crate::skip::skipped;

/// The space that a small file system may use for itself, such as its tables.
const FRINGE: u64 = 1 << 20;

/// A small file system with an image and a file that takes all other space.
///
/// The file system is mounted in a mount namespace of the calling thread. Processes that the thread starts share this
/// namespace. However the test ends, the mount ends with the thread and these processes.
#[derive(Debug)]
pub struct SmallDisk {
    dir: TempDir,
    /// The block device under the file system; `None` for a tmpfs.
    _backing: Option<NamedTempFile>,
}

/// `FIFREEZE` and `FITHAW` in `linux/fs.h`.
const FIFREEZE: libc::c_ulong = 0xc004_5877;
const FITHAW: libc::c_ulong = 0xc004_5878;

/// A frozen file system. Dropping this thaws it.
#[derive(Debug)]
pub struct Frozen(File);

impl Drop for Frozen {
    fn drop(&mut self) {
        // SAFETY: no memory is involved.
        let thawed = unsafe { libc::ioctl(self.0.as_raw_fd(), FITHAW, 0) };
        assert_eq!(thawed, 0, "FITHAW: {}", io::Error::last_os_error());
    }
}

impl SmallDisk {
    /// Mounts a tmpfs of `size` bytes. Returns `None`, and reports the test as skipped, where mounting is not allowed.
    pub fn mount(size: u64) -> Option<Self> {
        let dir = tempfile::tempdir().expect("make a directory");
        let mounted = leave_namespace().and_then(|()| mount_tmpfs(&dir, size));
        mounted_or_skipped(mounted).then_some(Self { dir, _backing: None })
    }

    /// Mounts an ext4 file system on a block device.
    pub fn mount_ext4(size: u64) -> Option<Self> {
        let dir = tempfile::tempdir().expect("make a directory");
        let backing = NamedTempFile::new().expect("make a file");
        backing.as_file().set_len(size).expect("size it");
        // No journal: only the test may use up space.
        host("mkfs.ext4", &["-q", "-O", "^has_journal"], backing.path());
        let mounted = leave_namespace().and_then(|()| {
            let mount = Command::new("mount")
                .args(["-o", "loop"])
                .arg(backing.path())
                .arg(dir.path())
                .output()?;
            match mount.status.success() {
                true => Ok(()),
                false => Err(io::Error::other(
                    String::from_utf8_lossy(&mount.stderr).into_owned(),
                )),
            }
        });
        let backing = Some(backing);
        mounted_or_skipped(mounted).then_some(Self {
            dir,
            _backing: backing,
        })
    }

    pub fn image(&self) -> PathBuf {
        self.dir.path().join(IMAGE)
    }

    /// Makes a sparse image.
    pub fn make_image(&self, size: u64) {
        let image = File::create(self.image()).expect("make the image");
        image.set_len(size).expect("size the image");
    }

    /// Makes writes to the file system wait until the guard is dropped, as a snapshot of the host does.
    pub fn freeze(&self) -> Frozen {
        let root = File::open(self.dir.path()).expect("open the root");
        // SAFETY: no memory is involved.
        let frozen = unsafe { libc::ioctl(root.as_raw_fd(), FIFREEZE, 0) };
        assert_eq!(frozen, 0, "FIFREEZE: {}", io::Error::last_os_error());
        Frozen(root)
    }

    /// Fills the file system, except for `left` bytes.
    pub fn fill(&self, left: u64) {
        let filler = File::create(self.filler()).expect("make a file");
        // SAFETY: all-zero bytes are a valid `struct statvfs`.
        let mut space: libc::statvfs = unsafe { std::mem::zeroed() };
        let path = CString::new(self.dir.path().as_os_str().as_bytes()).expect("a path");
        // SAFETY: a C string, and room for the answer.
        assert_eq!(unsafe { libc::statvfs(path.as_ptr(), &raw mut space) }, 0);
        let free = space.f_bfree * space.f_bsize;
        let len = i64::try_from(free.saturating_sub(left.max(FRINGE))).expect("small");
        if len > 0 {
            use std::os::fd::AsRawFd;
            // SAFETY: takes numbers only.
            assert_eq!(unsafe { libc::fallocate(filler.as_raw_fd(), 0, 0, len) }, 0);
        }
        if left < FRINGE {
            self.fill_fringe(&filler, len.max(0).unsigned_abs(), left);
        }
    }

    /// Uses up the remaining space. Some of it goes into the file system's tables.
    fn fill_fringe(&self, filler: &File, from: u64, left: u64) {
        let mut end = from;
        while filler.write_all_at(&[0; 4096], end).is_ok() {
            end += 4096;
        }
        filler.sync_all().expect("flush the file");
        filler.set_len(end.saturating_sub(left)).expect("size the file");
    }

    /// Frees the space that `fill` took.
    pub fn make_room(&self) {
        fs::remove_file(self.filler()).expect("remove the file");
    }

    fn filler(&self) -> PathBuf {
        self.dir.path().join("filler")
    }

    /// Starts a daemon on the image.
    pub fn daemon(&self, options: &[&str]) -> Daemon {
        let dir = tempfile::tempdir().expect("make a directory");
        let image = self.image();
        let args = [
            "--socket-path",
            SOCKET,
            "--blk-file",
            image.to_str().expect("UTF-8"),
        ];
        Daemon::start_with(dir, &[&args, options].concat())
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let path = CString::new(self.dir.path().as_os_str().as_bytes()).expect("a path");
        // SAFETY: a C string. The unmount is lazy because somebody may still have the image open.
        unsafe { libc::umount2(path.as_ptr(), libc::MNT_DETACH) };
    }
}

fn mounted_or_skipped(mounted: io::Result<()>) -> bool {
    mounted
        .inspect_err(|error| skipped(format_args!("no file system can be mounted here: {error}")))
        .is_ok()
}

fn check(result: i32) -> io::Result<()> {
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Gives this thread a mount namespace of its own.
fn leave_namespace() -> io::Result<()> {
    binary();
    // SAFETY: takes a number only. Concerns this thread alone.
    check(unsafe { libc::unshare(libc::CLONE_NEWNS) })?;
    let (root, private) = (c"/".as_ptr(), libc::MS_REC | libc::MS_PRIVATE);
    // SAFETY: C strings, and null for unused arguments.
    check(unsafe {
        libc::mount(
            std::ptr::null(),
            root,
            std::ptr::null(),
            private,
            std::ptr::null(),
        )
    })
}

fn mount_tmpfs(dir: &TempDir, size: u64) -> io::Result<()> {
    let tmpfs = c"tmpfs".as_ptr();
    let target = CString::new(dir.path().as_os_str().as_bytes()).expect("a path");
    let options = CString::new(format!("size={size}")).expect("no NUL");
    // SAFETY: C strings that live during the call.
    check(unsafe { libc::mount(tmpfs, target.as_ptr(), tmpfs, 0, options.as_ptr().cast()) })
}

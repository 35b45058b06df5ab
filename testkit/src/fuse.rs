//! A file that stalls on request: the root of a FUSE file system that the test serves.
//!
//! The mount is in a mount namespace of the calling thread, so that nothing is left over, however the test ends.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use tempfile::NamedTempFile;

use crate::daemon::binary;

/// Operations from `linux/fuse.h`.
const GETATTR: u32 = 3;
const SETATTR: u32 = 4;
const OPEN: u32 = 14;
const READ: u32 = 15;
const WRITE: u32 = 16;
const STATFS: u32 = 17;
const RELEASE: u32 = 18;
const FSYNC: u32 = 20;
const FLUSH: u32 = 25;
const INIT: u32 = 26;
/// GETLK, SETLK, SETLKW.
const LOCKS: [u32; 3] = [31, 32, 33];
/// Requests without an answer: FORGET, INTERRUPT, BATCH_FORGET.
const SILENT: [u32; 3] = [2, 36, 42];
const MINOR: u32 = 31;
/// The flag in INIT that makes the server responsible for locks.
const POSIX_LOCKS: u32 = 1 << 1;

/// Time limit for a request that waits.
const LONG: Duration = Duration::from_secs(100);

/// The way a stalled file behaves.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Behavior {
    /// It cannot be locked, and answers neither reads nor writes nor flushes.
    StallsAll,
    /// It can be locked, and answers everything but writes.
    StallsWrites,
    /// It cannot be locked. It is neither opened nor resized nor closed.
    IsSlowToOpen,
}

/// A file full of the byte 1. It answers no read, write or flush before [`Self::let_go`].
pub struct StalledFile {
    mount_point: NamedTempFile,
    gate: Arc<Gate>,
    server: Option<JoinHandle<()>>,
}

struct Gate {
    behavior: Behavior,
    state: Mutex<GateState>,
    changed: Condvar,
}

#[derive(Default)]
struct GateState {
    open: bool,
    arrived: bool,
}

impl StalledFile {
    /// Mounts a file that cannot be locked, for the calling thread only.
    pub fn mount(size: u64) -> io::Result<Self> {
        Self::mount_as(size, Behavior::StallsAll)
    }

    /// Mounts a file that can be locked and where only writes wait, for the calling thread only.
    pub fn mount_lockable(size: u64) -> io::Result<Self> {
        Self::mount_as(size, Behavior::StallsWrites)
    }

    /// Mounts a file whose opening, resizing and closing stalls, for the calling thread only.
    pub fn mount_slow(size: u64) -> io::Result<Self> {
        Self::mount_as(size, Behavior::IsSlowToOpen)
    }

    fn mount_as(size: u64, behavior: Behavior) -> io::Result<Self> {
        binary();
        let device = File::options().read(true).write(true).open("/dev/fuse")?;
        // SAFETY: takes numbers only.
        check(unsafe { libc::unshare(libc::CLONE_NEWNS) })?;
        mount(c"none", Path::new("/"), c"", libc::MS_REC | libc::MS_PRIVATE, "")?;
        let mount_point = NamedTempFile::new()?;
        let options = format!("fd={},rootmode=100644,user_id=0,group_id=0", device.as_raw_fd());
        mount(
            c"test",
            mount_point.path(),
            c"fuse",
            libc::MS_NOSUID | libc::MS_NODEV,
            &options,
        )?;
        let gate = Arc::new(Gate::new(behavior));
        let served = Arc::clone(&gate);
        let server = thread::spawn(move || serve(&device, size, &served));
        Ok(Self {
            mount_point,
            gate,
            server: Some(server),
        })
    }

    pub fn path(&self) -> PathBuf {
        self.mount_point.path().to_owned()
    }

    /// Whether a request waits.
    pub fn has_reader(&self) -> bool {
        self.gate.lock().arrived
    }

    /// Lets requests continue when the returned value is dropped. Not even SIGKILL ends a process whose request waits.
    pub fn let_go_at_the_end(&self) -> impl Drop + use<'_> {
        struct LetGo<'a>(&'a StalledFile);
        impl Drop for LetGo<'_> {
            fn drop(&mut self) {
                self.0.let_go();
            }
        }
        LetGo(self)
    }

    /// Makes requests wait again.
    pub fn stall(&self) {
        *self.gate.lock() = GateState::default();
    }

    /// Lets waiting and later requests continue.
    pub fn let_go(&self) {
        self.gate.lock().open = true;
        self.gate.changed.notify_all();
    }
}

impl Drop for StalledFile {
    fn drop(&mut self) {
        self.let_go();
        // MNT_FORCE ends the connection, and with it the server, even if the file is still in use.
        let path = c_path(self.mount_point.path());
        // SAFETY: a C string that outlives the call.
        let unmounted = unsafe { libc::umount2(path.as_ptr(), libc::MNT_FORCE | libc::MNT_DETACH) } == 0;
        if let Some(server) = self.server.take().filter(|_| unmounted) {
            let _ = server.join();
        }
    }
}

fn mount(
    source: &std::ffi::CStr,
    target: &Path,
    kind: &std::ffi::CStr,
    flags: libc::c_ulong,
    options: &str,
) -> io::Result<()> {
    let (target, options) = (c_path(target), c_path(Path::new(options)));
    // SAFETY: C strings that outlive the call.
    check(unsafe {
        libc::mount(
            source.as_ptr(),
            target.as_ptr(),
            kind.as_ptr(),
            flags,
            options.as_ptr().cast(),
        )
    })
}

fn c_path(path: &Path) -> std::ffi::CString {
    std::ffi::CString::new(path.as_os_str().as_encoded_bytes()).expect("no NUL")
}

fn check(rc: libc::c_int) -> io::Result<()> {
    if rc < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Answers requests until the file system is unmounted.
fn serve(mut device: &File, size: u64, gate: &Gate) {
    let mut buffer = vec![0; 1 << 20];
    let content = Mutex::new(vec![1; usize::try_from(size).expect("a small file")]);
    let content = &content;
    thread::scope(|scope| {
        loop {
            let request = match device.read(&mut buffer) {
                Ok(len) => &buffer[..len],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => return,
            };
            match (gate.behavior, operation(request)) {
                (Behavior::StallsWrites, WRITE) => {
                    let request = request.to_vec();
                    scope.spawn(move || answer(device, &request, content, gate));
                }
                _ => answer(device, request, content, gate),
            }
        }
    });
}

fn u32_at(request: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes(request[at..at + 4].try_into().expect("four bytes"))
}

fn operation(request: &[u8]) -> u32 {
    u32_at(request, 4)
}

fn answer(mut device: &File, request: &[u8], content: &Mutex<Vec<u8>>, gate: &Gate) {
    let lock = || content.lock().expect("nobody panics");
    let (mut error, mut body) = (0, Vec::new());
    match operation(request) {
        INIT => {
            // Without the flag, the kernel itself keeps the locks.
            let flags = match gate.behavior {
                Behavior::StallsAll | Behavior::IsSlowToOpen => POSIX_LOCKS,
                Behavior::StallsWrites => 0,
            };
            [7, MINOR, 0, flags, 0, 1 << 17, 1]
                .iter()
                .for_each(|&word: &u32| put(&mut body, word));
            body.resize(64, 0);
        }
        GETATTR => {
            body.resize(16, 0);
            attributes(&mut body, lock().len() as u64);
        }
        OPEN => {
            gate.pass_if(Behavior::IsSlowToOpen);
            body.resize(16, 0);
        }
        SETATTR => {
            gate.pass_if(Behavior::IsSlowToOpen);
            let size = u64::from_ne_bytes(request[56..64].try_into().expect("eight bytes"));
            lock().resize(usize::try_from(size).expect("a small file"), 1);
            body.resize(16, 0);
            attributes(&mut body, size);
        }
        FLUSH => gate.pass_if(Behavior::IsSlowToOpen),
        STATFS => body.resize(80, 0),
        RELEASE => {}
        READ => {
            gate.pass_if(Behavior::StallsAll);
            body.extend(&*part(request, &mut lock()));
        }
        WRITE => {
            gate.pass();
            let mut content = lock();
            let part = part(request, &mut content);
            part.copy_from_slice(&request[80..80 + part.len()]);
            put(&mut body, u32_at(request, 56));
            put(&mut body, 0);
        }
        FSYNC if gate.behavior == Behavior::StallsWrites => {}
        FSYNC => gate.pass(),
        // NFS without its lock server answers the same.
        opcode if LOCKS.contains(&opcode) => error = -libc::ENOLCK,
        opcode if SILENT.contains(&opcode) => return,
        _ => error = -libc::ENOSYS,
    }
    let mut reply = Vec::new();
    put(&mut reply, u32::try_from(16 + body.len()).expect("a short reply"));
    reply.extend(i32::to_ne_bytes(error));
    reply.extend(&request[8..16]);
    reply.extend(body);
    // The write fails if the reader is gone.
    let _ = device.write(&reply);
}

/// Returns the bytes of the file that a read or write concerns.
fn part<'a>(request: &[u8], content: &'a mut [u8]) -> &'a mut [u8] {
    let len = u32_at(request, 56);
    let offset = u64::from_ne_bytes(request[48..56].try_into().expect("eight bytes"));
    let start = usize::try_from(offset).map_or(content.len(), |offset| offset.min(content.len()));
    let end = content.len().min(start + usize::try_from(len).expect("it fits"));
    &mut content[start..end]
}

/// `struct fuse_attr` of a regular file.
fn attributes(body: &mut Vec<u8>, size: u64) {
    [1, size, size / 512, 0, 0, 0]
        .iter()
        .for_each(|&word: &u64| body.extend(word.to_ne_bytes()));
    let mode = libc::S_IFREG | 0o644;
    [0, 0, 0, mode, 1, 0, 0, 0, 4096, 0]
        .iter()
        .for_each(|&word| put(body, word));
}

fn put(bytes: &mut Vec<u8>, word: u32) {
    bytes.extend(word.to_ne_bytes());
}

impl Gate {
    fn new(behavior: Behavior) -> Self {
        Self {
            behavior,
            state: Mutex::default(),
            changed: Condvar::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, GateState> {
        self.state.lock().expect("nobody panics")
    }

    fn pass_if(&self, behavior: Behavior) {
        if self.behavior == behavior {
            self.pass();
        }
    }

    fn pass(&self) {
        let mut state = self.lock();
        state.arrived = true;
        // The time limit makes a test fail, and not hang, if its own thread waits here.
        let waited = self.changed.wait_timeout_while(state, LONG, |state| !state.open);
        drop(waited.expect("nobody panics"));
    }
}

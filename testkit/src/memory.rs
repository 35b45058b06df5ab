//! Memory that a frontend shares with a backend, and eventfds.

use std::fs::{File, OpenOptions};
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use vm_memory::{Bytes, FileOffset, MmapRegion, VolatileMemory, VolatileSlice};

use crate::ring::RingMemory;

/// Time limit for anything that a test waits for.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Creates a file in memory that its receiver may seal. It is not mapped.
pub fn memfd(len: u64) -> File {
    // SAFETY: the name is a C string, the flags are valid.
    let fd = unsafe { libc::memfd_create(c"test".as_ptr(), libc::MFD_ALLOW_SEALING | libc::MFD_CLOEXEC) };
    assert!(fd >= 0, "create a file in memory");
    // SAFETY: the fd was just created and nobody else has it.
    let file = unsafe { File::from_raw_fd(fd) };
    file.set_len(len).expect("size the file");
    file
}

/// Creates an eventfd whose reads and writes never block.
pub fn eventfd() -> File {
    // SAFETY: no pointers are involved.
    let fd = unsafe { libc::eventfd(0, libc::EFD_NONBLOCK | libc::EFD_CLOEXEC) };
    assert!(fd >= 0, "create an eventfd");
    // SAFETY: the fd was just created and nobody else has it.
    unsafe { File::from_raw_fd(fd) }
}

/// A mapped file in memory. All access is volatile, since a backend uses the memory at the same time.
#[derive(Clone, Debug)]
pub struct SharedMemory(Arc<MmapRegion>);

impl SharedMemory {
    /// Maps a new file that cannot be sealed.
    pub fn new(len: usize) -> Self {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_TMPFILE)
            .open("/dev/shm")
            .expect("create a file in memory");
        file.set_len(len as u64).expect("size the memory");
        Self::map(file, len)
    }

    pub fn map(file: File, len: usize) -> Self {
        let region = MmapRegion::from_file(FileOffset::new(file, 0), len);
        Self(Arc::new(region.expect("map the memory")))
    }

    #[allow(clippy::len_without_is_empty, reason = "it is never empty")]
    pub fn len(&self) -> usize {
        self.0.size()
    }

    pub fn file(&self) -> &File {
        self.0.file_offset().expect("it is made from a file").file()
    }

    pub fn fd(&self) -> RawFd {
        self.file().as_raw_fd()
    }

    pub fn as_ptr(&self) -> *mut u8 {
        self.0.as_ptr()
    }

    fn slice(&self) -> VolatileSlice<'_> {
        self.0
            .get_slice(0, self.0.size())
            .expect("it is the whole memory")
    }

    pub fn read(&self, offset: usize, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.slice()
            .read_slice(&mut bytes, offset)
            .expect("inside the memory");
        bytes
    }

    pub fn write(&self, offset: usize, bytes: &[u8]) {
        self.slice()
            .write_slice(bytes, offset)
            .expect("inside the memory");
    }

    /// Reads an index that the backend publishes. What the backend wrote before is visible afterwards.
    pub fn load_u16(&self, offset: usize) -> u16 {
        u16::from_le(
            self.slice()
                .load(offset, Ordering::Acquire)
                .expect("inside the memory"),
        )
    }

    /// Publishes an index to the backend, and with it everything written before.
    pub fn store_u16(&self, offset: usize, value: u16) {
        self.slice()
            .store(value.to_le(), offset, Ordering::SeqCst)
            .expect("inside the memory");
    }
}

impl RingMemory for SharedMemory {
    fn read<const N: usize>(&self, offset: usize) -> [u8; N] {
        let mut bytes = [0; N];
        self.slice()
            .read_slice(&mut bytes, offset)
            .expect("inside the memory");
        bytes
    }

    fn write(&self, offset: usize, bytes: &[u8]) {
        Self::write(self, offset, bytes);
    }

    fn load_u16(&self, offset: usize) -> u16 {
        Self::load_u16(self, offset)
    }

    fn store_u16(&self, offset: usize, value: u16) {
        Self::store_u16(self, offset, value);
    }
}

/// Waits until `fd` can be read. Returns `false` after `timeout`.
pub fn wait_readable(fd: &impl AsRawFd, timeout: Duration) -> bool {
    let mut poll = libc::pollfd {
        fd: fd.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    let timeout = i32::try_from(timeout.as_millis()).expect("a short time");
    // SAFETY: `poll` is one valid entry.
    unsafe { libc::poll(&mut poll, 1, timeout) == 1 }
}

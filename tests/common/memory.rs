//! Memory that a frontend shares with the backend, and waiting for eventfds.

use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use vm_memory::{Bytes, FileOffset, MmapRegion, VolatileMemory, VolatileSlice};

/// Nothing that a test waits for takes longer, unless it is broken.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// A file in memory, not mapped, which whoever gets it may seal.
pub(crate) fn memfd(len: u64) -> File {
    // SAFETY: the name is a C string, the flags are valid.
    let fd = unsafe { libc::memfd_create(c"test".as_ptr(), libc::MFD_ALLOW_SEALING | libc::MFD_CLOEXEC) };
    assert!(fd >= 0, "make a file in memory");
    // SAFETY: the fd was just made and nobody else has it.
    let file = unsafe { File::from_raw_fd(fd) };
    file.set_len(len).expect("size the file");
    file
}

/// A file in memory, mapped here; all access is volatile, since a backend looks at it at the same time.
#[derive(Clone, Debug)]
pub(crate) struct SharedMemory(Arc<MmapRegion>);

impl SharedMemory {
    pub(crate) fn new(len: usize) -> Self {
        let file = tempfile::tempfile_in("/dev/shm").expect("make a file in memory");
        file.set_len(len as u64).expect("size the memory");
        Self(Arc::new(
            MmapRegion::from_file(FileOffset::new(file, 0), len).expect("map the memory"),
        ))
    }

    pub(crate) fn len(&self) -> usize {
        self.0.size()
    }

    pub(crate) fn file(&self) -> &File {
        self.0.file_offset().expect("it is made from a file").file()
    }

    pub(crate) fn fd(&self) -> RawFd {
        self.file().as_raw_fd()
    }

    pub(crate) fn as_ptr(&self) -> *mut u8 {
        self.0.as_ptr()
    }

    fn slice(&self) -> VolatileSlice<'_> {
        self.0.get_slice(0, self.0.size()).expect("the whole of it")
    }

    pub(crate) fn read(&self, offset: usize, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.slice()
            .read_slice(&mut bytes, offset)
            .expect("inside the memory");
        bytes
    }

    pub(crate) fn write(&self, offset: usize, bytes: &[u8]) {
        self.slice()
            .write_slice(bytes, offset)
            .expect("inside the memory");
    }

    /// Reads an index that the backend publishes; everything it wrote before is visible afterwards.
    pub(crate) fn load_u16(&self, offset: usize) -> u16 {
        u16::from_le(
            self.slice()
                .load(offset, Ordering::Acquire)
                .expect("inside the memory"),
        )
    }

    /// Publishes an index to the backend, and with it everything written before.
    pub(crate) fn store_u16(&self, offset: usize, value: u16) {
        let value = value.to_le();
        self.slice()
            .store(value, offset, Ordering::SeqCst)
            .expect("inside the memory");
    }
}

/// Waits until `fd` can be read; `false` after `timeout`.
pub(crate) fn wait_readable(fd: &impl AsRawFd, timeout: Duration) -> bool {
    let mut poll = libc::pollfd {
        fd: fd.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    let timeout = i32::try_from(timeout.as_millis()).expect("a short time");
    // SAFETY: `poll` is one valid entry.
    unsafe { libc::poll(&mut poll, 1, timeout) == 1 }
}

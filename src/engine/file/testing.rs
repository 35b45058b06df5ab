//! Shared by the tests of this folder.

use std::sync::Arc;

use crate::io::{IoRequest, Requests};
use crate::storage::{OpenOptions, RawFile};

/// Creates a file of 1 MiB in memory.
pub(super) fn file() -> Arc<RawFile> {
    let image = tempfile::NamedTempFile::new_in("/dev/shm").unwrap();
    image.as_file().set_len(1 << 20).unwrap();
    let options = OpenOptions {
        path: image.path().to_owned(),
        ..OpenOptions::default()
    };
    Arc::new(RawFile::open(&options).unwrap())
}

/// Returns adjacent reads of 512 bytes.
pub(super) fn sequence(count: u16, memory: &mut [u8; 512]) -> Requests {
    let one = |token| {
        let mut request = IoRequest::new();
        (request.token, request.offset) = (token, u64::from(token) * 512);
        // SAFETY: the memory outlives the requests, and its contents are never read.
        unsafe { request.iov.push(memory.as_mut_ptr(), 512) };
        request
    };
    (0..count).map(one).collect()
}

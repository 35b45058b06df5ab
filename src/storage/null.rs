//! Storage that is not there: for measuring everything else.

use super::Limits;

/// A disk of zeroes that forgets what is written to it, as QEMU's null-co. Reads leave the buffers as they are.
#[derive(Debug)]
pub struct NullStorage {
    size: u64,
    limits: Limits,
}

impl NullStorage {
    /// `size` bytes: a positive multiple of 512.
    pub(super) fn new(size: u64) -> Self {
        let limits = Limits {
            logical_block_size: 512,
            physical_block_size: 512,
            optimal_io_size: 0,
            request_alignment: 1,
            memory_alignment: 1,
            discard_granularity: 512,
            write_zeroes: true,
            read_only: false,
        };
        Self { size, limits }
    }

    pub(super) fn size(&self) -> u64 {
        self.size
    }

    pub(super) fn limits(&self) -> &Limits {
        &self.limits
    }
}

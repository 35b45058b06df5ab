//! Drives a file with one io_uring: one system call submits a batch and waits for completions.

use std::os::fd::AsRawFd;
use std::time::Instant;

use anyhow::{Context, Result};
use io_uring::{IoUring, opcode, squeue, types};
use vm_memory::MmapRegion;

use crate::lane::Counts;
use crate::load::Share;

/// An io_uring with a buffer for each request.
pub(crate) struct Uring {
    ring: IoUring,
    share: Share,
    len: u32,
    /// Submission time of each request in flight.
    submitted: Vec<Instant>,
    free: Vec<usize>,
    // Dropped after the ring: the kernel writes into the buffers while requests are in flight. See `drain`.
    buffers: MmapRegion,
}

impl Uring {
    pub(crate) fn new(share: Share) -> Result<Self> {
        let in_flight = share.in_flight;
        let len = u32::try_from(share.work.block_size)?;
        let entries = u32::try_from(in_flight.next_power_of_two())?;
        let ring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .build(entries)
            // Linux before 6.1 does not know these flags.
            .or_else(|_| IoUring::new(entries))
            .context("set up an io_uring")?;
        ring.submitter()
            .register_files(&[share.file.as_raw_fd()])
            .context("register the file")?;
        Ok(Self {
            ring,
            len,
            submitted: vec![Instant::now(); in_flight],
            free: (0..in_flight).collect(),
            buffers: MmapRegion::new(in_flight * len as usize).context("map buffers")?,
            share,
        })
    }

    /// Submits a request for each free buffer, waits for a completion, and takes all that have arrived.
    pub(crate) fn turn(&mut self, counts: &mut Counts) -> Result<()> {
        let now = Instant::now();
        while let Some(slot) = self.free.pop() {
            self.submitted[slot] = now;
            let entry = self.entry(slot);
            // SAFETY: the buffer stays mapped until the completion was taken (`drain`).
            unsafe { self.ring.submission().push(&entry) }.context("the ring has an entry for each slot")?;
        }
        self.ring.submit_and_wait(1).context("wait for the io_uring")?;
        self.take(counts)
    }

    /// Waits until nothing is in flight. Dropping the ring earlier would unmap buffers that the kernel still uses.
    pub(crate) fn drain(mut self) -> Result<()> {
        while self.free.len() < self.submitted.len() {
            self.ring.submit_and_wait(1).context("wait for the io_uring")?;
            self.take(&mut Counts::new())?;
        }
        Ok(())
    }

    fn take(&mut self, counts: &mut Counts) -> Result<()> {
        let now = Instant::now();
        for completion in self.ring.completion() {
            let slot = usize::try_from(completion.user_data())?;
            let ok = u32::try_from(completion.result()) == Ok(self.len);
            counts.completed(now.duration_since(self.submitted[slot]), ok);
            self.free.push(slot);
        }
        Ok(())
    }

    fn entry(&mut self, slot: usize) -> squeue::Entry {
        let buffer = self.buffers.as_ptr().wrapping_add(slot * self.len as usize);
        let (file, offset) = (types::Fixed(0), self.share.work.next_offset());
        let entry = if self.share.work.pattern.is_write() {
            opcode::Write::new(file, buffer, self.len).offset(offset).build()
        } else {
            opcode::Read::new(file, buffer, self.len).offset(offset).build()
        };
        entry.user_data(slot as u64)
    }
}

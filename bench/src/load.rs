//! The load on a backend.

use std::fs::File;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use virtio_driver::{VirtioBlkFeatureFlags, VirtioFeatureFlags};

use crate::args::{Pattern, Wait};
use crate::contention::Contention;
use crate::shape::Shape;
use crate::units::Random;

/// The program that drives the queues.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Frontend {
    /// This program.
    Native,
    /// fio in Linux in QEMU with KVM (scripts/bench-guest).
    GuestKvm,
    /// As `GuestKvm`, but QEMU emulates the CPUs.
    GuestTcg,
}

/// A load. All candidates of a case get the same load.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Load {
    pub(crate) frontend: Frontend,
    #[serde(flatten)]
    pub(crate) shape: Shape,
    /// One backend process serves all disks.
    #[serde(default)]
    pub(crate) one_process: bool,
    pub(crate) rw: Pattern,
    pub(crate) block_size: u64,
    pub(crate) wait: Wait,
    #[serde(default)]
    pub(crate) contention: Contention,
    /// Whether EVENT_IDX is offered to the backend.
    pub(crate) event_idx: bool,
    pub(crate) suppress: bool,
    pub(crate) driver_threads: u16,
    #[serde(skip)]
    pub(crate) warmup: Duration,
    #[serde(skip)]
    pub(crate) runtime: Duration,
}

impl Load {
    /// Returns the features that the frontend accepts.
    pub(crate) fn features(&self) -> u64 {
        // Without FLUSH a device must not cache writes, and not every backend respects that. With it, all do the same.
        let block = VirtioBlkFeatureFlags::MQ | VirtioBlkFeatureFlags::FLUSH;
        let features = VirtioFeatureFlags::VERSION_1.bits() | block.bits();
        match self.event_idx {
            true => features | VirtioFeatureFlags::RING_EVENT_IDX.bits(),
            false => features,
        }
    }

    /// Returns how long notifications are counted one by one, after the measurement.
    pub(crate) fn census(&self) -> Duration {
        (self.runtime / 5).min(Duration::from_millis(100))
    }
}

/// Generates the offsets of requests.
#[derive(Clone, Debug)]
pub(crate) struct Work {
    pub(crate) pattern: Pattern,
    pub(crate) block_size: u64,
    blocks: u64,
    random: Random,
    next_block: u64,
}

/// One thread's part of a load on files without a backend.
#[derive(Debug)]
pub(crate) struct Share {
    pub(crate) file: File,
    pub(crate) work: Work,
    pub(crate) in_flight: usize,
}

impl Work {
    /// Generates the requests of lane `lane` of `lanes` on a disk of `blocks` blocks. Sequential lanes start at
    /// different offsets.
    pub(crate) fn new(load: &Load, blocks: u64, lane: u64, lanes: u64) -> Self {
        Self {
            pattern: load.rw,
            block_size: load.block_size,
            blocks,
            random: Random::new(lane + 1),
            next_block: blocks / lanes * lane % blocks,
        }
    }

    pub(crate) fn next_offset(&mut self) -> u64 {
        let block = if self.pattern.is_random() {
            self.random.below(self.blocks)
        } else {
            let block = self.next_block;
            self.next_block = (block + 1) % self.blocks;
            block
        };
        block * self.block_size
    }
}

//! Disks as exports serve them: a block node, or a part of one, and how it is used.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::detect_zeroes::DetectZeroes;
use super::node::BlockNode;
use crate::storage::{self, Limits, LockMode};

/// Whether nodes are active. A process that has not activated a node leaves the image to others.
#[derive(Clone, Debug, Default)]
pub struct Activity(Vec<Arc<AtomicBool>>);

impl Activity {
    /// Adds the mark of a node.
    pub fn push(&mut self, mark: Arc<AtomicBool>) {
        self.0.push(mark);
    }

    /// Returns whether all nodes are active.
    pub fn get(&self) -> bool {
        // Relaxed: the image locks order what matters.
        self.0.iter().all(|mark| mark.load(Ordering::Relaxed))
    }

    /// Marks all nodes.
    pub fn set(&self, active: bool) {
        self.0
            .iter()
            .for_each(|mark| mark.store(active, Ordering::Relaxed));
    }
}

impl From<Arc<BlockNode>> for DiskView {
    fn from(node: Arc<BlockNode>) -> Self {
        Self::whole(node)
    }
}

/// A block node, or a part of one, as an export serves it. Offsets of requests are offsets in the node.
#[derive(Clone, Debug)]
pub struct DiskView {
    /// The node.
    pub node: Arc<BlockNode>,
    /// First byte of the disk in the node.
    pub start: u64,
    /// Maximum size of the disk in bytes. With `u64::MAX` it ends where the node ends.
    pub max_size: u64,
    /// The treatment of writes of zeroes.
    pub zeroes: DetectZeroes,
    /// Discards, and the permission to deallocate zeroes, are passed on to the node.
    pub unmap: bool,
    /// Whether the node and those between it and the disk are active.
    pub activity: Activity,
    /// Other programs may write to the image while this disk only reads (QEMU's `force-share`).
    pub force_share: bool,
}

impl DiskView {
    /// Makes a view of all of a node.
    pub fn whole(node: Arc<BlockNode>) -> Self {
        Self {
            node,
            start: 0,
            max_size: u64::MAX,
            zeroes: DetectZeroes::Off,
            unmap: true,
            activity: Activity::default(),
            force_share: false,
        }
    }

    /// Returns the size in bytes. It is 0 if the node has shrunk to less than the first byte.
    #[inline]
    pub fn size(&self) -> u64 {
        self.node.size().saturating_sub(self.start).min(self.max_size)
    }

    /// Returns whether this is all of the node, whatever its size is.
    pub fn is_whole(&self) -> bool {
        (self.start, self.max_size) == (0, u64::MAX)
    }

    /// Returns the limits of a disk with this view. It may have a larger logical block size, or be read-only.
    ///
    /// # Errors
    /// The logical block size is not possible, or the node's size is not a multiple of it.
    pub fn limits_for(
        &self,
        logical_block_size: Option<u32>,
        read_only: bool,
    ) -> Result<Limits, storage::Error> {
        let mut limits = *self.node.limits();
        if let Some(block) = logical_block_size {
            let size = match self.is_whole() {
                true => self.node.size(),
                // The end of a part is rounded down, or checked by those who chose it.
                false => 0,
            };
            limits = limits.with_logical_block_size(block, size, self.node.path())?;
        }
        // The guest aligns its requests to the start of the disk.
        while !self.start.is_multiple_of(limits.physical_block_size.into())
            && limits.physical_block_size > limits.logical_block_size
        {
            limits.physical_block_size /= 2;
        }
        Ok(match read_only {
            true => limits.read_only(),
            false => limits,
        })
    }

    /// Returns how a disk that `writes` or only reads locks the image.
    pub fn lock_mode(&self, writes: bool) -> LockMode {
        match (writes, self.force_share) {
            (true, _) => LockMode::Write,
            (false, true) => LockMode::ReadForceShare,
            (false, false) => LockMode::Read,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_ends_with_its_node() {
        let size = |start, max_size| {
            let node = Arc::new(BlockNode::null(4096));
            DiskView {
                start,
                max_size,
                ..DiskView::whole(node)
            }
            .size()
        };
        assert_eq!(
            [size(0, u64::MAX), size(512, u64::MAX), size(512, 1024)],
            [4096, 3584, 1024]
        );
        assert_eq!(
            [size(3584, 1024), size(4096, u64::MAX), size(8192, 512)],
            [512, 0, 0]
        );
    }
}

//! From the name of a node to the disk that an export of it serves.

use std::sync::Arc;

use super::{Kind, Nodes, Part};
use crate::daemon::options::{BlockdevOptions, DetectZeroes};
use crate::daemon::registry::error::OperationError;
use crate::engine::{self, Choice, DiskView};
use crate::throttle::Group;

/// The disk that an export of a node serves.
#[derive(Clone, Debug)]
pub(in super::super) struct Resolved {
    pub(in super::super) view: DiskView,
    /// The engine for its I/O.
    pub(in super::super) engine: Choice,
    /// The maximum number of requests in one submission to the kernel, or 0 for no maximum of its own.
    pub(in super::super) max_batch: u64,
    pub(in super::super) group: Option<Arc<Group>>,
    pub(in super::super) read_only: bool,
    /// The size is fixed, so it does not follow the image.
    pub(in super::super) is_fixed: bool,
}

impl Nodes {
    /// Returns the disk that an export of `name` would serve.
    ///
    /// # Errors
    /// There is no such node, or two throttle nodes are on the way down.
    pub(in super::super) fn resolve(&self, name: &str) -> Result<Resolved, OperationError> {
        let node = self.get(name)?;
        let options = &node.options;
        let mut resolved = match &node.kind {
            Kind::Leaf(leaf) => Resolved {
                view: DiskView::whole(Arc::clone(leaf)),
                engine: options.aio.map_or(Choice::Auto, Choice::from),
                max_batch: options.aio_max_batch.unwrap_or(0),
                group: None,
                read_only: leaf.limits().read_only,
                is_fixed: false,
            },
            Kind::Raw { child, .. } | Kind::Throttle { child, .. } => self.resolve(child)?,
            Kind::Format { child, disk, .. } => {
                let below = self.resolve(child)?;
                Resolved {
                    view: DiskView {
                        activity: below.view.activity,
                        force_share: below.view.force_share,
                        ..DiskView::whole(Arc::clone(disk))
                    },
                    read_only: disk.limits().read_only,
                    group: None,
                    is_fixed: false,
                    ..below
                }
            }
        };
        match &node.kind {
            Kind::Leaf(_) | Kind::Format { .. } => {}
            Kind::Raw { part, .. } => resolved.narrow(part),
            Kind::Throttle { group, .. } => {
                if resolved.group.replace(Arc::clone(group)).is_some() {
                    return Err(OperationError::ThrottledTwice);
                }
            }
        }
        resolved.detect_zeroes(options.detect_zeroes);
        let view = &mut resolved.view;
        if node.child().is_some() {
            // A leaf has this option itself.
            view.unmap &= options.unmaps();
        }
        view.force_share |= options.shares_writing();
        view.activity.push(Arc::clone(&node.active));
        resolved.read_only |= options.is_read_only();
        Ok(resolved)
    }
}

impl Resolved {
    /// Leaves only a part of the disk.
    fn narrow(&mut self, part: &Part) {
        let view = &mut self.view;
        let rest = match view.max_size {
            u64::MAX => u64::MAX,
            size => size.saturating_sub(part.offset),
        };
        view.start = view.start.saturating_add(part.offset);
        view.max_size = part.size.unwrap_or(u64::MAX).min(rest);
        self.is_fixed |= part.size.is_some();
    }

    /// The first node from above that detects zeroes decides, because the nodes below see no write any more.
    fn detect_zeroes(&mut self, option: DetectZeroes) {
        let view = &mut self.view;
        view.zeroes = match option {
            DetectZeroes::Off => return,
            DetectZeroes::Unmap if view.unmap => engine::DetectZeroes::Unmap,
            DetectZeroes::On | DetectZeroes::Unmap => engine::DetectZeroes::On,
        };
    }
}

impl Part {
    /// Reads the part of a node that `options` describe. `below` is what the node below shows.
    ///
    /// # Errors
    /// The part is not within the node below, or not aligned.
    pub(super) fn of(options: &BlockdevOptions, below: &DiskView) -> Result<Self, OperationError> {
        let part = Self {
            offset: options.offset.unwrap_or(0),
            size: options.size,
        };
        let (offset, whole) = (part.offset, below.size());
        if offset > whole {
            return Err(OperationError::OffsetPastEnd { offset, whole });
        }
        if let Some(size) = part.size {
            if whole - offset < size {
                return Err(OperationError::PartPastEnd { offset, size, whole });
            }
            if !size.is_multiple_of(SECTOR) {
                return Err(OperationError::PartSize);
            }
        }
        let unit = below.node.limits().request_alignment;
        match (below.start + offset).is_multiple_of(unit.into()) {
            true => Ok(part),
            false => Err(OperationError::PartAlignment { offset, unit }),
        }
    }
}

/// Unit of sizes, as in QEMU.
const SECTOR: u64 = 512;

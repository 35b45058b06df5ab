//! Nodes in Ceph clusters.

use std::sync::Arc;

use super::super::error::{OperationError, require};
use super::Images;
use super::open::remote_options;
use crate::ceph::ImageName;
use crate::daemon::options::BlockdevOptions;
use crate::engine::{BlockNode, RbdDisk};

impl Images {
    /// Opens an image in a cluster.
    pub(super) fn open_rbd(&mut self, options: &BlockdevOptions) -> Result<BlockNode, OperationError> {
        let name = ImageName {
            pool: require("pool", options.pool.clone())?,
            namespace: options
                .namespace
                .clone()
                .filter(|namespace| !namespace.is_empty()),
            image: require("image", options.image.clone())?,
            snapshot: options.snapshot.clone(),
        };
        let cluster = self.clusters.get(options, &self.credentials, self.confined)?;
        Ok(RbdDisk::open(&cluster, &name, remote_options(options))?.into())
    }
}

/// Returns an open image with other options, whose lock stays. `None`: it has to be opened again.
pub(in super::super) fn reopened(old: &BlockNode, options: &BlockdevOptions) -> Option<Arc<BlockNode>> {
    let options = options.all().last()?;
    old.rbd_reopened(remote_options(options)).map(Arc::new)
}

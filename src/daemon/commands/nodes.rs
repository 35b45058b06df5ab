//! `query-named-block-nodes`.

use serde::Deserialize;
use serde_json::{Value, json};

use super::convert::to_value;
use crate::daemon::registry::{Node, Registry};
use crate::qmp::{Outcome, QmpError};

/// Accepted and ignored: nodes have no backing files here, so every list is flat.
#[derive(Debug, Deserialize)]
pub(super) struct Flat {
    #[serde(rename = "flat")]
    _flat: Option<bool>,
}

pub(super) fn query_named_block_nodes(registry: &mut Registry, _: Flat) -> Outcome {
    let named = registry.nodes().map(|(name, node)| info(registry, name, node));
    named.collect::<Result<Vec<_>, _>>().map(Value::from)
}

fn info(registry: &Registry, name: &str, node: &Node) -> Outcome {
    let options = node.options();
    let disk = registry.disk_of(name).map_err(QmpError::from)?;
    let limits = node.group().map(|group| group.limits()).unwrap_or_default();
    let filename = disk.path().display().to_string();
    Ok(json!({
        "node-name": name,
        "drv": options.driver.name(),
        "file": filename,
        "ro": options.read_only || disk.limits().read_only,
        "active": options.active != Some(false),
        "encrypted": false,
        "detect_zeroes": to_value(&options.detect_zeroes)?,
        "backing_file_depth": 0,
        "bps": limits.bps_total, "bps_rd": limits.bps_read, "bps_wr": limits.bps_write,
        "iops": limits.iops_total, "iops_rd": limits.iops_read, "iops_wr": limits.iops_write,
        "write_threshold": 0,
        "image": {"filename": filename, "format": options.driver.name(), "virtual-size": disk.size()},
        "cache": {"writeback": true, "direct": options.cache.direct, "no-flush": options.cache.no_flush},
    }))
}

//! The commands for block nodes.

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::command::{NOTHING, done, in_time, later, query};
use super::convert::{to_value, typed};
use super::node_types as types;
use crate::daemon::handle::Handle;
use crate::daemon::options::BlockdevOptions;
use crate::daemon::registry::{Done, Node, Registry};
use crate::qmp::{Command, Outcome, QmpError, Reply, Scope};

pub(super) fn commands() -> Vec<Command<Handle>> {
    vec![
        in_time("blockdev-add", &types::BLOCKDEV, Registry::blockdev_add),
        in_time("blockdev-reopen", &types::REOPEN, blockdev_reopen),
        in_time("blockdev-snapshot", &types::SNAPSHOT, blockdev_snapshot),
        in_time("blockdev-set-active", &types::SET_ACTIVE, blockdev_set_active),
        in_time("blockdev-del", &types::NODE_NAME, blockdev_del),
        query(
            "query-named-block-nodes",
            &types::FLAT,
            types::NODES,
            query_named_block_nodes,
        ),
        later("block_resize", &types::RESIZE, NOTHING, block_resize),
    ]
}

#[derive(Debug, Deserialize)]
struct Reopen {
    options: Vec<BlockdevOptions>,
}

fn blockdev_reopen(registry: &mut Registry, Reopen { options }: Reopen, done: Done) {
    registry.blockdev_reopen(options, done);
}

#[derive(Debug, Deserialize)]
struct Snapshot {
    node: String,
    overlay: String,
}

fn blockdev_snapshot(registry: &mut Registry, Snapshot { node, overlay }: Snapshot, done: Done) {
    registry.blockdev_snapshot(&node, &overlay, done);
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct SetActive {
    node_name: Option<String>,
    active: bool,
}

fn blockdev_set_active(registry: &mut Registry, SetActive { node_name, active }: SetActive, done: Done) {
    registry.set_active(node_name.as_deref(), active, done);
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct NodeName {
    node_name: String,
}

fn blockdev_del(registry: &mut Registry, NodeName { node_name }: NodeName, done: Done) {
    registry.blockdev_del(&node_name, done);
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct NewSize {
    device: Option<String>,
    node_name: Option<String>,
    size: i64,
}

fn block_resize(scope: &mut Scope<'_, Handle>, arguments: Map<String, Value>, reply: Reply) {
    match typed(arguments).and_then(new_size) {
        Ok((name, size)) => scope
            .context
            .call(move |registry| registry.block_resize(&name, size, done(reply))),
        Err(refusal) => reply.send(Err(refusal)),
    }
}

fn new_size(arguments: NewSize) -> Result<(String, u64), QmpError> {
    // Both name a node, because there are no other devices.
    let name = arguments.node_name.or(arguments.device);
    let name = name.ok_or_else(|| QmpError::generic("Neither 'node-name' nor 'device' is given"))?;
    let size = u64::try_from(arguments.size).ok().filter(|size| *size > 0);
    let size = size.ok_or_else(|| QmpError::generic("Parameter 'size' expects a positive number"))?;
    Ok((name, size))
}

/// A flat list does not look below nodes.
#[derive(Debug, Deserialize)]
struct Flat {
    flat: Option<bool>,
}

fn query_named_block_nodes(registry: &Registry, Flat { flat }: Flat) -> Outcome {
    let flat = flat.unwrap_or_default();
    let named = registry
        .nodes()
        .map(|(name, node)| info(registry, name, node, flat));
    named.collect::<Result<Vec<_>, _>>().map(Value::from)
}

fn info(registry: &Registry, name: &str, node: &Node, flat: bool) -> Outcome {
    let options = node.options();
    let view = registry.view_of(name).map_err(QmpError::from)?;
    let limits = node.group().map(|group| group.limits()).unwrap_or_default();
    let filename = registry.filename_of(name);
    let mut image =
        json!({"filename": filename, "format": options.driver.name(), "virtual-size": view.size()});
    if let Some(bytes) = view.node.allocated() {
        image["actual-size"] = bytes.into();
    }
    Ok(json!({
        "node-name": name,
        "drv": options.driver.name(),
        "file": filename,
        "ro": options.is_read_only() || node.child().is_none() && view.node.limits().read_only,
        "active": node.is_active(),
        "encrypted": false,
        "detect_zeroes": to_value(&options.detect_zeroes)?,
        "backing_file_depth": if flat { 0 } else { registry.backing_depth(name) },
        "bps": limits.bps_total, "bps_rd": limits.bps_read, "bps_wr": limits.bps_write,
        "iops": limits.iops_total, "iops_rd": limits.iops_read, "iops_wr": limits.iops_write,
        "write_threshold": 0,
        "image": image,
        "cache": {"writeback": true, "direct": options.cache.is_direct(), "no-flush": options.cache.ignores_flushes()},
    }))
}

//! `add`, `remove`, `resize` and `throttle`.

use std::io::{Write, stdout};
use std::path::Path;

use anyhow::{Context, Result, anyhow};
use serde_json::{Map, Value, json};

use crate::args::{Add, Throttle};
use crate::qmp::Qmp;
use crate::snapshot::Snapshot;

/// Adds a disk: its node, and then its export. If the export is refused, the node is removed again.
pub(crate) fn add(qmp: &mut Qmp, options: &Add) -> Result<()> {
    let (node, export) = (blockdev(options)?, export(options)?);
    qmp.execute("blockdev-add", &node)?;
    if let Err(refusal) = qmp.execute("block-export-add", &export) {
        let removed = qmp.execute("blockdev-del", &json!({ "node-name": options.disk }));
        return Err(match removed {
            Ok(_) => refusal,
            Err(error) => refusal.context(format!("the node '{}' stays: {error}", options.disk)),
        });
    }
    writeln!(
        stdout(),
        "disk {} listens at {}",
        options.disk,
        options.listen.display()
    )?;
    Ok(())
}

fn blockdev(options: &Add) -> Result<Value> {
    let mut file = json!({
        "driver": if is_device(&options.file) { "host_device" } else { "file" },
        "filename": text(&options.file)?,
        "discard": "unmap",
        "read-only": options.read_only,
        "cache": { "direct": options.direct },
    });
    let Some(group) = &options.throttle_group else {
        file["node-name"] = options.disk.as_str().into();
        return Ok(file);
    };
    Ok(json!({
        "driver": "throttle",
        "node-name": options.disk,
        "throttle-group": group,
        "read-only": options.read_only,
        "discard": "unmap",
        "cache": { "direct": options.direct },
        "file": file,
    }))
}

fn is_device(path: &Path) -> bool {
    use std::os::unix::fs::FileTypeExt;
    path.metadata()
        .is_ok_and(|meta| meta.file_type().is_block_device())
}

fn export(options: &Add) -> Result<Value> {
    let mut address = json!({ "type": "unix", "path": text(&options.listen)? });
    for (name, value) in [("mode", &options.mode), ("group", &options.group)] {
        if let Some(value) = value {
            address[name] = value.as_str().into();
        }
    }
    let mut export = json!({
        "type": "vhost-user-blk",
        "id": options.disk,
        "node-name": options.disk,
        "addr": address,
        "writable": !options.read_only,
        "num-queues": options.num_queues,
    });
    if !options.iothread.is_empty() {
        export["iothread"] = json!(options.iothread);
    }
    Ok(export)
}

/// Returns an absolute path, because the daemon has another working directory.
fn text(path: &Path) -> Result<String> {
    let path = std::path::absolute(path).with_context(|| format!("{}", path.display()))?;
    let text = path
        .to_str()
        .ok_or_else(|| anyhow!("{} is not UTF-8", path.display()))?;
    Ok(text.to_owned())
}

/// Removes a disk and its node.
pub(crate) fn remove(qmp: &mut Qmp, id: &str, hard: bool) -> Result<()> {
    let node = Snapshot::take(qmp)?.disk(id)?.node.node_name.clone();
    let mode = if hard { "hard" } else { "safe" };
    qmp.execute("block-export-del", &json!({ "id": id, "mode": mode }))?;
    let closed = qmp.execute("blockdev-del", &json!({ "node-name": node }));
    closed.with_context(|| format!("disk {id} is removed, but its node '{node}' stays"))?;
    Ok(())
}

/// Resizes the image of a disk.
pub(crate) fn resize(qmp: &mut Qmp, id: &str, size: u64) -> Result<()> {
    let snapshot = Snapshot::take(qmp)?;
    let node = &snapshot.disk(id)?.node.node_name;
    qmp.execute("block_resize", &json!({ "node-name": node, "size": size }))?;
    Ok(())
}

/// Changes the limits of a throttle group if some are given, and prints all that are in force.
pub(crate) fn throttle(qmp: &mut Qmp, options: &Throttle) -> Result<()> {
    let path = format!("/objects/{}", options.group);
    let mut limits = Map::new();
    let totals = [("iops-total", options.iops), ("bps-total", options.bps)];
    limits.extend(
        totals
            .into_iter()
            .filter_map(|(name, limit)| Some((name.to_owned(), limit?.into()))),
    );
    limits.extend(
        options
            .limit
            .iter()
            .map(|(name, limit)| (name.clone(), (*limit).into())),
    );
    if !limits.is_empty() {
        let arguments = json!({ "path": path, "property": "limits", "value": limits });
        qmp.execute("qom-set", &arguments)?;
    }
    let now = qmp.execute("qom-get", &json!({ "path": path, "property": "limits" }))?;
    let members = now.as_object().into_iter().flatten();
    // A burst length means something only if there is a burst.
    let in_force = members.filter(|(name, limit)| limit.as_u64() > Some(0) && !name.ends_with("-length"));
    let lines: String = in_force
        .map(|(name, limit)| format!("{name}={limit}\n"))
        .collect();
    let text = if lines.is_empty() {
        "no limits\n".to_owned()
    } else {
        lines
    };
    stdout().write_all(text.as_bytes())?;
    Ok(())
}

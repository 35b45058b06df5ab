//! `remove`, `resize` and `throttle`.

use std::io::{Write, stdout};

use anyhow::{Context, Result};
use serde_json::{Map, Value, json};

use crate::add::is_part;
use crate::args::Throttle;
use crate::qmp::Qmp;
use crate::snapshot::Snapshot;

/// Removes a disk and its nodes.
pub(crate) fn remove(qmp: &mut Qmp, id: &str, hard: bool) -> Result<()> {
    let node = Snapshot::take(qmp)?.disk(id)?.node.node_name.clone();
    let parts = parts(qmp, id)?;
    let mode = if hard { "hard" } else { "safe" };
    qmp.execute("block-export-del", &json!({ "id": id, "mode": mode }))?;
    let closed = qmp.execute("blockdev-del", &json!({ "node-name": node }));
    closed.with_context(|| format!("disk {id} is removed, but its node '{node}' stays"))?;
    for part in parts {
        let closed = qmp.execute("blockdev-del", &json!({ "node-name": part }));
        closed.with_context(|| format!("disk {id} is removed, but the node '{part}' stays"))?;
    }
    Ok(())
}

/// Returns the nodes of the files that the image of a disk names, those above first.
fn parts(qmp: &mut Qmp, id: &str) -> Result<Vec<String>> {
    let nodes: Vec<Value> = qmp.query("query-named-block-nodes")?;
    let names = nodes.iter().filter_map(|node| node["node-name"].as_str());
    let mut parts: Vec<String> = names
        .filter(|name| is_part(name, id))
        .map(str::to_owned)
        .collect();
    // Numbers grow from the top down.
    parts.sort_by_key(|name| number(name));
    Ok(parts)
}

fn number(name: &str) -> u64 {
    let digits = name.trim_end_matches(|c: char| c.is_ascii_digit()).len();
    name[digits..].parse().unwrap_or_default()
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

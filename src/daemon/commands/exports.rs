//! The commands for exports.

use std::time::Duration;

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::blockstats::query_blockstats;
use super::command::{NOTHING, done, later, on_registry, query};
use super::convert::{Nothing, to_value, typed};
use super::export_types as types;
use crate::daemon::handle::Handle;
use crate::daemon::options::ExportOptions;
use crate::daemon::registry::{Registry, RemoveMode};
use crate::qmp::schema::Object;
use crate::qmp::{Command, Outcome, QmpError, Reply, Scope};

pub(super) fn commands() -> Vec<Command<Handle>> {
    vec![
        later("block-export-add", &types::EXPORT, NOTHING, block_export_add),
        later("block-export-del", &types::EXPORT_DEL, NOTHING, block_export_del),
        query(
            "query-block-exports",
            Object::EMPTY,
            types::EXPORTS,
            query_block_exports,
        ),
        query(
            "query-blockstats",
            &types::QUERY_NODES,
            types::BLOCKSTATS,
            query_blockstats,
        ),
        on_registry(
            "__vhost-user-blk_trace-requests",
            &types::TRACE_REQUESTS,
            NOTHING,
            trace_requests,
        ),
    ]
}

fn block_export_add(scope: &mut Scope<'_, Handle>, arguments: Map<String, Value>, reply: Reply) {
    let socket = typed(arguments).and_then(|options: ExportOptions| {
        let socket = options
            .addr
            .name()
            .map(|name| scope.take_named(name))
            .transpose()?;
        Ok((options, socket))
    });
    let (options, socket) = match socket {
        Ok(found) => found,
        Err(refusal) => return reply.send(Err(refusal)),
    };
    scope
        .context
        .call(move |registry| registry.export_add(options, socket, done(reply)));
}

#[derive(Debug, Deserialize)]
struct Removal {
    id: String,
    #[serde(default)]
    mode: RemoveMode,
}

fn block_export_del(scope: &mut Scope<'_, Handle>, arguments: Map<String, Value>, reply: Reply) {
    let Removal { id, mode } = match typed(arguments) {
        Ok(removal) => removal,
        Err(refusal) => return reply.send(Err(refusal)),
    };
    scope.context.call(move |registry| {
        registry.export_del(&id, mode, done(reply));
    });
}

/// Longest time that a client can ask for at once, in seconds. It may ask again.
const TRACE_MAX: u64 = 3600;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Tracing {
    id: String,
    slower_than_ns: u64,
    seconds: u64,
}

fn trace_requests(registry: &mut Registry, tracing: Tracing) -> Outcome {
    let Tracing {
        id,
        slower_than_ns,
        seconds,
    } = tracing;
    if seconds > TRACE_MAX {
        let reason = format!("Parameter 'seconds' expects a number from 0 to {TRACE_MAX}");
        return Err(QmpError::generic(reason));
    }
    registry.trace_requests(
        &id,
        Duration::from_nanos(slower_than_ns),
        Duration::from_secs(seconds),
    )?;
    Ok(json!({}))
}

fn query_block_exports(registry: &Registry, _: Nothing) -> Outcome {
    to_value(&registry.query_exports())
}

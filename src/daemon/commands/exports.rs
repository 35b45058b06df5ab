//! The commands for exports.

use serde::Deserialize;
use serde_json::{Map, Value};

use super::blockstats::query_blockstats;
use super::command::{NOTHING, done, later, on_registry};
use super::convert::{Nothing, to_value, typed};
use super::types;
use crate::daemon::handle::Handle;
use crate::daemon::options::ExportOptions;
use crate::daemon::registry::{Registry, RemoveMode};
use crate::qmp::schema::Object;
use crate::qmp::{Command, Outcome, Reply, Scope};

pub(super) fn commands() -> Vec<Command<Handle>> {
    vec![
        later("block-export-add", &types::EXPORT, NOTHING, block_export_add),
        later("block-export-del", &types::EXPORT_DEL, NOTHING, block_export_del),
        on_registry(
            "query-block-exports",
            Object::EMPTY,
            types::EXPORTS,
            query_block_exports,
        ),
        on_registry(
            "query-blockstats",
            &types::QUERY_NODES,
            types::BLOCKSTATS,
            query_blockstats,
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

fn query_block_exports(registry: &mut Registry, _: Nothing) -> Outcome {
    to_value(&registry.query_exports())
}

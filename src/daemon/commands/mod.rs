//! The QMP commands that change and query the registry, and the events of its disks.
//!
//! The monitor thread checks arguments and hands each command to the main thread, which answers it. A command that
//! takes time is answered when it has ended; neither thread waits for it.

mod blockstats;
mod convert;
mod disk_events;
mod nodes;
mod qom;
mod types;

pub(super) use disk_events::tell_of_disk;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use self::convert::{Nothing, to_value, typed};
use self::qom::{qom_get, qom_list, qom_set};
use super::handle::Handle;
use super::options::{AddressType, BlockdevOptions, ExportOptions};
use super::registry::{Notice, OperationError, Registry, RemoveMode};
use crate::qmp::events::BLOCK_EXPORT_DELETED;
use crate::qmp::schema::{Object, Type};
use crate::qmp::{Command, Events, Outcome, QmpError, Reply, Run, Scope};

const NOTHING: Type = Type::Object(Object::EMPTY);

type Arguments = Map<String, Value>;
type Later = fn(&mut Scope<'_, Handle>, Arguments, Reply);

/// Sends the notices of the registry to clients as events.
pub(super) fn tell(clients: &Events, notice: &Notice) {
    match notice {
        Notice::ExportDeleted { id } => {
            let data = [("id".to_owned(), id.clone().into())];
            clients.emit(&BLOCK_EXPORT_DELETED, data.into_iter().collect());
        }
    }
}

/// Returns the commands of the registry.
pub(super) fn commands() -> Vec<Command<Handle>> {
    let command = |name, arguments, returns, run: Later| Command {
        name,
        arguments,
        returns,
        run: Run::Later(run),
    };
    vec![
        command("object-add", &types::OBJECT, NOTHING, object_add),
        command("object-del", &types::ID, NOTHING, object_del),
        command(
            "qom-list",
            &types::PATH,
            types::PROPERTIES,
            |scope, arguments, reply| {
                on_registry(scope, arguments, reply, qom_list);
            },
        ),
        command(
            "qom-get",
            &types::PROPERTY,
            Type::Any,
            |scope, arguments, reply| {
                on_registry(scope, arguments, reply, qom_get);
            },
        ),
        command(
            "qom-set",
            &types::PROPERTY_VALUE,
            NOTHING,
            |scope, arguments, reply| {
                on_registry(scope, arguments, reply, qom_set);
            },
        ),
        command(
            "query-iothreads",
            Object::EMPTY,
            types::IOTHREADS,
            |scope, arguments, reply| {
                on_registry(scope, arguments, reply, qom::query_iothreads);
            },
        ),
        command(
            "blockdev-add",
            &types::BLOCKDEV,
            NOTHING,
            |scope, arguments, reply| {
                on_registry(scope, arguments, reply, |registry, options| {
                    registry.blockdev_add(options)?;
                    Ok(json!({}))
                });
            },
        ),
        command("blockdev-reopen", &types::REOPEN, NOTHING, blockdev_reopen),
        command("blockdev-del", &types::NODE_NAME, NOTHING, blockdev_del),
        command(
            "query-named-block-nodes",
            &types::FLAT,
            types::NODES,
            |scope, arguments, reply| {
                on_registry(scope, arguments, reply, nodes::query_named_block_nodes);
            },
        ),
        command(
            "query-blockstats",
            &types::QUERY_NODES,
            types::BLOCKSTATS,
            |scope, arguments, reply| {
                on_registry(scope, arguments, reply, blockstats::query_blockstats);
            },
        ),
        command("block_resize", &types::RESIZE, NOTHING, block_resize),
        command("block-export-add", &types::EXPORT, NOTHING, block_export_add),
        command("block-export-del", &types::EXPORT_DEL, NOTHING, block_export_del),
        command(
            "query-block-exports",
            Object::EMPTY,
            types::EXPORTS,
            |scope, arguments, reply| {
                on_registry(scope, arguments, reply, |registry, _: Nothing| {
                    to_value(&registry.query_exports())
                });
            },
        ),
    ]
}

/// Reads the arguments, and runs the rest of a command on the main thread.
fn on_registry<T: DeserializeOwned + Send + 'static>(
    scope: &Scope<'_, Handle>,
    arguments: Arguments,
    reply: Reply,
    run: impl FnOnce(&mut Registry, T) -> Outcome + Send + 'static,
) {
    match typed(arguments) {
        Ok(arguments) => scope
            .context
            .call(move |registry| reply.send(run(registry, arguments))),
        Err(refusal) => reply.send(Err(refusal)),
    }
}

fn object_add(scope: &mut Scope<'_, Handle>, arguments: Arguments, reply: Reply) {
    on_registry(scope, arguments, reply, |registry, options| {
        registry.object_add(options)?;
        Ok(json!({}))
    });
}

fn object_del(scope: &mut Scope<'_, Handle>, arguments: Arguments, reply: Reply) {
    #[derive(Deserialize)]
    struct Id {
        id: String,
    }
    on_registry(scope, arguments, reply, |registry, Id { id }| {
        registry.object_del(&id)?;
        Ok(json!({}))
    });
}

fn blockdev_reopen(scope: &mut Scope<'_, Handle>, arguments: Arguments, reply: Reply) {
    #[derive(Deserialize)]
    struct Options {
        options: Vec<BlockdevOptions>,
    }
    on_registry(scope, arguments, reply, |registry, Options { options }| {
        registry.blockdev_reopen(options)?;
        Ok(json!({}))
    });
}

fn blockdev_del(scope: &mut Scope<'_, Handle>, arguments: Arguments, reply: Reply) {
    #[derive(Deserialize)]
    #[serde(rename_all = "kebab-case")]
    struct NodeName {
        node_name: String,
    }
    on_registry(scope, arguments, reply, |registry, NodeName { node_name }| {
        registry.blockdev_del(&node_name)?;
        Ok(json!({}))
    });
}

fn block_resize(scope: &mut Scope<'_, Handle>, arguments: Arguments, reply: Reply) {
    #[derive(Deserialize)]
    #[serde(rename_all = "kebab-case")]
    struct NewSize {
        device: Option<String>,
        node_name: Option<String>,
        size: i64,
    }
    on_registry(scope, arguments, reply, |registry, arguments: NewSize| {
        // Both name a node, because there are no other devices.
        let name = arguments.node_name.or(arguments.device);
        let name = name.ok_or_else(|| QmpError::generic("Neither 'node-name' nor 'device' is given"))?;
        let size = u64::try_from(arguments.size).ok().filter(|size| *size > 0);
        let size = size.ok_or_else(|| QmpError::generic("Parameter 'size' expects a positive number"))?;
        registry.block_resize(&name, size)?;
        Ok(json!({}))
    });
}

fn block_export_add(scope: &mut Scope<'_, Handle>, arguments: Arguments, reply: Reply) {
    let socket = typed(arguments).and_then(|options: ExportOptions| {
        let socket = match (options.addr.kind, options.addr.text.as_deref()) {
            (AddressType::Fd, Some(name)) if !name.starts_with(|c: char| c.is_ascii_digit()) => {
                Some(scope.take_named(name)?)
            }
            _ => None,
        };
        Ok((options, socket))
    });
    let (options, socket) = match socket {
        Ok(found) => found,
        Err(refusal) => return reply.send(Err(refusal)),
    };
    scope.context.call(move |registry| {
        let added = match socket {
            Some(socket) => registry.export_add_on(&options, socket),
            None => registry.export_add(&options),
        };
        reply.send(added.map(|()| json!({})).map_err(QmpError::from));
    });
}

fn block_export_del(scope: &mut Scope<'_, Handle>, arguments: Arguments, reply: Reply) {
    #[derive(Deserialize)]
    struct Removal {
        id: String,
        #[serde(default)]
        mode: RemoveMode,
    }
    let Removal { id, mode } = match typed(arguments) {
        Ok(removal) => removal,
        Err(refusal) => return reply.send(Err(refusal)),
    };
    scope.context.call(move |registry| {
        let done = move |outcome: Result<(), OperationError>| {
            reply.send(outcome.map(|()| json!({})).map_err(QmpError::from));
        };
        registry.export_del(&id, mode, Box::new(done));
    });
}

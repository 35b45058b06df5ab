//! The commands for objects.

use serde::Deserialize;
use serde_json::json;

use super::command::{NOTHING, on_registry, query};
use super::object_types as types;
use super::qom::{qom_get, qom_list, qom_set, query_iothreads};
use crate::daemon::handle::Handle;
use crate::daemon::options::ObjectOptions;
use crate::daemon::registry::Registry;
use crate::qmp::schema::{Object, Type};
use crate::qmp::{Command, Outcome};

pub(super) fn commands() -> Vec<Command<Handle>> {
    vec![
        on_registry("object-add", &types::OBJECT, NOTHING, object_add),
        on_registry("object-del", &types::ID, NOTHING, object_del),
        query("qom-list", &types::PATH, types::PROPERTIES, qom_list),
        query("qom-get", &types::PROPERTY, Type::Any, qom_get),
        on_registry("qom-set", &types::PROPERTY_VALUE, NOTHING, qom_set),
        query(
            "query-iothreads",
            Object::EMPTY,
            types::IOTHREADS,
            query_iothreads,
        ),
    ]
}

fn object_add(registry: &mut Registry, options: ObjectOptions) -> Outcome {
    registry.object_add(options)?;
    Ok(json!({}))
}

#[derive(Debug, Deserialize)]
struct Id {
    id: String,
}

fn object_del(registry: &mut Registry, Id { id }: Id) -> Outcome {
    registry.object_del(&id)?;
    Ok(json!({}))
}

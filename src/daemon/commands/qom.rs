//! Shows objects as in QEMU's object model: `/objects/ID` and properties.

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::convert::{Nothing, to_value, typed};
use super::limit_types::SET_LIMITS;
use crate::daemon::options::{IoThreadOptions, ObjectType};
use crate::daemon::registry::{IoThreadObject, IoThreadProperty, Object, Registry};
use crate::iothread::IoThreadFigures;
use crate::qmp::{ErrorClass, Outcome, QmpError};
use crate::throttle::Group;

/// The parent of all user-created objects, below the root.
const OBJECTS: &str = "objects";

#[derive(Debug, Deserialize)]
pub(super) struct Path {
    path: String,
}

#[derive(Debug, Deserialize)]
pub(super) struct Property {
    path: String,
    property: String,
}

#[derive(Debug, Deserialize)]
pub(super) struct PropertyValue {
    path: String,
    property: String,
    value: Value,
}

/// The end of a path.
#[derive(Debug)]
enum Target<'a> {
    /// `/`, which only has `/objects`.
    Root,
    /// `/objects`, which has all objects.
    Objects,
    Object(&'a Object),
}

/// Follows an absolute path, or a partial path: the end of the path of one object. As in QEMU, empty parts have no
/// meaning.
fn resolve<'a>(registry: &'a Registry, path: &str) -> Result<Target<'a>, QmpError> {
    let ambiguous = || QmpError::generic(format!("Path '{path}' is ambiguous"));
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    let object = |id: &str| registry.object(id).map(Target::Object);
    let found = match (path.starts_with('/'), parts.as_slice()) {
        (true, []) => Some(Target::Root),
        (false, []) => return Err(ambiguous()),
        (true, [OBJECTS]) => Some(Target::Objects),
        (false, [OBJECTS]) => match object(OBJECTS) {
            Some(_) => return Err(ambiguous()),
            None => Some(Target::Objects),
        },
        (_, [OBJECTS, id]) | (false, [id]) => object(id),
        _ => None,
    };
    found.ok_or_else(|| QmpError::new(ErrorClass::DeviceNotFound, format!("Device '{path}' not found")))
}

/// The type of what only has children.
const CONTAINER: &str = "container";

fn type_name(kind: ObjectType) -> &'static str {
    match kind {
        ObjectType::IoThread => "iothread",
        ObjectType::ThrottleGroup => "throttle-group",
        ObjectType::Secret => "secret",
        ObjectType::TlsCredsX509 => "tls-creds-x509",
    }
}

fn info(name: &str, kind: &str) -> Value {
    json!({"name": name, "type": kind})
}

pub(super) fn qom_list(registry: &Registry, Path { path }: Path) -> Outcome {
    let mut list = vec![info("type", "string")];
    let child = |id: &str, kind: &str| info(id, &format!("child<{kind}>"));
    let object = match resolve(registry, &path)? {
        Target::Root => {
            list.push(child(OBJECTS, CONTAINER));
            return Ok(list.into());
        }
        Target::Objects => {
            let objects = registry.objects();
            list.extend(objects.map(|(id, object)| child(id, type_name(object.kind()))));
            return Ok(list.into());
        }
        Target::Object(object) => object,
    };
    let kind = |name: &str, value: &Value| match (name, value) {
        ("limits", _) => "ThrottleLimits",
        (_, Value::String(_)) => "string",
        (_, Value::Array(_)) => "list",
        (_, Value::Bool(_)) => "bool",
        _ => "int",
    };
    let properties = properties(object)?;
    list.extend(
        properties
            .iter()
            .map(|(name, value)| info(name, kind(name, value))),
    );
    Ok(list.into())
}

pub(super) fn qom_get(registry: &Registry, Property { path, property }: Property) -> Outcome {
    let object = match resolve(registry, &path)? {
        Target::Object(object) => object,
        _ if property == "type" => return Ok(CONTAINER.into()),
        _ => return Err(unknown(CONTAINER, &property)),
    };
    let kind = type_name(object.kind());
    if property == "type" {
        return Ok(kind.into());
    }
    let value = properties(object)?.remove(&property);
    value.ok_or_else(|| unknown(kind, &property))
}

fn unknown(kind: &str, property: &str) -> QmpError {
    QmpError::generic(format!("Property '{kind}.{property}' not found"))
}

fn not_writable(kind: &str) -> QmpError {
    QmpError::generic(format!("Property '{kind}.type' is not writable"))
}

/// Returns the readable properties of an object. Secrets cannot be read.
fn properties(object: &Object) -> Result<Map<String, Value>, QmpError> {
    match object {
        Object::IoThread(iothread) => to_map(&iothread.options()),
        Object::Throttle(group) => {
            let limits = to_map(&group.limits())?;
            // QEMU also shows each limit as a property of its own.
            let single = limits
                .iter()
                .map(|(name, value)| (format!("x-{name}"), value.clone()));
            let mut properties: Map<_, _> = single.collect();
            properties.insert("limits".to_owned(), limits.into());
            Ok(properties)
        }
        Object::Secret(_) => Ok(Map::new()),
        Object::TlsCreds(creds) => to_map(creds),
    }
}

fn to_map(value: &impl serde::Serialize) -> Result<Map<String, Value>, QmpError> {
    match to_value(value)? {
        Value::Object(map) => Ok(map),
        _ => Ok(Map::new()),
    }
}

pub(super) fn qom_set(registry: &mut Registry, arguments: PropertyValue) -> Outcome {
    let PropertyValue {
        path,
        property,
        value,
    } = arguments;
    let object = match resolve(registry, &path)? {
        Target::Object(object) => object,
        _ if property == "type" => return Err(not_writable(CONTAINER)),
        _ => return Err(unknown(CONTAINER, &property)),
    };
    match object {
        Object::Throttle(group) if property == "limits" => set_limits(group, value)?,
        object => match (object, IoThreadProperty::named(&property)) {
            (Object::IoThread(iothread), Some(known)) => {
                let value = value.as_u64();
                let value = value.ok_or_else(|| QmpError::generic("Parameter 'value' expects uint64"))?;
                iothread.set(known, value)?;
            }
            _ => return Err(not_settable(object, &property)?),
        },
    }
    Ok(json!({}))
}

/// Returns the reason why a property cannot be set.
fn not_settable(object: &Object, property: &str) -> Result<QmpError, QmpError> {
    let kind = type_name(object.kind());
    Ok(match property {
        "type" => not_writable(kind),
        _ if properties(object)?.contains_key(property) => {
            QmpError::generic("Property cannot be set after initialization")
        }
        _ => unknown(kind, property),
    })
}

/// Changes the given limits, and keeps the others.
fn set_limits(group: &Group, value: Value) -> Result<(), QmpError> {
    let arguments = Map::from_iter([("limits".to_owned(), value)]);
    crate::qmp::check(&SET_LIMITS, &arguments)?;
    let mut limits = to_map(&group.limits())?;
    if let Some(Value::Object(given)) = arguments.into_iter().next().map(|(_, given)| given) {
        limits.extend(given);
    }
    let limits = typed(limits)?;
    group
        .set_limits(limits)
        .map_err(|error| QmpError::generic(error.to_string()))
}

pub(super) fn query_iothreads(registry: &Registry, _: Nothing) -> Outcome {
    let objects = registry.objects().filter_map(|(_, object)| match object {
        Object::IoThread(iothread) => Some(&**iothread),
        _ => None,
    });
    Ok(objects
        .chain(registry.unnamed_iothread())
        .map(iothread_info)
        .collect())
}

fn iothread_info(iothread: &IoThreadObject) -> Value {
    let IoThreadOptions {
        poll_max_ns,
        poll_grow,
        poll_shrink,
        aio_max_batch,
        ..
    } = iothread.options();
    let thread = iothread.thread();
    let thread_id = thread.map_or(0, |thread| thread.thread_id());
    let mut info = json!({
        "id": iothread.id(), "thread-id": thread_id, "poll-max-ns": poll_max_ns, "poll-grow": poll_grow,
        "poll-shrink": poll_shrink, "aio-max-batch": aio_max_batch,
    });
    if let Some(thread) = thread {
        info["x-figures"] = figures(thread.figures());
    }
    info
}

fn figures(figures: &IoThreadFigures) -> Value {
    let (waits, pools) = (figures.waits(), figures.pools());
    json!({
        "cpu-ns": figures.cpu_nanos().unwrap_or_default(),
        "polls": waits.polls.get(),
        "poll-hits": waits.poll_hits.get(),
        "sleeps": waits.sleeps.get(),
        "pool-threads": pools.threads,
        "pool-idle-threads": pools.idle,
        "pool-queued-jobs": pools.queued,
        "pool-active-jobs": pools.active,
        "pool-spawn-failures": pools.spawn_failures,
    })
}

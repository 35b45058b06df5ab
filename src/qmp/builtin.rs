//! The commands of the protocol itself: negotiation, introspection, descriptors, quit.

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use super::command::{Command, Run, Scope};
use super::error::{Outcome, QmpError};
use super::events;
use super::schema::{Collector, Enum, Object, Type, optional, required};

/// The version of QEMU whose dialect this is. Clients use it to find out which features exist.
const DIALECT: (u32, u32, u32) = (10, 0, 0);

/// Returns the version for the greeting and `query-version`.
pub(super) fn version() -> Value {
    let (major, minor, micro) = DIALECT;
    json!({
        "qemu": {"major": major, "minor": minor, "micro": micro},
        "package": concat!(env!("CARGO_PKG_NAME"), " ", env!("CARGO_PKG_VERSION")),
    })
}

static VERSION_INFO: Object = Object::new(
    "VersionInfo",
    &[
        required("qemu", Type::Object(&VERSION_TRIPLE)),
        required("package", Type::Str),
    ],
);
static VERSION_TRIPLE: Object = Object::new(
    "VersionTriple",
    &[
        required("major", Type::Int),
        required("minor", Type::Int),
        required("micro", Type::Int),
    ],
);
static CAPABILITY: Enum = Enum {
    name: "QMPCapability",
    values: &["oob"],
};
static COMMAND_INFO: Object = Object::new("CommandInfo", &[required("name", Type::Str)]);
static SCHEMA_INFO: Object = Object::union(
    "SchemaInfo",
    &[
        required("name", Type::Str),
        required(
            "meta-type",
            Type::Enum(&Enum {
                name: "SchemaMetaType",
                values: &[
                    "builtin",
                    "enum",
                    "array",
                    "object",
                    "alternate",
                    "command",
                    "event",
                ],
            }),
        ),
    ],
    "meta-type",
    &[
        (
            "builtin",
            &Object::new("SchemaInfoBuiltin", &[required("json-type", Type::Str)]),
        ),
        (
            "enum",
            &Object::new(
                "SchemaInfoEnum",
                &[
                    required("members", Type::Array(&Type::Object(&ENUM_MEMBER))),
                    required("values", Type::Array(&Type::Str)),
                ],
            ),
        ),
        (
            "array",
            &Object::new("SchemaInfoArray", &[required("element-type", Type::Str)]),
        ),
        (
            "object",
            &Object::new(
                "SchemaInfoObject",
                &[
                    required("members", Type::Array(&Type::Object(&OBJECT_MEMBER))),
                    optional("tag", Type::Str),
                    optional("variants", Type::Array(&Type::Object(&OBJECT_VARIANT))),
                ],
            ),
        ),
        (
            "alternate",
            &Object::new(
                "SchemaInfoAlternate",
                &[required("members", Type::Array(&Type::Object(&ALTERNATE_MEMBER)))],
            ),
        ),
        (
            "command",
            &Object::new(
                "SchemaInfoCommand",
                &[
                    required("arg-type", Type::Str),
                    required("ret-type", Type::Str),
                    optional("allow-oob", Type::Bool),
                ],
            ),
        ),
        (
            "event",
            &Object::new("SchemaInfoEvent", &[required("arg-type", Type::Str)]),
        ),
    ],
);
static ENUM_MEMBER: Object = Object::new("SchemaInfoEnumMember", &[required("name", Type::Str)]);
static OBJECT_MEMBER: Object = Object::new(
    "SchemaInfoObjectMember",
    &[
        required("name", Type::Str),
        required("type", Type::Str),
        optional("default", Type::Any),
    ],
);
static OBJECT_VARIANT: Object = Object::new(
    "SchemaInfoObjectVariant",
    &[required("case", Type::Str), required("type", Type::Str)],
);
static ALTERNATE_MEMBER: Object = Object::new("SchemaInfoAlternateMember", &[required("type", Type::Str)]);
static ADDED_FD: Object = Object::new(
    "AddfdInfo",
    &[required("fdset-id", Type::Int), required("fd", Type::Int)],
);
static FDSET_FD: Object = Object::new(
    "FdsetFdInfo",
    &[required("fd", Type::Int), optional("opaque", Type::Str)],
);
static FDSET: Object = Object::new(
    "FdsetInfo",
    &[
        required("fdset-id", Type::Int),
        required("fds", Type::Array(&Type::Object(&FDSET_FD))),
    ],
);
static FDNAME: Object = Object::new("q_obj_getfd-arg", &[required("fdname", Type::Str)]);

const fn command<C>(
    name: &'static str,
    arguments: &'static Object,
    returns: Type,
    run: fn(&mut Scope<'_, C>, Map<String, Value>) -> Outcome,
) -> Command<C> {
    Command {
        name,
        arguments,
        returns,
        run: Run::Now(run),
    }
}

const COMMANDS: Type = Type::Array(&Type::Object(&COMMAND_INFO));
const SCHEMA: Type = Type::Array(&Type::Object(&SCHEMA_INFO));
const FDSETS: Type = Type::Array(&Type::Object(&FDSET));
const NOTHING: Type = Type::Object(Object::EMPTY);

/// The commands that every monitor has.
pub(super) fn commands<C>() -> Vec<Command<C>> {
    static CAPABILITIES: Object = Object::new(
        "q_obj_qmp_capabilities-arg",
        &[optional("enable", Type::Array(&Type::Enum(&CAPABILITY)))],
    );
    static ADD_FD: Object = Object::new(
        "q_obj_add-fd-arg",
        &[optional("fdset-id", Type::Int), optional("opaque", Type::Str)],
    );
    static REMOVE_FD: Object = Object::new(
        "q_obj_remove-fd-arg",
        &[required("fdset-id", Type::Int), optional("fd", Type::Int)],
    );
    vec![
        command("qmp_capabilities", &CAPABILITIES, NOTHING, capabilities),
        command(
            "query-version",
            Object::EMPTY,
            Type::Object(&VERSION_INFO),
            |_, _| Ok(version()),
        ),
        command("query-commands", Object::EMPTY, COMMANDS, query_commands),
        command("query-qmp-schema", Object::EMPTY, SCHEMA, query_schema),
        command("add-fd", &ADD_FD, Type::Object(&ADDED_FD), add_fd),
        command("remove-fd", &REMOVE_FD, NOTHING, remove_fd),
        command("query-fdsets", Object::EMPTY, FDSETS, query_fdsets),
        command("getfd", &FDNAME, NOTHING, getfd),
        command("closefd", &FDNAME, NOTHING, closefd),
        command("quit", Object::EMPTY, NOTHING, quit),
    ]
}

/// Turns checked arguments into a struct.
///
/// # Errors
/// The struct does not fit the command's type, which is a mistake in the table.
pub fn typed<T: DeserializeOwned>(arguments: Map<String, Value>) -> Result<T, QmpError> {
    serde_json::from_value(arguments.into())
        .map_err(|error| QmpError::generic(format!("Invalid arguments: {error}")))
}

fn capabilities<C>(scope: &mut Scope<'_, C>, arguments: Map<String, Value>) -> Outcome {
    #[derive(Deserialize)]
    struct Arguments {
        #[serde(default)]
        enable: Vec<String>,
    }
    let Arguments { enable } = typed(arguments)?;
    if let Some(capability) = enable.first() {
        return Err(QmpError::generic(format!(
            "Capability '{capability}' is not offered"
        )));
    }
    scope.session.negotiated = true;
    Ok(json!({}))
}

fn query_commands<C>(scope: &mut Scope<'_, C>, _: Map<String, Value>) -> Outcome {
    let names = scope.table.iter().map(|command| json!({"name": command.name}));
    Ok(names.collect())
}

fn query_schema<C>(scope: &mut Scope<'_, C>, _: Map<String, Value>) -> Outcome {
    let mut collector = Collector::default();
    for command in scope.table {
        collector.add(
            json!({"name": command.name, "meta-type": "command", "allow-oob": false}),
            &[
                ("arg-type", Type::Object(command.arguments)),
                ("ret-type", command.returns),
            ],
        );
    }
    for event in events::ALL {
        collector.add(
            json!({"name": event.name, "meta-type": "event"}),
            &[("arg-type", Type::Object(event.data))],
        );
    }
    Ok(collector.into_value())
}

fn add_fd<C>(scope: &mut Scope<'_, C>, arguments: Map<String, Value>) -> Outcome {
    #[derive(Deserialize)]
    #[serde(rename_all = "kebab-case")]
    struct Arguments {
        fdset_id: Option<i64>,
        opaque: Option<String>,
    }
    let Arguments { fdset_id, opaque } = typed(arguments)?;
    let fd = scope.session.take_passed()?;
    let (set, number) = scope.fdsets.add(fd, fdset_id, opaque)?;
    Ok(json!({"fdset-id": set, "fd": number}))
}

fn remove_fd<C>(scope: &mut Scope<'_, C>, arguments: Map<String, Value>) -> Outcome {
    #[derive(Deserialize)]
    #[serde(rename_all = "kebab-case")]
    struct Arguments {
        fdset_id: i64,
        fd: Option<i64>,
    }
    let Arguments { fdset_id, fd } = typed(arguments)?;
    scope.fdsets.remove(fdset_id, fd)?;
    Ok(json!({}))
}

fn query_fdsets<C>(scope: &mut Scope<'_, C>, _: Map<String, Value>) -> Outcome {
    let fd = |(number, opaque): (i64, Option<String>)| match opaque {
        Some(opaque) => json!({"fd": number, "opaque": opaque}),
        None => json!({"fd": number}),
    };
    let sets = scope.fdsets.list().into_iter();
    let set = sets.map(|set| {
        let fds: Vec<_> = set.fds.into_iter().map(fd).collect();
        json!({"fdset-id": set.id, "fds": fds})
    });
    Ok(set.collect())
}

#[derive(Deserialize)]
struct FdName {
    fdname: String,
}

fn getfd<C>(scope: &mut Scope<'_, C>, arguments: Map<String, Value>) -> Outcome {
    let FdName { fdname } = typed(arguments)?;
    let fd = scope.session.take_passed()?;
    scope.session.name(&fdname, fd)?;
    Ok(json!({}))
}

fn closefd<C>(scope: &mut Scope<'_, C>, arguments: Map<String, Value>) -> Outcome {
    let FdName { fdname } = typed(arguments)?;
    scope.session.take_named(&fdname)?;
    Ok(json!({}))
}

fn quit<C>(scope: &mut Scope<'_, C>, _: Map<String, Value>) -> Outcome {
    *scope.quit = true;
    Ok(json!({}))
}

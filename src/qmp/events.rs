//! The kinds of events.

use super::schema::{Enum, Object, Type, optional, required};

/// A kind of event.
#[derive(Debug)]
pub struct EventSpec {
    /// The name that clients see.
    pub name: &'static str,
    /// The type of `data`.
    pub data: &'static Object,
    /// The members of `data` that name the object, if the event is limited to one per object and interval.
    pub limited_by: Option<&'static [&'static str]>,
}

/// The process is about to end.
pub static SHUTDOWN: EventSpec = EventSpec {
    name: "SHUTDOWN",
    data: &Object::new(
        "q_obj_SHUTDOWN-arg",
        &[
            required("guest", Type::Bool),
            required(
                "reason",
                Type::Enum(&Enum {
                    name: "ShutdownCause",
                    values: &["host-qmp-quit", "host-signal", "host-error"],
                }),
            ),
        ],
    ),
    limited_by: None,
};

/// An export is gone, and its node may be removed.
pub static BLOCK_EXPORT_DELETED: EventSpec = EventSpec {
    name: "BLOCK_EXPORT_DELETED",
    data: &Object::new("q_obj_BLOCK_EXPORT_DELETED-arg", &[required("id", Type::Str)]),
    limited_by: None,
};

/// A request of a guest has failed.
pub static BLOCK_IO_ERROR: EventSpec = EventSpec {
    name: "BLOCK_IO_ERROR",
    data: &Object::new(
        "q_obj_BLOCK_IO_ERROR-arg",
        &[
            required("qom-path", Type::Str),
            required("device", Type::Str),
            optional("node-name", Type::Str),
            required(
                "operation",
                Type::Enum(&Enum {
                    name: "IoOperationType",
                    values: &["read", "write"],
                }),
            ),
            required(
                "action",
                Type::Enum(&Enum {
                    name: "BlockErrorAction",
                    values: &["ignore", "report", "stop"],
                }),
            ),
            optional("nospace", Type::Bool),
            required("reason", Type::Str),
        ],
    ),
    limited_by: Some(&["device", "node-name", "operation"]),
};

/// All kinds.
pub(super) static ALL: [&EventSpec; 3] = [&SHUTDOWN, &BLOCK_EXPORT_DELETED, &BLOCK_IO_ERROR];

//! Events and their kinds.

use std::time::Duration;

use serde_json::{Map, Value, json};

use super::schema::{Enum, Object, Type, optional, required};

/// A kind of event.
#[derive(Debug)]
pub struct EventSpec {
    /// The name of the event.
    pub name: &'static str,
    /// The type of `data`.
    pub data: &'static Object,
    /// The members of `data` that name the object, if the event is limited to one per object and interval.
    pub limited_by: Option<&'static [&'static str]>,
}

/// An event for all clients.
#[derive(Clone, Debug)]
pub(super) struct Event {
    pub(super) spec: &'static EventSpec,
    pub(super) data: Map<String, Value>,
    /// Time since the epoch.
    pub(super) time: Duration,
}

impl Event {
    pub(super) fn to_message(&self) -> Value {
        let mut message = json!({
            "event": self.spec.name,
            "timestamp": {"seconds": self.time.as_secs(), "microseconds": self.time.subsec_micros()},
        });
        if !self.data.is_empty() {
            message["data"] = self.data.clone().into();
        }
        message
    }
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

/// An export has been removed. Its node may be removed too.
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

/// A frontend has connected to an export.
pub static FRONTEND_CONNECTED: EventSpec = EventSpec {
    name: "__vhost-user-blk_FRONTEND_CONNECTED",
    data: &Object::new(
        "__vhost-user-blk_FrontendConnected",
        &[
            required("id", Type::Str),
            optional("pid", Type::Int),
            optional("uid", Type::Int),
        ],
    ),
    limited_by: Some(&["id"]),
};

/// The frontend of an export has gone.
pub static FRONTEND_DISCONNECTED: EventSpec = EventSpec {
    name: "__vhost-user-blk_FRONTEND_DISCONNECTED",
    data: &EXPORT,
    limited_by: Some(&["id"]),
};

/// A virtqueue is broken and stopped.
pub static RING_BROKEN: EventSpec = EventSpec {
    name: "__vhost-user-blk_RING_BROKEN",
    data: &Object::new(
        "__vhost-user-blk_RingBroken",
        &[
            required("id", Type::Str),
            required("queue", Type::Int),
            required("reason", Type::Str),
        ],
    ),
    limited_by: Some(&["id", "queue"]),
};

/// A request takes longer than `io-timeout`.
pub static REQUEST_LATE: EventSpec = EventSpec {
    name: "__vhost-user-blk_REQUEST_LATE",
    data: &Object::new(
        "__vhost-user-blk_RequestLate",
        &[
            required("id", Type::Str),
            required("queue", Type::Int),
            required("operation", Type::Str),
            required("seconds", Type::Int),
        ],
    ),
    limited_by: Some(&["id", "queue"]),
};

/// A request was slow, while the disk is traced.
pub static REQUEST_SLOW: EventSpec = EventSpec {
    name: "__vhost-user-blk_REQUEST_SLOW",
    data: &Object::new(
        "__vhost-user-blk_RequestSlow",
        &[
            required("id", Type::Str),
            required("queue", Type::Int),
            required("operation", Type::Str),
            optional("offset", Type::Int),
            required("bytes", Type::Int),
            required("throttled-ns", Type::Int),
            required("waited-ns", Type::Int),
            required("storage-ns", Type::Int),
            required("returned-ns", Type::Int),
            required("published-ns", Type::Int),
            required("others", Type::Int),
        ],
    ),
    limited_by: None,
};

/// Requests wait because the disk is full.
pub static DISK_HELD: EventSpec = EventSpec {
    name: "__vhost-user-blk_DISK_HELD",
    data: &EXPORT,
    limited_by: None,
};

/// No request waits for disk space any more.
pub static DISK_RESUMED: EventSpec = EventSpec {
    name: "__vhost-user-blk_DISK_RESUMED",
    data: &Object::new(
        "__vhost-user-blk_DiskResumed",
        &[required("id", Type::Str), required("seconds", Type::Int)],
    ),
    limited_by: None,
};

static EXPORT: Object = Object::new("__vhost-user-blk_Export", &[required("id", Type::Str)]);

/// All kinds.
pub(super) static ALL: [&EventSpec; 10] = [
    &SHUTDOWN,
    &BLOCK_EXPORT_DELETED,
    &BLOCK_IO_ERROR,
    &FRONTEND_CONNECTED,
    &FRONTEND_DISCONNECTED,
    &RING_BROKEN,
    &REQUEST_LATE,
    &REQUEST_SLOW,
    &DISK_HELD,
    &DISK_RESUMED,
];

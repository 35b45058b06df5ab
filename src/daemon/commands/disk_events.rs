//! Events of disks.

use serde_json::{Map, Value, json};

use crate::blk::notice::{Action, Notice};
use crate::qmp::Events;
use crate::qmp::events::{
    BLOCK_IO_ERROR, DISK_HELD, DISK_RESUMED, EventSpec, FRONTEND_CONNECTED, FRONTEND_DISCONNECTED,
    REQUEST_LATE, REQUEST_SLOW, RING_BROKEN,
};

/// Sends an event of the disk that export `id` serves. Any thread; never waits.
pub(in crate::daemon) fn tell_of_disk(clients: &Events, id: &str, node: &str, notice: Notice) {
    let (spec, data) = event(id, node, notice);
    if let Value::Object(data) = data {
        clients.emit(spec, without_nulls(data));
    }
}

fn without_nulls(data: Map<String, Value>) -> Map<String, Value> {
    data.into_iter().filter(|(_, value)| !value.is_null()).collect()
}

fn event(id: &str, node: &str, notice: Notice) -> (&'static EventSpec, Value) {
    match notice {
        Notice::Connected { pid, uid } => (&FRONTEND_CONNECTED, json!({"id": id, "pid": pid, "uid": uid})),
        Notice::Disconnected => (&FRONTEND_DISCONNECTED, json!({"id": id})),
        Notice::Held => (&DISK_HELD, json!({"id": id})),
        Notice::Resumed(time) => (&DISK_RESUMED, json!({"id": id, "seconds": time.as_secs()})),
        Notice::RingBroken { queue, reason } => {
            (&RING_BROKEN, json!({"id": id, "queue": queue, "reason": reason}))
        }
        Notice::Late { queue, op, age } => (
            &REQUEST_LATE,
            json!({"id": id, "queue": queue, "operation": op, "seconds": age.as_secs()}),
        ),
        Notice::Slow(slow) => (
            &REQUEST_SLOW,
            json!({
                "id": id,
                "queue": slow.queue,
                "operation": slow.op,
                "offset": slow.offset,
                "bytes": slow.bytes,
                "throttled-ns": slow.throttled,
                "waited-ns": slow.waited,
                "storage-ns": slow.storage,
                "returned-ns": slow.returned,
                "published-ns": slow.published,
                "others": slow.others,
            }),
        ),
        Notice::Failed {
            op,
            action,
            no_space,
            reason,
        } => (
            &BLOCK_IO_ERROR,
            json!({
                "qom-path": format!("/exports/{id}"),
                "device": id,
                "node-name": node,
                "operation": if op == "read" { "read" } else { "write" },
                "action": match action {
                    Action::Report => "report",
                    Action::Ignore => "ignore",
                    Action::Stop => "stop",
                },
                "nospace": no_space,
                "reason": reason,
            }),
        ),
    }
}

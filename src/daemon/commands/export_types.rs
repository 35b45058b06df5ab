//! The QAPI types of the commands for exports. The options are those of
//! [`ExportOptions`](crate::daemon::options::ExportOptions); a test compares the two.

use super::words::{
    ADDRESS_TYPE, EXPORT_TYPE, NOTIFY, READ_ERRORS, REMOVE_MODE, STR_LIST, U16_LIST, U64_LIST, WRITE_ERRORS,
};
use crate::qmp::schema::{Alternate, Object, Type, optional, required};

static ADDRESS: Object = Object::union(
    "SocketAddress",
    &[required("type", Type::Enum(&ADDRESS_TYPE))],
    "type",
    &[
        (
            "unix",
            &Object::new(
                "UnixSocketAddress",
                &[
                    required("path", Type::Str),
                    optional("mode", Type::Str),
                    optional("group", Type::Str),
                ],
            ),
        ),
        (
            "fd",
            &Object::new("FdSocketAddress", &[required("str", Type::Str)]),
        ),
    ],
);

static ONE_OR_MANY: Alternate = Alternate {
    name: "BlockExportIothreads",
    cases: &[Type::Str, STR_LIST],
};

static MAPPING: Object = Object::new(
    "IOThreadVirtQueueMapping",
    &[required("iothread", Type::Str), optional("vqs", U16_LIST)],
);

static VHOST_USER_BLK: Object = Object::new(
    "BlockExportOptionsVhostUserBlk",
    &[
        required("addr", Type::Object(&ADDRESS)),
        optional("logical-block-size", Type::U32),
        optional("num-queues", Type::U16),
        optional("queue-size", Type::U16),
        optional("serial", Type::Str),
        optional("iothread-vq-mapping", Type::Array(&Type::Object(&MAPPING))),
        optional("rerror", Type::Enum(&READ_ERRORS)),
        optional("werror", Type::Enum(&WRITE_ERRORS)),
        optional("io-timeout", Type::U64),
        optional("request-merging", Type::Bool),
        optional("notify", Type::Enum(&NOTIFY)),
        optional("register-memory", Type::Bool),
        optional("inject", STR_LIST),
    ],
);

/// `block-export-add`.
pub(super) static EXPORT: Object = Object::union(
    "BlockExportOptions",
    &[
        required("type", Type::Enum(&EXPORT_TYPE)),
        required("id", Type::Str),
        required("node-name", Type::Str),
        optional("writable", Type::Bool),
        optional("writethrough", Type::Bool),
        optional("iothread", Type::Alternate(&ONE_OR_MANY)),
        optional("fixed-iothread", Type::Bool),
        optional("allow-inactive", Type::Bool),
    ],
    "type",
    &[("vhost-user-blk", &VHOST_USER_BLK)],
);

/// `block-export-del`.
pub(super) static EXPORT_DEL: Object = Object::new(
    "q_obj_block-export-del-arg",
    &[
        required("id", Type::Str),
        optional("mode", Type::Enum(&REMOVE_MODE)),
    ],
);

pub(super) static TRACE_REQUESTS: Object = Object::new(
    "__vhost-user-blk_TraceRequests",
    &[
        required("id", Type::Str),
        required("slower-than-ns", Type::U64),
        required("seconds", Type::U64),
    ],
);

/// `query-block-exports`.
static EXPORT_INFO: Object = Object::new(
    "BlockExportInfo",
    &[
        required("id", Type::Str),
        required("type", Type::Enum(&EXPORT_TYPE)),
        required("node-name", Type::Str),
        required("shutting-down", Type::Bool),
    ],
);
pub(super) const EXPORTS: Type = Type::Array(&Type::Object(&EXPORT_INFO));

/// `query-blockstats`.
pub(super) static QUERY_NODES: Object = Object::new(
    "q_obj_query-blockstats-arg",
    &[optional("query-nodes", Type::Bool)],
);
static HISTOGRAM: Object = Object::new(
    "BlockLatencyHistogramInfo",
    &[required("boundaries", U64_LIST), required("bins", U64_LIST)],
);
static STATS: Object = Object::new(
    "BlockDeviceStats",
    &[
        required("rd_bytes", Type::Int),
        required("wr_bytes", Type::Int),
        required("unmap_bytes", Type::Int),
        required("zone_append_bytes", Type::Int),
        required("rd_operations", Type::Int),
        required("wr_operations", Type::Int),
        required("flush_operations", Type::Int),
        required("unmap_operations", Type::Int),
        required("zone_append_operations", Type::Int),
        required("rd_total_time_ns", Type::Int),
        required("wr_total_time_ns", Type::Int),
        required("flush_total_time_ns", Type::Int),
        required("unmap_total_time_ns", Type::Int),
        required("zone_append_total_time_ns", Type::Int),
        required("wr_highest_offset", Type::Int),
        required("rd_merged", Type::Int),
        required("wr_merged", Type::Int),
        required("unmap_merged", Type::Int),
        required("zone_append_merged", Type::Int),
        required("failed_rd_operations", Type::Int),
        required("failed_wr_operations", Type::Int),
        required("failed_flush_operations", Type::Int),
        required("failed_unmap_operations", Type::Int),
        required("failed_zone_append_operations", Type::Int),
        required("invalid_rd_operations", Type::Int),
        required("invalid_wr_operations", Type::Int),
        required("invalid_flush_operations", Type::Int),
        required("invalid_unmap_operations", Type::Int),
        required("invalid_zone_append_operations", Type::Int),
        required("account_invalid", Type::Bool),
        required("account_failed", Type::Bool),
        required("timed_stats", Type::Array(&Type::Any)),
        optional("rd_latency_histogram", Type::Object(&HISTOGRAM)),
        optional("wr_latency_histogram", Type::Object(&HISTOGRAM)),
        optional("flush_latency_histogram", Type::Object(&HISTOGRAM)),
    ],
);
static STATS_ENTRY: Object = Object::new(
    "BlockStats",
    &[
        optional("qdev", Type::Str),
        optional("node-name", Type::Str),
        required("stats", Type::Object(&STATS)),
        optional("x-export", Type::Any),
    ],
);
pub(super) const BLOCKSTATS: Type = Type::Array(&Type::Object(&STATS_ENTRY));

//! The QAPI types of the arguments and results of commands. The options are those of
//! [`options`](crate::daemon::options); a test compares the two.

use super::limit_types::THROTTLE_GROUP;
use crate::qmp::schema::{Alternate, Enum, Object, Type, optional, required};

macro_rules! words {
    ($($name:ident = $qapi:literal: $($value:literal)*;)*) => {
        $(static $name: Enum = Enum { name: $qapi, values: &[$($value),*] };)*
    };
}

words! {
    OBJECT_TYPE = "ObjectType": "iothread" "throttle-group" "secret" "tls-creds-x509";
    TLS_ENDPOINT = "QCryptoTLSCredsEndpoint": "client" "server";
    SECRET_FORMAT = "QCryptoSecretFormat": "raw" "base64";
    DRIVER = "BlockdevDriver": "file" "host_device" "raw" "null-co" "null-aio" "throttle" "nbd" "rbd" "qcow2";
    DISCARD = "BlockdevDiscardOptions": "ignore" "unmap";
    DETECT_ZEROES = "BlockdevDetectZeroesOptions": "off" "on" "unmap";
    ON_OFF_AUTO = "OnOffAuto": "auto" "on" "off";
    AIO = "BlockdevAioOptions": "threads" "native" "io_uring";
    EXPORT_TYPE = "BlockExportType": "vhost-user-blk";
    REMOVE_MODE = "BlockExportRemoveMode": "safe" "hard";
    ADDRESS_TYPE = "SocketAddressType": "inet" "unix" "vsock" "fd";
    READ_ERRORS = "x-BlockReadErrors": "report" "ignore";
    WRITE_ERRORS = "x-BlockWriteErrors": "enospc" "report" "ignore" "stop";
    NOTIFY = "x-NotifyMode": "batch" "each";
}

const STR_LIST: Type = Type::Array(&Type::Str);
const U64_LIST: Type = Type::Array(&Type::U64);
const U16_LIST: Type = Type::Array(&Type::U16);

static IOTHREAD: Object = Object::new(
    "IothreadProperties",
    &[
        optional("poll-max-ns", Type::U64),
        optional("poll-grow", Type::U64),
        optional("poll-shrink", Type::U64),
        optional("aio-max-batch", Type::U64),
        optional("thread-pool-min", Type::U16),
        optional("thread-pool-max", Type::U16),
        optional("cpu-affinity", U16_LIST),
    ],
);

static SECRET: Object = Object::new(
    "SecretProperties",
    &[
        optional("data", Type::Str),
        optional("file", Type::Str),
        optional("format", Type::Enum(&SECRET_FORMAT)),
    ],
);

static TLS_CREDS_X509: Object = Object::new(
    "TlsCredsX509Properties",
    &[
        optional("dir", Type::Str),
        optional("endpoint", Type::Enum(&TLS_ENDPOINT)),
        optional("verify-peer", Type::Bool),
    ],
);

/// `object-add`.
pub(super) static OBJECT: Object = Object::union(
    "ObjectOptions",
    &[
        required("qom-type", Type::Enum(&OBJECT_TYPE)),
        required("id", Type::Str),
    ],
    "qom-type",
    &[
        ("iothread", &IOTHREAD),
        ("throttle-group", &THROTTLE_GROUP),
        ("secret", &SECRET),
        ("tls-creds-x509", &TLS_CREDS_X509),
    ],
);

static CACHE: Object = Object::new(
    "BlockdevCacheOptions",
    &[optional("direct", Type::Bool), optional("no-flush", Type::Bool)],
);

static BLOCKDEV_REF: Alternate = Alternate {
    name: "BlockdevRef",
    cases: &[Type::Str, Type::Object(&BLOCKDEV)],
};

static FILE: Object = Object::new(
    "BlockdevOptionsFile",
    &[
        required("filename", Type::Str),
        optional("locking", Type::Enum(&ON_OFF_AUTO)),
        optional("aio", Type::Enum(&AIO)),
        optional("aio-max-batch", Type::U64),
        optional("mmap", Type::Bool),
    ],
);

static RAW: Object = Object::new(
    "BlockdevOptionsRaw",
    &[
        required("file", Type::Alternate(&BLOCKDEV_REF)),
        optional("offset", Type::U64),
        optional("size", Type::U64),
    ],
);

static NULL: Object = Object::new(
    "BlockdevOptionsNull",
    &[
        optional("size", Type::U64),
        optional("latency-ns", Type::U64),
        optional("read-zeroes", Type::Bool),
    ],
);

static THROTTLE: Object = Object::new(
    "BlockdevOptionsThrottle",
    &[
        required("throttle-group", Type::Str),
        required("file", Type::Alternate(&BLOCKDEV_REF)),
    ],
);

static NBD: Object = Object::new(
    "BlockdevOptionsNbd",
    &[
        required("server", Type::Object(&NBD_SERVER)),
        optional("export", Type::Str),
        optional("reconnect-delay", Type::U32),
        optional("open-timeout", Type::U32),
        optional("tls-creds", Type::Str),
        optional("tls-hostname", Type::Str),
    ],
);

static QCOW2: Object = Object::new(
    "BlockdevOptionsQcow2",
    &[
        required("file", Type::Alternate(&BLOCKDEV_REF)),
        optional("backing", Type::Alternate(&BACKING_REF)),
        optional("data-file", Type::Str),
        optional("follow-names", Type::Bool),
        optional("cache-size", Type::U64),
        optional("l2-cache-size", Type::U64),
        optional("l2-cache-entry-size", Type::U64),
        optional("refcount-cache-size", Type::U64),
        optional("cache-clean-interval", Type::U32),
    ],
);

static BACKING_REF: Alternate = Alternate {
    name: "x-BackingRef",
    cases: &[Type::Str, Type::Null],
};

static NBD_SERVER: Object = Object::union(
    "x-NbdSocketAddress",
    &[required("type", Type::Enum(&ADDRESS_TYPE))],
    "type",
    &[
        (
            "unix",
            &Object::new("x-NbdUnixSocketAddress", &[required("path", Type::Str)]),
        ),
        (
            "inet",
            &Object::new(
                "x-NbdInetSocketAddress",
                &[required("host", Type::Str), required("port", Type::Str)],
            ),
        ),
    ],
);

static MONITOR: Object = Object::new(
    "InetSocketAddressBase",
    &[required("host", Type::Str), required("port", Type::Str)],
);

static RBD: Object = Object::new(
    "BlockdevOptionsRbd",
    &[
        required("pool", Type::Str),
        optional("namespace", Type::Str),
        required("image", Type::Str),
        optional("conf", Type::Str),
        optional("snapshot", Type::Str),
        optional("user", Type::Str),
        optional("key-secret", Type::Str),
        optional("server", Type::Array(&Type::Object(&MONITOR))),
    ],
);

/// `blockdev-add`.
pub(super) static BLOCKDEV: Object = Object::union(
    "BlockdevOptions",
    &[
        required("driver", Type::Enum(&DRIVER)),
        optional("node-name", Type::Str),
        optional("read-only", Type::Bool),
        optional("auto-read-only", Type::Bool),
        optional("force-share", Type::Bool),
        optional("cache", Type::Object(&CACHE)),
        optional("discard", Type::Enum(&DISCARD)),
        optional("detect-zeroes", Type::Enum(&DETECT_ZEROES)),
        optional("active", Type::Bool),
    ],
    "driver",
    &[
        ("file", &FILE),
        ("host_device", &FILE),
        ("raw", &RAW),
        ("null-co", &NULL),
        ("null-aio", &NULL),
        ("throttle", &THROTTLE),
        ("nbd", &NBD),
        ("rbd", &RBD),
        ("qcow2", &QCOW2),
    ],
);

/// `blockdev-reopen`.
pub(super) static REOPEN: Object = Object::new(
    "q_obj_blockdev-reopen-arg",
    &[required("options", Type::Array(&Type::Object(&BLOCKDEV)))],
);

/// `blockdev-snapshot`.
pub(super) static SNAPSHOT: Object = Object::new(
    "q_obj_blockdev-snapshot-arg",
    &[required("node", Type::Str), required("overlay", Type::Str)],
);

/// `blockdev-set-active`.
pub(super) static SET_ACTIVE: Object = Object::new(
    "q_obj_blockdev-set-active-arg",
    &[optional("node-name", Type::Str), required("active", Type::Bool)],
);

pub(super) static NODE_NAME: Object =
    Object::new("q_obj_blockdev-del-arg", &[required("node-name", Type::Str)]);

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

pub(super) static ID: Object = Object::new("q_obj_object-del-arg", &[required("id", Type::Str)]);
pub(super) static PATH: Object = Object::new("q_obj_qom-list-arg", &[required("path", Type::Str)]);
pub(super) static PROPERTY: Object = Object::new(
    "q_obj_qom-get-arg",
    &[required("path", Type::Str), required("property", Type::Str)],
);
pub(super) static PROPERTY_VALUE: Object = Object::new(
    "q_obj_qom-set-arg",
    &[
        required("path", Type::Str),
        required("property", Type::Str),
        required("value", Type::Any),
    ],
);
static PROPERTY_INFO: Object = Object::new(
    "ObjectPropertyInfo",
    &[required("name", Type::Str), required("type", Type::Str)],
);
pub(super) const PROPERTIES: Type = Type::Array(&Type::Object(&PROPERTY_INFO));

static IOTHREAD_INFO: Object = Object::new(
    "IOThreadInfo",
    &[
        required("id", Type::Str),
        required("thread-id", Type::Int),
        required("poll-max-ns", Type::Int),
        required("poll-grow", Type::Int),
        required("poll-shrink", Type::Int),
        required("aio-max-batch", Type::Int),
        optional("x-figures", Type::Any),
    ],
);
pub(super) const IOTHREADS: Type = Type::Array(&Type::Object(&IOTHREAD_INFO));

/// `query-named-block-nodes`.
pub(super) static FLAT: Object = Object::new(
    "q_obj_query-named-block-nodes-arg",
    &[optional("flat", Type::Bool)],
);
static CACHE_INFO: Object = Object::new(
    "BlockdevCacheInfo",
    &[
        required("writeback", Type::Bool),
        required("direct", Type::Bool),
        required("no-flush", Type::Bool),
    ],
);
static IMAGE_INFO: Object = Object::new(
    "ImageInfo",
    &[
        required("filename", Type::Str),
        required("format", Type::Str),
        required("virtual-size", Type::Int),
        optional("actual-size", Type::Int),
    ],
);
static NODE_INFO: Object = Object::new(
    "BlockDeviceInfo",
    &[
        required("node-name", Type::Str),
        required("drv", Type::Str),
        required("file", Type::Str),
        required("ro", Type::Bool),
        required("active", Type::Bool),
        required("encrypted", Type::Bool),
        required("detect_zeroes", Type::Enum(&DETECT_ZEROES)),
        required("backing_file_depth", Type::Int),
        required("bps", Type::Int),
        required("bps_rd", Type::Int),
        required("bps_wr", Type::Int),
        required("iops", Type::Int),
        required("iops_rd", Type::Int),
        required("iops_wr", Type::Int),
        required("write_threshold", Type::Int),
        required("image", Type::Object(&IMAGE_INFO)),
        required("cache", Type::Object(&CACHE_INFO)),
    ],
);
pub(super) const NODES: Type = Type::Array(&Type::Object(&NODE_INFO));

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
        required("rd_operations", Type::Int),
        required("wr_operations", Type::Int),
        required("flush_operations", Type::Int),
        required("rd_total_time_ns", Type::Int),
        required("wr_total_time_ns", Type::Int),
        required("flush_total_time_ns", Type::Int),
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

/// `block_resize`.
pub(super) static RESIZE: Object = Object::new(
    "q_obj_block_resize-arg",
    &[
        optional("device", Type::Str),
        optional("node-name", Type::Str),
        required("size", Type::Int),
    ],
);

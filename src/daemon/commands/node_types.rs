//! The QAPI types of the commands for block nodes. The options are those of
//! [`BlockdevOptions`](crate::daemon::options::BlockdevOptions); a test compares the two.

use super::words::{ADDRESS_TYPE, AIO, DETECT_ZEROES, DISCARD, DRIVER, ON_OFF_AUTO};
use crate::qmp::schema::{Alternate, Object, Type, optional, required};

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
        optional("x-probe", Type::Bool),
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

/// `block_resize`.
pub(super) static RESIZE: Object = Object::new(
    "q_obj_block_resize-arg",
    &[
        optional("device", Type::Str),
        optional("node-name", Type::Str),
        required("size", Type::Int),
    ],
);

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

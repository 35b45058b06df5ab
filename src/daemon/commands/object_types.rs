//! The QAPI types of the commands for objects. The options are those of
//! [`ObjectOptions`](crate::daemon::options::ObjectOptions); a test compares the two.

use super::limit_types::THROTTLE_GROUP;
use super::words::{OBJECT_TYPE, SECRET_FORMAT, TLS_ENDPOINT, U16_LIST};
use crate::qmp::schema::{Object, Type, optional, required};

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

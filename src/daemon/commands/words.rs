//! The QAPI enums, and lists of simple types.

use crate::qmp::schema::{Enum, Type};

macro_rules! words {
    ($($name:ident = $qapi:literal: $($value:literal)*;)*) => {
        $(pub(super) static $name: Enum = Enum { name: $qapi, values: &[$($value),*] };)*
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

pub(super) const STR_LIST: Type = Type::Array(&Type::Str);
pub(super) const U64_LIST: Type = Type::Array(&Type::U64);
pub(super) const U16_LIST: Type = Type::Array(&Type::U16);

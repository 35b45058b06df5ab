//! The reasons why a disk in a Ceph cluster cannot be used.

use std::io;

/// The reason why a disk in a Ceph cluster cannot be opened.
#[derive(Clone, Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
#[non_exhaustive]
pub enum Error {
    #[error("RBD disks need librbd, which cannot be loaded: install the package librbd1 ({why})")]
    Library { why: String },
    #[error("librbd is too old: it has no option {option}")]
    TooOld { option: &'static str },
    #[error("cannot read the Ceph configuration {path}: {why}")]
    Configuration { path: String, why: String },
    #[error("the Ceph configuration names no monitor: set 'mon host' there, or give server.0.host")]
    NoMonitor,
    #[error("cannot find the Ceph monitor {monitor}: {why}")]
    Monitor { monitor: String, why: String },
    #[error("Ceph option {option} cannot be '{value}': {why}")]
    Option {
        option: &'static str,
        value: String,
        why: String,
    },
    #[error("cannot connect to the Ceph cluster at {monitors} as {user}: {why}")]
    Connect {
        monitors: String,
        user: String,
        why: String,
    },
    #[error("cannot open RBD image {image}: {why}")]
    Open { image: String, why: String },
    #[error("cannot open RBD image {image}: the cluster does not answer")]
    Silent { image: String },
    #[error("RBD image {image}: the format of its contents is not given, and cannot be looked for: {why}")]
    Unread { image: String, why: String },
    #[error("cannot create the thread that RBD disks need: {why}")]
    Thread { why: String },
}

/// Returns the text of an error number that librados or librbd returned (negative).
pub(super) fn text(code: i32) -> String {
    io::Error::from_raw_os_error(-code).to_string()
}

//! The options of objects, nodes and exports, named as in QEMU. The command line, configuration files and QMP all use
//! them.

mod backing;
mod blockdev;
mod choices;
mod export;
mod object;
mod server;
mod value;
mod value_error;

pub use backing::BackingRef;
pub use blockdev::{BlockdevOptions, BlockdevRef, Driver};
pub use choices::{AioOption, Cache, DetectZeroes, Discard, OnOffAuto};
pub use export::{Address, AddressType, ExportOptions, ExportType, IoThreadList, Mapping, NotifyOption};
pub use object::{
    IoThreadOptions, ObjectOptions, ObjectType, SecretFormat, SecretOptions, TlsCredsOptions, TlsEndpoint,
};
pub use server::{Monitor, NbdServer, ServerOption};
pub(crate) use value::bytes;
pub use value::{Origin, read};
pub use value_error::ValueError;

/// Returns whether `id` is a valid name for users to choose: a letter, then letters, digits, `-`, `.` and `_`.
pub fn is_well_formed(id: &str) -> bool {
    let mut bytes = id.bytes();
    bytes.next().is_some_and(|first| first.is_ascii_alphabetic())
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte))
}

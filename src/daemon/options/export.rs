//! `block-export-add` and `--export`.

use std::fmt;
use std::path::PathBuf;

use serde::de::{self, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use crate::blk::error_policy::{ReadErrors, WriteErrors};
use crate::engine::FaultRule;

/// The kinds of exports.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[allow(missing_docs, reason = "the words of QEMU")]
pub enum ExportType {
    VhostUserBlk,
}

/// The options of a new export.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
#[allow(missing_docs, reason = "the words of QEMU")]
pub struct ExportOptions {
    #[serde(rename = "type")]
    pub kind: ExportType,
    pub id: String,
    pub node_name: String,
    pub addr: Address,
    #[serde(default)]
    pub writable: bool,
    #[serde(default)]
    pub writethrough: bool,
    pub num_queues: Option<u16>,
    pub logical_block_size: Option<u32>,
    #[serde(default)]
    pub iothread: IoThreadList,
    /// Always holds: an export never moves to another IOThread, and one that names an unknown IOThread is refused.
    #[serde(default)]
    pub fixed_iothread: bool,
    /// Allows the node to be inactive. Otherwise it becomes active now, and stays so as long as the export exists.
    #[serde(default)]
    pub allow_inactive: bool,

    // Options that QEMU has for its devices, but not for exports.
    pub queue_size: Option<u16>,
    pub serial: Option<String>,
    pub iothread_vq_mapping: Option<Vec<Mapping>>,
    pub rerror: Option<ReadErrors>,
    pub werror: Option<WriteErrors>,
    /// Seconds.
    pub io_timeout: Option<u64>,
    pub request_merging: Option<bool>,
    pub notify: Option<NotifyOption>,
    /// Register the guest's memory with io_uring. Programs that do not know this take over from this one unless it is set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub register_memory: Option<bool>,
    /// Faults to inject.
    #[serde(default)]
    pub inject: Vec<FaultRule>,

    /// The name of the disk in messages, if it is not the id. Only the short form of the command line sets this.
    #[serde(skip)]
    pub display_name: Option<String>,
}

impl ExportOptions {
    /// Makes options with only the required members set.
    pub fn new(id: &str, node_name: &str, addr: Address) -> Self {
        Self {
            kind: ExportType::VhostUserBlk,
            id: id.to_owned(),
            node_name: node_name.to_owned(),
            addr,
            writable: false,
            writethrough: false,
            num_queues: None,
            logical_block_size: None,
            iothread: IoThreadList::default(),
            fixed_iothread: false,
            allow_inactive: false,
            queue_size: None,
            serial: None,
            iothread_vq_mapping: None,
            rerror: None,
            werror: None,
            io_timeout: None,
            request_merging: None,
            notify: None,
            register_memory: None,
            inject: Vec::new(),
            display_name: None,
        }
    }
}

/// The address of a socket.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
#[allow(missing_docs, reason = "the words of QEMU")]
pub struct Address {
    #[serde(rename = "type")]
    pub kind: AddressType,
    /// The path of a `unix` socket.
    pub path: Option<PathBuf>,
    /// The number of a descriptor (`fd`), or its name in QMP.
    #[serde(rename = "str")]
    pub text: Option<String>,
    /// Permissions of the socket's file in octal. In QEMU the umask decides.
    pub mode: Option<String>,
    /// Group of the socket's file.
    pub group: Option<String>,
}

impl Address {
    /// Returns the name of a descriptor that is given by name, and not by number. Names do not begin with a digit.
    pub(in crate::daemon) fn name(&self) -> Option<&str> {
        let text = self.text.as_deref().filter(|_| self.kind == AddressType::Fd)?;
        (!text.starts_with(|first: char| first.is_ascii_digit())).then_some(text)
    }
}

/// The kinds of addresses.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[allow(missing_docs, reason = "the words of QEMU")]
pub enum AddressType {
    Unix,
    Fd,
    Inet,
    Vsock,
    /// The socket from the service manager (`LISTEN_FDS`). Only the short form of the command line uses this.
    #[serde(skip)]
    ServiceManager,
}

/// One IOThread, or several that share the queues.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct IoThreadList(pub Vec<String>);

impl<'de> Deserialize<'de> for IoThreadList {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OneOrMany;
        impl<'de> Visitor<'de> for OneOrMany {
            type Value = IoThreadList;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the id of an iothread or a list of ids")
            }

            fn visit_str<E: de::Error>(self, id: &str) -> Result<IoThreadList, E> {
                Ok(IoThreadList(vec![id.to_owned()]))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<IoThreadList, A::Error> {
                let mut ids = Vec::new();
                while let Some(id) = list.next_element()? {
                    ids.push(id);
                }
                Ok(IoThreadList(ids))
            }
        }
        deserializer.deserialize_any(OneOrMany)
    }
}

/// An IOThread and the queues it serves, as in QEMU's `iothread-vq-mapping`.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs, reason = "the words of QEMU")]
pub struct Mapping {
    pub iothread: String,
    pub vqs: Option<Vec<u16>>,
}

/// The frequency of notifications to the guest.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum NotifyOption {
    /// Once per batch.
    #[default]
    Batch,
    /// Once per completion.
    Each,
}

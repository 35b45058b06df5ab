//! Reasons to refuse an operation on the registry. A refused operation changes nothing.

use std::io;
use std::path::PathBuf;

use crate::account;
use crate::aio;
use crate::blk::device::{CreateError, TakeError};
use crate::blk::handle::ReplaceError;
use crate::ceph;
use crate::connector;
use crate::daemon::disks::AddError;
use crate::daemon::options::{Driver, ValueError};
use crate::engine::{self, NbdOpenError, Qcow2OpenError};
use crate::sandbox;
use crate::storage::{self, LockError};
use crate::throttle::LimitsError;
use crate::vhost_user::inherited::InheritedError;
use crate::vhost_user::server::ServerError;

/// The reason why an operation on objects, nodes or exports is refused.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
#[non_exhaustive]
pub enum OperationError {
    #[error(transparent)]
    Value(#[from] ValueError),
    #[error(
        "'{id}' is not a name: it must begin with a letter and have letters, digits, '-', '.' and '_' only"
    )]
    BadId { id: String },
    #[error("Node name too long")]
    LongName,
    #[error("there is an object '{id}' already")]
    ObjectExists { id: String },
    #[error("object '{id}' not found")]
    NoObject { id: String },
    #[error("object '{id}' is in use, can not be deleted")]
    ObjectInUse { id: String },
    #[error("iothread '{id}' not found")]
    NoIoThread { id: String },
    #[error("Throttle group '{id}' does not exist")]
    NoGroup { id: String },
    #[error(transparent)]
    Limits(#[from] LimitsError),
    #[error("Duplicate nodes with node-name='{name}'")]
    NodeExists { name: String },
    #[error("'node-name' must be specified for the root node")]
    NoNodeName,
    #[error("Cannot find node-name='{name}'")]
    NoNode { name: String },
    #[error("Node '{name}' is in use by {by}")]
    NodeInUse { name: String, by: String },
    #[error("Node '{name}' is busy: '{by}' has not ended")]
    Busy { name: String, by: &'static str },
    #[error("cannot create a thread")]
    Thread { source: io::Error },
    #[error("'host_device' driver requires '{}' to be a block device", path.display())]
    NoDevice { path: PathBuf },
    #[error("Failed to find node with node-name='{name}'")]
    NotFound { name: String },
    #[error("Node has active parent node")]
    ActiveParent,
    #[error("Failed to inactivate node: Operation not permitted")]
    CannotInactivate,
    #[error("Failed to inactivate all nodes: Operation not permitted")]
    CannotInactivateAll,
    #[error("Failed to inactivate node")]
    Inactivate { source: io::Error },
    #[error("Permission 'resize' unavailable on inactive node")]
    ResizeInactive,
    #[error("Cannot change the option '{0}'")]
    CannotChange(&'static str),
    #[error("Read-only block node '{name}' cannot support read-write users")]
    ReadOnlyBelow { name: String },
    #[error("{} is another image now", path.display())]
    OtherImage { path: PathBuf },
    #[error("the disk of export '{id}' has blocks of {block} bytes, and node '{name}' would need {needed}")]
    BlocksOfExport {
        id: String,
        name: String,
        block: u32,
        needed: u32,
    },
    #[error(transparent)]
    Replace(#[from] ReplaceError),
    #[error("node '{name}' cannot become one of another driver")]
    OtherDriver { name: String },
    #[error("node '{name}' would be below itself")]
    Circle { name: String },
    #[error(
        "Permission conflict on node '{node}': permissions 'resize' are both required by {user} and unshared by node \
         '{by}' (uses node '{node}' as 'file' child)."
    )]
    ResizeConflict { node: String, user: String, by: String },
    #[error("Cannot resize fixed-size raw disks")]
    FixedSize,
    #[error("Disk size too large for the chosen offset")]
    SizeTooLarge,
    #[error("cannot resize '{name}'")]
    Resize { name: String, source: io::Error },
    #[error("no descriptor in {} has the right access mode", path.display())]
    NoDescriptor { path: PathBuf, source: io::Error },
    #[error("there is no set of descriptors {} (add-fd makes one)", path.display())]
    NoDescriptors { path: PathBuf },
    #[error(
        "the descriptors in {} cannot be switched while others use them: add one that was opened {with} O_DIRECT",
        path.display()
    )]
    DescriptorFlags { path: PathBuf, with: &'static str },
    #[error(
        "the sandbox keeps this process from opening {}: {hint}pass a descriptor (add-fd, and /dev/fdset/N as its name)",
        path.display()
    )]
    Confined { path: PathBuf, hint: &'static str },
    #[error(
        "the sandbox keeps this process from making socket {}: {hint}pass one that listens (getfd, and addr.type=fd)",
        path.display()
    )]
    ConfinedSocket { path: PathBuf, hint: &'static str },
    #[error(
        "{} leads out of the directory that the sandbox leaves open, by a symbolic link or '..': {hint}pass a descriptor",
        path.display()
    )]
    LeadsOut { path: PathBuf, hint: &'static str },
    #[error(
        "the sandbox lets this process connect only to exports of NBD servers that were named when it started, not to export \
         '{export}' of {server}"
    )]
    ConfinedServer { server: String, export: String },
    #[error(
        "the sandbox keeps this process from reading the configuration of a Ceph cluster: only those that were used when it \
         started can be used"
    )]
    ConfinedCluster,
    #[error(
        "it is on another machine, and the options of this process do not name that: start it with the options or the \
         configuration file of the old one, beside --take-over"
    )]
    UnnamedRemote,
    #[error(transparent)]
    Ceph(#[from] ceph::Error),
    #[error(transparent)]
    Connector(#[from] connector::StartError),
    #[error(transparent)]
    Nbd(#[from] NbdOpenError),
    #[error(
        "the process that opens files beneath the sandbox's directories has ended: restart this daemon, or pass descriptors \
         (add-fd, getfd)"
    )]
    NoOpener,
    #[error(transparent)]
    Qcow2(#[from] Qcow2OpenError),
    #[error("The overlay is already in use")]
    OverlayInUse,
    #[error("The overlay already has a backing image")]
    OverlayHasBacking,
    #[error("The overlay does not support backing images")]
    NoBackingFiles,
    #[error("node '{name}' has several exports: a snapshot is possible with one")]
    SeveralExports { name: String },
    #[error("a qcow2 node cannot be inactive so far")]
    InactiveFormat,
    #[error("a qcow2 image must be in a node with driver 'file' or 'host_device', not '{driver}'")]
    FormatChild { driver: &'static str },
    #[error(
        "node '{name}' cannot be part of a qcow2 image: it is only a part of another node, or has limits"
    )]
    FormatPart { name: String },
    #[error("node '{name}' cannot be part of a qcow2 image while it is inactive")]
    InactivePart { name: String },
    #[error("node '{name}' is part of a qcow2 image, which cannot be reopened so far")]
    ReopenFormat { name: String },
    #[error(
        "the sandbox keeps this process from opening the files that an image names: make a node of each one (backing=NODE, \
         data-file=NODE)"
    )]
    ConfinedNames,
    #[error("Node '{name}' is not owned by the monitor")]
    NotOwned { name: String },
    #[error("Inactive '{child}' can't be a file child of active '{name}'")]
    InactiveChild { child: String, name: String },
    #[error("Offset ({offset}) cannot be greater than size of the containing file ({whole})")]
    OffsetPastEnd { offset: u64, whole: u64 },
    #[error(
        "The sum of offset ({offset}) and size ({size}) has to be smaller or equal to the actual size of the containing \
         file ({whole})"
    )]
    PartPastEnd { offset: u64, size: u64, whole: u64 },
    #[error("Specified size is not multiple of 512")]
    PartSize,
    #[error("offset {offset} is not a multiple of {unit} bytes, which O_DIRECT needs here")]
    PartAlignment { offset: u64, unit: u32 },
    #[error(
        "the size of node '{name}', {size} bytes, is not a multiple of the logical block size, {block} bytes"
    )]
    PartOfBlocks { name: String, size: u64, block: u32 },
    #[error(
        "export '{export}' has logical blocks of {block} bytes, and the new size, {size} bytes, is not a multiple of that"
    )]
    ResizeOfBlocks { export: String, size: u64, block: u32 },
    #[error("node '{name}' has no whole block")]
    NoBlock { name: String },
    #[error("force-share=on can only be used with read-only images")]
    ForceShare,
    #[error("setting detect-zeroes to unmap is not allowed without setting discard operation to unmap")]
    DetectWithoutDiscard,
    #[error("a disk has one throttle node at most")]
    ThrottledTwice,
    #[error("Block export id '{id}' is already in use")]
    ExportExists { id: String },
    #[error("Export '{id}' is not found")]
    NoExport { id: String },
    #[error("Export '{id}' is already shutting down")]
    Leaving { id: String },
    #[error("Cannot export read-only node '{name}' as writable")]
    ReadOnlyNode { name: String },
    #[error("Node '{name}' has a writable export already: '{by}'")]
    WritableTwice { name: String, by: String },
    #[error("Node '{name}' has an export already, '{by}': only one that is alone may be writable")]
    ReadAlready { name: String, by: String },
    #[error("Only socket address types 'unix' and 'fd' are supported")]
    AddressType,
    #[error("iothread-vq-mapping: {0}")]
    Mapping(String),
    #[error("{} looks like a {format} image, and its format is not given: the guest would get the bytes of the image itself", path.display())]
    Format {
        path: PathBuf,
        format: &'static str,
        driver: Driver,
    },
    #[error(transparent)]
    Image(#[from] storage::Error),
    #[error(transparent)]
    Take(#[from] TakeError),
    #[error(transparent)]
    Engine(#[from] engine::Error),
    #[error(transparent)]
    Group(account::Error),
    #[error(transparent)]
    Server(#[from] ServerError),
    #[error("endpoint=server: this program is a client of servers (use endpoint=client)")]
    ServerCreds,
    #[error("cannot read directory {} of tls-creds-x509 '{id}'", dir.display())]
    CredsDirectory {
        id: String,
        dir: PathBuf,
        source: io::Error,
    },
    #[error("there is no tls-creds-x509 object '{id}' (--object comes before the nodes that use it)")]
    NoTlsCreds { id: String },
    #[error("tls-hostname needs tls-creds")]
    HostnameWithoutCreds,
    #[error("a secret needs 'data' or 'file'")]
    NoSecret,
    #[error("a secret has 'data' or 'file', not both")]
    TwoSecrets,
    #[error("secret '{id}' is not base64")]
    NoBase64 { id: String },
    #[error("there is no secret object '{id}' (--object comes before the nodes that use it)")]
    MissingSecret { id: String },
    #[error("cannot read the file of secret '{id}'")]
    Secret { id: String, source: io::Error },
    /// The descriptor with the given number cannot be used.
    #[error(transparent)]
    Descriptor(SocketError),
    /// The socket from the service manager cannot be used.
    #[error("LISTEN_FDS")]
    Activation(#[source] SocketError),
    /// The service manager has already set the access rights of its socket.
    #[error(
        "the socket was handed over (LISTEN_FDS), and its unit says who may connect (SocketMode=, SocketGroup=)"
    )]
    ActivationAccess,
    /// No socket was handed over. The text describes the environment variables.
    #[error("no socket was handed over{0}")]
    NoActivation(String),
    #[error("iothread '{id}' cannot be started")]
    IoThread { id: String, source: aio::Error },
    #[error(transparent)]
    Gone(#[from] aio::Gone),
    #[error(
        "iothread '{id}' cannot run on CPUs {cpus:?} (do they exist, are they online, may this process use them?)"
    )]
    Pin {
        id: String,
        cpus: Vec<u16>,
        source: io::Error,
    },
    #[error(transparent)]
    Device(#[from] CreateError),
    #[error(transparent)]
    Sandbox(#[from] sandbox::Error),
    #[error(transparent)]
    Add(#[from] AddError),
}

/// The reason why a descriptor is not a usable socket.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub enum SocketError {
    /// The descriptor does not exist.
    Inherited(#[from] InheritedError),
    /// The descriptor is of the wrong kind.
    Server(#[from] ServerError),
}

impl From<LockError> for OperationError {
    fn from(error: LockError) -> Self {
        Self::Take(error.into())
    }
}

/// Refuses options that do not apply to `what` (a driver or a type).
pub(super) fn refuse(options: &[(&str, bool)]) -> Result<(), ValueError> {
    match options.iter().find(|(_, given)| *given) {
        Some((name, _)) => Err(ValueError::Unexpected((*name).to_owned())),
        None => Ok(()),
    }
}

/// Returns the value of a required option.
pub(super) fn require<T>(name: &str, value: Option<T>) -> Result<T, ValueError> {
    value.ok_or_else(|| ValueError::Missing(name.to_owned()))
}

/// Checks that a number is within a range.
pub(super) fn within<T>(name: &str, value: T, range: std::ops::RangeInclusive<T>) -> Result<T, ValueError>
where
    T: Copy + PartialOrd + std::fmt::Display,
{
    match range.contains(&value) {
        true => Ok(value),
        false => Err(ValueError::Type {
            path: name.to_owned(),
            expected: format!("a number from {} to {}", range.start(), range.end()),
        }),
    }
}

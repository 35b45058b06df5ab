//! `object-add` and `--object`.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::value_error::ValueError;
use crate::throttle::ThrottleLimits;

/// The types of objects.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[allow(missing_docs, reason = "the words of QEMU")]
pub enum ObjectType {
    #[serde(rename = "iothread")]
    IoThread,
    ThrottleGroup,
    Secret,
    #[serde(rename = "tls-creds-x509")]
    TlsCredsX509,
}

/// The options of a new object. The type decides which properties are allowed.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
#[allow(missing_docs, reason = "the words of QEMU")]
pub struct ObjectOptions {
    pub qom_type: ObjectType,
    pub id: String,

    // iothread
    pub poll_max_ns: Option<u64>,
    /// Has no effect: the poll window grows in steps of its own.
    pub poll_grow: Option<u64>,
    /// Has no effect, as `poll_grow`.
    pub poll_shrink: Option<u64>,
    /// Maximum number of requests in one submission to the kernel.
    pub aio_max_batch: Option<u64>,
    pub thread_pool_min: Option<u16>,
    pub thread_pool_max: Option<u16>,
    /// Host CPUs that the thread and its workers run on. QEMU sets them on its `thread-context` object.
    pub cpu_affinity: Option<Vec<u16>>,

    // throttle-group
    pub limits: Option<ThrottleLimits>,

    // secret
    pub data: Option<String>,
    pub file: Option<PathBuf>,
    pub format: Option<SecretFormat>,

    // tls-creds-x509
    pub dir: Option<PathBuf>,
    pub endpoint: Option<TlsEndpoint>,
    pub verify_peer: Option<bool>,
}

/// The form in which a secret is given.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[allow(missing_docs, reason = "the words of QEMU")]
pub enum SecretFormat {
    #[default]
    Raw,
    Base64,
}

/// The side of a connection that has credentials.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[allow(missing_docs, reason = "the words of QEMU")]
pub enum TlsEndpoint {
    #[default]
    Client,
    Server,
}

/// Moves the limits of a throttle group that are options of their own, such as `x-iops-total`, into `limits`, whose
/// values come first. QEMU has both forms.
pub(super) fn gather_limits(options: &mut Map<String, Value>) {
    if options.get("qom-type").and_then(Value::as_str) != Some("throttle-group") {
        return;
    }
    let is_limit = |name: &str| name.strip_prefix("x-").is_some_and(ThrottleLimits::has);
    let names: Vec<String> = options.keys().filter(|name| is_limit(name)).cloned().collect();
    for name in names {
        let value = options.remove(&name);
        let limits = options.entry("limits").or_insert_with(|| Map::new().into());
        if let (Some(limits), Some(value)) = (limits.as_object_mut(), value) {
            limits.entry(&name["x-".len()..]).or_insert(value);
        }
    }
}

/// Refuses credentials that QEMU has and this program has not.
pub(super) fn refuse_psk(options: &Map<String, Value>) -> Result<(), ValueError> {
    match options.get("qom-type").and_then(Value::as_str) {
        Some("tls-creds-psk") => Err(ValueError::Other {
            path: "qom-type".to_owned(),
            reason: "tls-creds-psk is not supported, because the TLS library has no pre-shared keys: use tls-creds-x509"
                .to_owned(),
        }),
        _ => Ok(()),
    }
}

impl ObjectOptions {
    /// Makes options with only the required members set.
    pub fn new(qom_type: ObjectType, id: &str) -> Self {
        Self {
            qom_type,
            id: id.to_owned(),
            poll_max_ns: None,
            poll_grow: None,
            poll_shrink: None,
            aio_max_batch: None,
            thread_pool_min: None,
            thread_pool_max: None,
            cpu_affinity: None,
            limits: None,
            data: None,
            file: None,
            format: None,
            dir: None,
            endpoint: None,
            verify_peer: None,
        }
    }
}

/// The properties of an IOThread.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[allow(missing_docs, reason = "the words of QEMU")]
pub struct IoThreadOptions {
    pub poll_max_ns: u64,
    pub poll_grow: u64,
    pub poll_shrink: u64,
    pub aio_max_batch: u64,
    pub thread_pool_min: u16,
    pub thread_pool_max: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_affinity: Option<Vec<u16>>,
}

impl Default for IoThreadOptions {
    fn default() -> Self {
        Self {
            poll_max_ns: 32768,
            poll_grow: 0,
            poll_shrink: 0,
            aio_max_batch: 0,
            thread_pool_min: 0,
            thread_pool_max: 64,
            cpu_affinity: None,
        }
    }
}

/// A secret. It is shown nowhere.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretOptions(pub Vec<u8>);

impl std::fmt::Debug for SecretOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SecretOptions")
    }
}

/// The properties of credentials for TLS.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[allow(missing_docs, reason = "the words of QEMU")]
pub struct TlsCredsOptions {
    pub dir: PathBuf,
    pub endpoint: TlsEndpoint,
    pub verify_peer: bool,
}

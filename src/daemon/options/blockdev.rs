//! `blockdev-add` and `--blockdev`.

use std::fmt;
use std::num::NonZeroU16;
use std::path::PathBuf;

use serde::de::value::MapAccessDeserializer;
use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use super::backing::{BackingRef, backing};
use super::choices::{AioOption, Cache, DetectZeroes, Discard, OnOffAuto};
use super::object::TlsCredsOptions;
use super::server::{Monitor, ServerOption};
use super::value_error::ValueError;
use crate::nbd::{EXPORT_MAX, Remote, Server, Tls};

/// The kinds of nodes.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[allow(missing_docs, reason = "the words of QEMU")]
pub enum Driver {
    File,
    #[serde(rename = "host_device")]
    HostDevice,
    Raw,
    NullCo,
    NullAio,
    Throttle,
    Nbd,
    Rbd,
    Qcow2,
}

impl Driver {
    /// Returns the driver's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::HostDevice => "host_device",
            Self::Raw => "raw",
            Self::NullCo => "null-co",
            Self::NullAio => "null-aio",
            Self::Throttle => "throttle",
            Self::Nbd => "nbd",
            Self::Rbd => "rbd",
            Self::Qcow2 => "qcow2",
        }
    }
}

/// The options of a new node. The driver decides which options are allowed.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
#[allow(missing_docs, reason = "the words of QEMU")]
pub struct BlockdevOptions {
    pub driver: Driver,
    pub node_name: Option<String>,
    // These are options, so that a node that is made with its parent can inherit them.
    pub read_only: Option<bool>,
    pub auto_read_only: Option<bool>,
    pub force_share: Option<bool>,
    #[serde(default)]
    pub cache: Cache,
    pub discard: Option<Discard>,
    #[serde(default)]
    pub detect_zeroes: DetectZeroes,
    /// `false` if another process may be using the image, as in a migration.
    pub active: Option<bool>,

    // file, host_device
    pub filename: Option<PathBuf>,
    pub locking: Option<OnOffAuto>,
    pub aio: Option<AioOption>,
    /// Maximum number of requests in one submission to the kernel.
    pub aio_max_batch: Option<u64>,
    /// Map a file in memory. The default is on.
    pub mmap: Option<bool>,

    // raw, throttle, qcow2
    pub file: Option<Box<BlockdevRef>>,

    // raw: the start of the disk in the node below; null: ignored
    pub offset: Option<u64>,
    // raw, null-co, null-aio
    pub size: Option<u64>,

    // null-co, null-aio
    pub latency_ns: Option<u64>,
    /// Reads return zeroes. By default they leave the guest's memory as it is.
    pub read_zeroes: Option<bool>,

    // throttle
    pub throttle_group: Option<String>,

    // nbd, rbd
    pub server: Option<Box<ServerOption>>,

    // nbd
    pub export: Option<String>,
    /// Seconds.
    pub reconnect_delay: Option<u32>,
    /// Seconds.
    pub open_timeout: Option<u32>,
    /// The id of a `tls-creds-x509` object.
    pub tls_creds: Option<String>,
    /// The name that the server's certificate must have.
    pub tls_hostname: Option<String>,

    // rbd
    pub pool: Option<String>,
    pub namespace: Option<String>,
    pub image: Option<String>,
    pub snapshot: Option<String>,
    /// The path of the cluster's configuration.
    pub conf: Option<PathBuf>,
    /// The name of the cluster's user, without `client.`.
    pub user: Option<String>,
    /// The id of a `secret` object with the user's key.
    pub key_secret: Option<String>,

    // qcow2
    /// The node of the backing file, or none, instead of the file that the image names.
    #[serde(
        default,
        deserialize_with = "backing",
        skip_serializing_if = "Option::is_none"
    )]
    pub backing: Option<BackingRef>,
    /// The node of the external data file, instead of the file that the image names.
    pub data_file: Option<String>,
    /// Open the files that the image names, which may be any files.
    pub follow_names: Option<bool>,
    // Programs that know none of these take over from this one unless they are set.
    /// The caches of L2 tables and refcounts together, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache_size: Option<u64>,
    /// Bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub l2_cache_size: Option<u64>,
    /// Bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub l2_cache_entry_size: Option<u64>,
    /// Bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refcount_cache_size: Option<u64>,
    /// Seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache_clean_interval: Option<u32>,

    /// Refuse an image that looks like another format. No successor has to know of it.
    #[serde(default, rename = "x-probe", skip_serializing)]
    pub probe: bool,
}

impl BlockdevOptions {
    /// Makes options with only the driver set.
    pub fn new(driver: Driver) -> Self {
        Self {
            driver,
            node_name: None,
            read_only: None,
            auto_read_only: None,
            force_share: None,
            cache: Cache::default(),
            discard: None,
            detect_zeroes: DetectZeroes::default(),
            active: None,
            filename: None,
            locking: None,
            aio: None,
            aio_max_batch: None,
            mmap: None,
            file: None,
            offset: None,
            size: None,
            latency_ns: None,
            read_zeroes: None,
            throttle_group: None,
            server: None,
            export: None,
            reconnect_delay: None,
            open_timeout: None,
            tls_creds: None,
            tls_hostname: None,
            pool: None,
            namespace: None,
            image: None,
            snapshot: None,
            conf: None,
            user: None,
            key_secret: None,
            backing: None,
            data_file: None,
            follow_names: None,
            cache_size: None,
            l2_cache_size: None,
            l2_cache_entry_size: None,
            refcount_cache_size: None,
            cache_clean_interval: None,
            probe: false,
        }
    }

    /// Returns whether writes are refused.
    pub fn is_read_only(&self) -> bool {
        self.read_only.unwrap_or(false)
    }

    /// Returns whether an image that cannot be written is opened for reading only.
    pub fn is_auto_read_only(&self) -> bool {
        self.auto_read_only.unwrap_or(false)
    }

    /// Returns whether others may write to the image while it is only read here.
    pub fn shares_writing(&self) -> bool {
        self.force_share.unwrap_or(false)
    }

    /// Returns whether discards have an effect.
    pub fn unmaps(&self) -> bool {
        self.discard.unwrap_or_default() == Discard::Unmap
    }

    /// Returns the export of an NBD server that a node with driver `nbd` uses. `tls` are the credentials that it names.
    ///
    /// # Errors
    /// The address is missing or wrong, or the name of the export is too long.
    pub fn remote(&self, tls: Option<&TlsCredsOptions>) -> Result<Remote, ValueError> {
        let server = match self.server.as_deref() {
            Some(ServerOption::Nbd(server)) => server.address()?,
            Some(ServerOption::Monitors(_)) => return Err(ServerOption::wrong("the address of one server")),
            None => return Err(ValueError::Missing("server".to_owned())),
        };
        let tls = tls.map(|creds| Tls {
            dir: creds.dir.clone(),
            verify_peer: creds.verify_peer,
            hostname: match (&self.tls_hostname, &server) {
                (Some(name), _) => Some(name.clone()),
                (None, Server::Inet(host, _)) => Some(host.clone()),
                (None, Server::Unix(_)) => None,
            },
        });
        let export = self.export.clone().unwrap_or_default();
        if export.len() > EXPORT_MAX {
            return Err(ValueError::Type {
                path: "export".to_owned(),
                expected: format!("a name of at most {EXPORT_MAX} bytes"),
            });
        }
        Ok(Remote { server, export, tls })
    }

    /// Returns the addresses of the monitors that a node with driver `rbd` names.
    ///
    /// # Errors
    /// There is one address, and not a list. A port is not a number from 1 to 65535.
    pub fn monitors(&self) -> Result<Vec<String>, ValueError> {
        match self.server.as_deref() {
            None => Ok(Vec::new()),
            Some(ServerOption::Monitors(list)) => {
                let is_wrong = |monitor: &Monitor| monitor.port.parse::<NonZeroU16>().is_err();
                match list.iter().position(is_wrong) {
                    None => Ok(list.iter().map(ToString::to_string).collect()),
                    Some(number) => Err(ValueError::Type {
                        path: format!("server.{number}.port"),
                        expected: "a number from 1 to 65535".to_owned(),
                    }),
                }
            }
            Some(ServerOption::Nbd(_)) => Err(ServerOption::wrong(
                "a list, such as server.0.host=HOST,server.0.port=PORT",
            )),
        }
    }

    /// Returns these options and those of the nodes that are made with this one.
    pub fn all(&self) -> impl Iterator<Item = &Self> {
        std::iter::successors(Some(self), |options| match options.file.as_deref() {
            Some(BlockdevRef::New(below)) => Some(&**below),
            _ => None,
        })
    }

    /// Returns the options of the node below, if it is made with this one.
    pub fn below_mut(&mut self) -> Option<&mut Self> {
        match self.file.as_deref_mut() {
            Some(BlockdevRef::New(below)) => Some(below),
            _ => None,
        }
    }

    /// Passes options down to the nodes that are made with this one, unless they have their own, as QEMU does. The
    /// node above decides about discards, so those below are allowed.
    pub fn pass_down(&mut self) {
        let (read_only, auto_read_only) = (self.read_only, self.auto_read_only);
        let (force_share, cache) = (self.force_share, self.cache);
        let Some(below) = self.below_mut() else {
            return;
        };
        below.read_only = below.read_only.or(read_only);
        below.auto_read_only = below.auto_read_only.or(auto_read_only);
        below.force_share = below.force_share.or(force_share);
        below.cache.direct = below.cache.direct.or(cache.direct);
        below.cache.no_flush = below.cache.no_flush.or(cache.no_flush);
        below.discard = below.discard.or(Some(Discard::Unmap));
        below.pass_down();
    }
}

/// A reference to the node below: the name of an existing node, or the options of a new one.
#[derive(Clone, Debug, Serialize)]
#[serde(untagged)]
pub enum BlockdevRef {
    /// The name of a node.
    Name(String),
    /// The options of a new node.
    New(Box<BlockdevOptions>),
}

impl<'de> Deserialize<'de> for BlockdevRef {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct NameOrOptions;
        impl<'de> Visitor<'de> for NameOrOptions {
            type Value = BlockdevRef;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the name of a node or its options")
            }

            fn visit_str<E: de::Error>(self, name: &str) -> Result<BlockdevRef, E> {
                Ok(BlockdevRef::Name(name.to_owned()))
            }

            fn visit_map<A: de::MapAccess<'de>>(self, options: A) -> Result<BlockdevRef, A::Error> {
                let options = BlockdevOptions::deserialize(MapAccessDeserializer::new(options))?;
                Ok(BlockdevRef::New(Box::new(options)))
            }
        }
        deserializer.deserialize_any(NameOrOptions)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_exports_have_a_limit() {
        let address = Server::Unix("s".into());
        let remote = |len: usize| {
            let options = BlockdevOptions {
                server: Some(Box::new(ServerOption::Nbd((&address).into()))),
                export: Some("e".repeat(len)),
                ..BlockdevOptions::new(Driver::Nbd)
            };
            options.remote(None).map(|remote| remote.export.len())
        };
        assert_eq!(remote(EXPORT_MAX), Ok(EXPORT_MAX));
        let told = remote(EXPORT_MAX + 1).expect_err("refused").to_string();
        assert_eq!(told, "Parameter 'export' expects a name of at most 4096 bytes");
    }

    #[test]
    fn nodes_made_together_share_options() {
        let below = BlockdevOptions {
            read_only: Some(false),
            ..BlockdevOptions::new(Driver::File)
        };
        let middle = BlockdevOptions {
            file: Some(Box::new(BlockdevRef::New(Box::new(below)))),
            discard: Some(Discard::Ignore),
            ..BlockdevOptions::new(Driver::Raw)
        };
        let mut top = BlockdevOptions {
            file: Some(Box::new(BlockdevRef::New(Box::new(middle)))),
            read_only: Some(true),
            force_share: Some(true),
            cache: Cache {
                direct: Some(true),
                no_flush: None,
            },
            ..BlockdevOptions::new(Driver::Raw)
        };
        top.pass_down();
        let below = |options: &BlockdevOptions| match options.file.as_deref() {
            Some(BlockdevRef::New(below)) => (**below).clone(),
            _ => panic!("{options:?}"),
        };
        let (middle, file) = (below(&top), below(&below(&top)));
        assert!(middle.is_read_only() && !file.is_read_only());
        assert!(file.shares_writing() && file.cache.is_direct() && !file.cache.ignores_flushes());
        assert_eq!(
            [top.unmaps(), middle.unmaps(), file.unmaps()],
            [false, false, true]
        );
    }
}

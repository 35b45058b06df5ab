//! `blockdev-add` and `--blockdev`.

use std::fmt;
use std::path::PathBuf;

use serde::de::value::MapAccessDeserializer;
use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use crate::engine::Choice;

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
        }
    }
}

/// The options of a new node. The driver decides which options are allowed.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
#[allow(missing_docs, reason = "the words of QEMU")]
pub struct BlockdevOptions {
    pub driver: Driver,
    pub node_name: Option<String>,
    #[serde(default)]
    pub read_only: bool,
    #[serde(default)]
    pub auto_read_only: bool,
    #[serde(default)]
    pub force_share: bool,
    #[serde(default)]
    pub cache: Cache,
    #[serde(default)]
    pub discard: Discard,
    #[serde(default)]
    pub detect_zeroes: DetectZeroes,
    /// `false` if another process uses the image until a frontend starts its rings here, as in a migration.
    pub active: Option<bool>,

    // file, host_device
    pub filename: Option<PathBuf>,
    pub locking: Option<OnOffAuto>,
    pub aio: Option<AioOption>,
    /// Maximum number of requests in one submission to the kernel.
    pub aio_max_batch: Option<u64>,

    // raw, throttle
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

    /// Refuse images that look like another format. Only the short form of the command line sets this.
    #[serde(skip)]
    pub probe: bool,
}

impl BlockdevOptions {
    /// Makes options with only the driver set.
    pub fn new(driver: Driver) -> Self {
        Self {
            driver,
            node_name: None,
            read_only: false,
            auto_read_only: false,
            force_share: false,
            cache: Cache::default(),
            discard: Discard::default(),
            detect_zeroes: DetectZeroes::default(),
            active: None,
            filename: None,
            locking: None,
            aio: None,
            aio_max_batch: None,
            file: None,
            offset: None,
            size: None,
            latency_ns: None,
            read_zeroes: None,
            throttle_group: None,
            probe: false,
        }
    }
}

/// The use of the host's page cache.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Cache {
    /// Bypass the host's page cache (O_DIRECT).
    pub direct: bool,
    /// Ignore flushes.
    pub no_flush: bool,
}

/// The handling of discards.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Discard {
    /// Discards succeed without effect.
    #[default]
    #[serde(alias = "off")]
    Ignore,
    /// Discards free space.
    #[serde(alias = "on")]
    Unmap,
}

/// The handling of writes of zeroes.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[allow(missing_docs, reason = "the words of QEMU")]
pub enum DetectZeroes {
    #[default]
    Off,
    On,
    Unmap,
}

/// A switch that the daemon decides by default.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[allow(missing_docs, reason = "the words of QEMU")]
pub enum OnOffAuto {
    #[default]
    Auto,
    On,
    Off,
}

/// The method for executing disk I/O. If it is not given, the daemon chooses.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[allow(missing_docs, reason = "the words of QEMU")]
pub enum AioOption {
    #[serde(rename = "threads")]
    Threads,
    #[serde(rename = "native")]
    Native,
    #[serde(rename = "io_uring")]
    IoUring,
}

impl From<AioOption> for Choice {
    fn from(aio: AioOption) -> Self {
        match aio {
            AioOption::Threads => Self::Threads,
            AioOption::Native => Self::Native,
            AioOption::IoUring => Self::IoUring,
        }
    }
}

/// A reference to the node below: the name of an existing node, or the options of a new one.
#[derive(Clone, Debug)]
pub enum BlockdevRef {
    /// The name of a node.
    Name(String),
    /// The options of a new node.
    New(BlockdevOptions),
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
                BlockdevOptions::deserialize(MapAccessDeserializer::new(options)).map(BlockdevRef::New)
            }
        }
        deserializer.deserialize_any(NameOrOptions)
    }
}

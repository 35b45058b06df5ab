//! The choices that options of nodes offer.

use serde::{Deserialize, Serialize};

use crate::engine::Choice;

/// The use of the host's page cache.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Cache {
    /// Bypass the host's page cache (O_DIRECT).
    pub direct: Option<bool>,
    /// Ignore flushes.
    pub no_flush: Option<bool>,
}

impl Cache {
    /// Returns whether the host's page cache is bypassed.
    pub fn is_direct(self) -> bool {
        self.direct.unwrap_or(false)
    }

    /// Returns whether flushes are ignored.
    pub fn ignores_flushes(self) -> bool {
        self.no_flush.unwrap_or(false)
    }
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

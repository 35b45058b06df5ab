//! Options whose value is one of a few words.

use clap::ValueEnum;

use crate::engine::Choice;
use crate::log_format;
use crate::sandbox;

/// The method for executing disk I/O.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Aio {
    /// Cached data at once and the rest in a thread pool; with --direct, io_uring if available.
    Auto,
    /// Blocking calls in a thread pool.
    Threads,
    /// io_uring.
    #[value(name = "io_uring")]
    IoUring,
    /// Linux AIO; needs --direct.
    Native,
}

impl From<Aio> for Choice {
    fn from(aio: Aio) -> Self {
        match aio {
            Aio::Auto => Self::Auto,
            Aio::Threads => Self::Threads,
            Aio::IoUring => Self::IoUring,
            Aio::Native => Self::Native,
        }
    }
}

/// The format of the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ImageFormat {
    /// The image holds the disk's bytes and nothing else.
    Raw,
    /// The disk is in a qcow2 image.
    Qcow2,
}

/// A switch that is on by default.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[allow(missing_docs, reason = "the words of the command line")]
pub enum OnOff {
    #[value(aliases = ["yes", "true"])]
    On,
    #[value(aliases = ["no", "false"])]
    Off,
}

/// The level of confinement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SandboxMode {
    /// Confine as far as the kernel supports it; log what it does not support.
    Auto,
    /// Confine completely, or refuse to start.
    On,
    /// As auto, but the kernel executes and logs forbidden system calls. For debugging.
    Log,
    /// Do not confine. For debugging.
    Off,
}

impl From<SandboxMode> for sandbox::Mode {
    fn from(mode: SandboxMode) -> Self {
        match mode {
            SandboxMode::Auto => Self::Auto,
            SandboxMode::On => Self::On,
            SandboxMode::Log => Self::Log,
            SandboxMode::Off => Self::Off,
        }
    }
}

/// The frequency of notifications to the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Notify {
    /// Once per batch.
    Batch,
    /// For each completion.
    Each,
}

/// The level of detail of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[allow(missing_docs, reason = "the usual levels")]
pub enum LogLevel {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

impl From<LogLevel> for tracing::Level {
    fn from(level: LogLevel) -> Self {
        match level {
            LogLevel::Error => Self::ERROR,
            LogLevel::Warn => Self::WARN,
            LogLevel::Info => Self::INFO,
            LogLevel::Debug => Self::DEBUG,
            LogLevel::Trace => Self::TRACE,
        }
    }
}

/// The form of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[allow(missing_docs, reason = "the words of the command line")]
pub enum LogFormat {
    Text,
    Json,
}

impl From<LogFormat> for log_format::LogFormat {
    fn from(format: LogFormat) -> Self {
        match format {
            LogFormat::Text => Self::Text,
            LogFormat::Json => Self::Json,
        }
    }
}

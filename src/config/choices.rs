//! Options that are one of a few words.

use clap::ValueEnum;

use crate::engine::Choice;
use crate::sandbox;

/// How disk I/O is executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Aio {
    /// What is in the page cache at once, the rest in a thread pool; with --direct io_uring, if there is one.
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

/// What the bytes of the image mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ImageFormat {
    /// The disk's bytes and nothing else, whatever they look like.
    Raw,
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

/// When the process is confined.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SandboxMode {
    /// As far as the kernel can; what it cannot is logged.
    Auto,
    /// Completely, or not at all: the process does not start then.
    On,
    /// As auto, but forbidden system calls are done, and logged by the kernel. For debugging.
    Log,
    /// Not at all. For debugging.
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

/// When the guest is notified of completions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Notify {
    /// Once per batch.
    Batch,
    /// For each completion.
    Each,
}

/// What is logged.
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

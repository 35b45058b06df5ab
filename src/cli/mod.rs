//! The command line.

mod advice;
mod choices;
pub mod config;
mod keyval;
mod line;
mod long;
pub mod mapping;
mod metrics;
mod monitor;
mod options;
mod short;
mod socket_advice;
mod values;

pub use advice::{Form, WRONG_OPTION};
pub use choices::{Aio, ImageFormat, LogFormat, LogLevel, Notify, OnOff, SandboxMode};
pub use options::{Cli, one_line};
pub use values::{SOCKET_PATH_MAX, Serial};

/// The output of `--print-capabilities`.
pub const CAPABILITIES: &str = r#"{"type": "block", "features": ["read-only", "blk-file"]}"#;

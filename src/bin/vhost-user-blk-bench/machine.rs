//! What the measurements ran on.

use std::fs;
use std::process::Command;

use serde::Serialize;

/// The machine as far as it explains figures.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Machine {
    pub(crate) cpu: String,
    pub(crate) cpus: usize,
    pub(crate) kernel: String,
    pub(crate) hypervisor: bool,
    /// Load averages over 1, 5 and 15 minutes when the report was written.
    pub(crate) load: String,
    pub(crate) qemu_storage_daemon: Option<String>,
    pub(crate) vhost_user_blk: &'static str,
}

impl Machine {
    pub(crate) fn here() -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let cpuinfo = read("/proc/cpuinfo");
        let field = |name: &str| {
            let line = cpuinfo.lines().find(|line| line.starts_with(name))?;
            Some(line.split_once(':')?.1.trim().to_owned())
        };
        let version = Command::new("qemu-storage-daemon").arg("--version").output().ok();
        Self {
            cpu: field("model name").unwrap_or_else(|| "unknown".to_owned()),
            cpus: std::thread::available_parallelism().map_or(0, std::num::NonZero::get),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            hypervisor: field("flags").is_some_and(|flags| flags.split(' ').any(|flag| flag == "hypervisor")),
            load: read("/proc/loadavg")
                .split(' ')
                .take(3)
                .collect::<Vec<_>>()
                .join(" "),
            qemu_storage_daemon: version.and_then(|out| {
                let text = String::from_utf8(out.stdout).ok()?;
                Some(text.lines().next()?.trim().to_owned())
            }),
            vhost_user_blk: env!("CARGO_PKG_VERSION"),
        }
    }
}

//! Describes the machine that the measurements ran on.

use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// The machine's properties that explain figures.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Machine {
    pub(crate) cpu: String,
    pub(crate) cpus: usize,
    pub(crate) memory_mib: u64,
    pub(crate) kernel: String,
    pub(crate) hypervisor: bool,
    /// The file system under `--dir`.
    pub(crate) file_system: String,
    /// Load averages over 1, 5 and 15 minutes before the first run.
    pub(crate) load_before: String,
    /// Load averages over 1, 5 and 15 minutes after the last run.
    pub(crate) load_after: String,
}

impl Machine {
    /// Describes this machine, with images in `dir`. Call `finish` after the last run.
    pub(crate) fn here(dir: &Path) -> Self {
        let cpuinfo = read("/proc/cpuinfo");
        Self {
            cpu: field(&cpuinfo, "model name").unwrap_or("unknown").to_owned(),
            cpus: std::thread::available_parallelism().map_or(0, std::num::NonZero::get),
            memory_mib: field(&read("/proc/meminfo"), "MemTotal")
                .and_then(|text| text.split(' ').next()?.parse::<u64>().ok())
                .unwrap_or(0)
                / 1024,
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            hypervisor: field(&cpuinfo, "flags")
                .is_some_and(|flags| flags.split(' ').any(|flag| flag == "hypervisor")),
            file_system: file_system(dir).unwrap_or_else(|| "unknown".to_owned()),
            load_before: load_average(),
            load_after: String::new(),
        }
    }

    /// Records the load averages after the last run.
    pub(crate) fn finish(&mut self) {
        self.load_after = load_average();
    }
}

/// Returns the type of the file system that `dir` is on: the longest mount point above `dir` determines it.
pub(crate) fn file_system(dir: &Path) -> Option<String> {
    let dir = dir.canonicalize().ok()?;
    let mounts = read("/proc/mounts");
    let mounts = mounts.lines().filter_map(|line| {
        let mut words = line.split(' ').skip(1);
        Some((Path::new(words.next()?).to_owned(), words.next()?.to_owned()))
    });
    let above = mounts.filter(|(point, _)| dir.starts_with(point));
    // If several file systems are mounted over each other, the last one is visible.
    above
        .max_by_key(|(point, _)| point.as_os_str().len())
        .map(|(_, kind)| kind)
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let line = text.lines().find(|line| line.starts_with(name))?;
    Some(line.split_once(':')?.1.trim())
}

fn load_average() -> String {
    let text = read("/proc/loadavg");
    text.split(' ').take(3).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_has_its_mount_points_file_system() {
        assert_eq!(file_system(Path::new("/dev/shm")).as_deref(), Some("tmpfs"));
        assert_eq!(file_system(Path::new("/proc/self")).as_deref(), Some("proc"));
        assert_eq!(file_system(Path::new("/no/such/directory")), None);
    }
}

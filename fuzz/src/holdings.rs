//! The descriptors and threads that the process holds.

use std::fs;

/// The number of descriptors and threads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holdings {
    pub fds: usize,
    pub threads: usize,
}

impl Holdings {
    pub fn now() -> Self {
        Self {
            fds: descriptors().len(),
            threads: fs::read_dir("/proc/self/task").expect("/proc is mounted").count(),
        }
    }
}

/// Lists the process's descriptors by the names of their files. Pipes are left out, because the sanitizer uses some to
/// talk to its symbolizer.
pub fn descriptors() -> Vec<String> {
    let name = |entry: fs::DirEntry| {
        fs::read_link(entry.path())
            .ok()
            .map(|link| link.display().to_string())
    };
    let mut names: Vec<_> = fs::read_dir("/proc/self/fd")
        .expect("/proc is mounted")
        .flatten()
        .filter_map(name)
        .filter(|name| !name.starts_with("pipe:"))
        .collect();
    names.sort();
    names
}

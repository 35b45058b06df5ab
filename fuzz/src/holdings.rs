//! What the process holds on to.

use std::fs;

/// Descriptors and threads.
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

/// What the descriptors are. Pipes are left out: the sanitizer talks to its symbolizer through some.
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

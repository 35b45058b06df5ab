//! What a process holds, as `/proc` shows it.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::io;
use std::path::Path;

/// The threads, descriptors and mappings that a process holds, without threads that come and go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holdings {
    pub threads: usize,
    pub fds: BTreeMap<String, usize>,
    pub mappings: BTreeMap<String, usize>,
}

impl Holdings {
    /// Returns whether each count is at most that of `limit`.
    pub fn is_within(&self, limit: &Self) -> bool {
        let fits = |held: &BTreeMap<String, usize>, limit: &BTreeMap<String, usize>| {
            held.iter()
                .all(|(name, count)| limit.get(name).is_some_and(|limit| count <= limit))
        };
        self.threads <= limit.threads && fits(&self.fds, &limit.fds) && fits(&self.mappings, &limit.mappings)
    }

    pub fn of(pid: u32) -> Self {
        let dir = Path::new("/proc").join(pid.to_string());
        let list = |name| {
            let entries = seen(fs::read_dir(dir.join(name)).map(Iterator::flatten), "list /proc");
            entries.into_iter().flatten()
        };
        // ThreadSanitizer opens pipes to its symbolizer with its first (suppressed) report.
        let sanitized = env::var_os("TSAN_OPTIONS").is_some();
        let links = list("fd").filter_map(|fd| fs::read_link(fd.path()).ok());
        let links = links.filter(|link| !sanitized || !link.to_string_lossy().starts_with("pipe:"));
        let maps = seen(fs::read_to_string(dir.join("maps")), "read maps").unwrap_or_default();
        // Anonymous memory (allocator arenas, stacks) comes and goes. Named mappings are ours or ThreadSanitizer's.
        let is_ours = |name: &&str| name.starts_with('/') && !name.contains("/tsan.");
        let names = maps
            .lines()
            .filter_map(|line| Some(line.get(73..)?.trim()).filter(is_ours));
        Self {
            threads: list("task").filter(|task| stays(&task.path())).count(),
            fds: count(links.map(|link| without_numbers(&link.to_string_lossy()))),
            mappings: count(names.map(str::to_owned)),
        }
    }
}

/// Unwraps the result of reading one of the process's files in `/proc`. Returns `None` if permission was denied: the
/// daemon is not dumpable, so only root may read all of its files.
fn seen<T>(result: io::Result<T>, what: &str) -> Option<T> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => None,
        result => Some(result.expect(what)),
    }
}

/// Returns whether a thread stays. Workers start and end with the load, and so do the kernel's for io_uring.
fn stays(task: &Path) -> bool {
    let is_worker = |name: String| name.starts_with("worker-") || name.starts_with("iou-");
    !fs::read_to_string(task.join("comm")).is_ok_and(is_worker)
}

/// Removes the number from a name like `socket:[123]`, because it changes with each connection.
fn without_numbers(link: &str) -> String {
    link.split(":[").next().unwrap_or(link).to_owned()
}

fn count(names: impl Iterator<Item = String>) -> BTreeMap<String, usize> {
    names.fold(BTreeMap::new(), |mut map, name| {
        *map.entry(name).or_default() += 1;
        map
    })
}

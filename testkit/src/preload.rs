//! Libraries that are preloaded into the daemon.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::skip::skipped;

/// Builds a library of a C file of the repository in a directory. Returns `None` without a compiler.
pub fn build(source: &str, dir: &Path) -> Option<PathBuf> {
    let library = dir.join("preloaded.so");
    let built = Command::new("cc")
        .args(["-shared", "-fPIC", "-O1", "-Wall", "-o"])
        .arg(&library)
        .arg(Path::new(crate::REPOSITORY).join(source))
        .args(["-ldl", "-lpthread"])
        .status();
    match built {
        Ok(status) => {
            assert!(status.success(), "{source} does not compile");
            Some(library)
        }
        Err(error) => {
            skipped(format_args!("no C compiler: {error}"));
            None
        }
    }
}

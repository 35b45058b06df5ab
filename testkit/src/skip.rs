//! Reports tests that cannot run on this machine.

use std::fmt::Display;
use std::fs::File;
use std::io::{Write, stderr};
use std::{env, thread};

/// Reports that the calling test, or a part of it, is skipped.
///
/// The line `skipped: TEST: REASON` goes straight to stderr, because the test harness hides the output of tests that
/// pass. The same line is appended to the file that `SKIPPED_TESTS` names: `scripts/test` sets this variable, and
/// prints all lines at its end.
pub fn skipped(reason: impl Display) {
    let line = format!("skipped: {}: {reason}\n", test());
    // One write per line: tests run concurrently, and their lines must not mix.
    let _ = stderr().write_all(line.as_bytes());
    if let Some(list) = env::var_os("SKIPPED_TESTS") {
        let list = File::options().append(true).create(true).open(list);
        list.and_then(|mut list| list.write_all(line.as_bytes()))
            .expect("SKIPPED_TESTS names a writable file");
    }
}

/// Returns the binary's name and the calling test's name, as `cargo test` lists it.
fn test() -> String {
    let binary = env::current_exe().unwrap_or_default();
    let binary = binary.file_name().unwrap_or_default().to_string_lossy();
    // Cargo appends a digest to the name.
    let binary = binary.rsplit_once('-').map_or(&*binary, |(name, _)| name);
    let thread = thread::current();
    format!("{binary} {}", thread.name().unwrap_or("?"))
}

//! `doctor`: finds mistakes, and says what to do.

mod daemon;
mod disk;
mod finding;
mod format;
mod host;
mod image;
mod process;
mod qemu;

use std::io::{Write, stdout};
use std::path::{Path, PathBuf};

use anyhow::Result;
use finding::Level;

/// Looks at images, or at this machine and the daemon. Returns false if there is an error.
pub(crate) fn run(socket: &Path, images: &[PathBuf]) -> Result<bool> {
    let mut findings = host::look();
    if images.is_empty() {
        findings.extend(daemon::look(socket));
    }
    findings.extend(images.iter().flat_map(|image| image::look(image)));
    for finding in &findings {
        writeln!(stdout(), "{finding}")?;
    }
    let errors = findings
        .iter()
        .filter(|finding| finding.level == Level::Error)
        .count();
    if findings.iter().all(|finding| finding.level == Level::Note) {
        writeln!(stdout(), "no mistake found")?;
    }
    Ok(errors == 0)
}

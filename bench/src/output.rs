//! The files that a report is written to: report.json and report.html.

use std::fs::{self, File};
use std::path::Path;

use anyhow::{Context, Result};

use crate::html;
use crate::report::Report;

const FILES: [&str; 2] = ["report.json", "report.html"];

/// Writes the report's files to `dir`, which is created if needed.
pub(crate) fn write(report: &Report, dir: &Path) -> Result<()> {
    create_dir(dir)?;
    let json = serde_json::to_string_pretty(report)? + "\n";
    for (name, text) in FILES.into_iter().zip([json, html::page(report)]) {
        let path = dir.join(name);
        fs::write(&path, text).with_context(|| format!("--out: write {}", path.display()))?;
    }
    Ok(())
}

/// Creates `dir` and checks that a report can be written there. Files of an earlier report stay as they are.
///
/// # Errors
/// The directory cannot be created, or a file in it cannot be written.
pub(crate) fn check_dir(dir: &Path) -> Result<()> {
    create_dir(dir)?;
    for path in FILES.map(|name| dir.join(name)) {
        let is_new = !path.exists();
        File::options()
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .with_context(|| format!("--out: write {}", path.display()))?;
        if is_new {
            fs::remove_file(&path).with_context(|| format!("--out: remove {}", path.display()))?;
        }
    }
    Ok(())
}

fn create_dir(dir: &Path) -> Result<()> {
    fs::create_dir_all(dir).with_context(|| format!("--out: create the directory {}", dir.display()))
}

//! Finds the daemon that the candidate `ours` runs, and builds it if `cargo run` started this program.

use std::cell::OnceCell;
use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

const NAME: &str = "vhost-user-blk";

/// The daemon's path, looked up on first use.
#[derive(Debug, Default)]
pub(crate) struct Daemon {
    given: Option<PathBuf>,
    found: OnceCell<PathBuf>,
}

impl Daemon {
    pub(crate) fn new(given: Option<&Path>) -> Self {
        Self {
            given: given.map(Path::to_owned),
            found: OnceCell::new(),
        }
    }

    /// Returns the program given with `--binary`, or else the one in the same directory as this program.
    ///
    /// # Errors
    /// There is no such program, or cargo cannot build it.
    pub(crate) fn path(&self) -> Result<&Path> {
        if let Some(path) = self.found.get() {
            return Ok(path);
        }
        let path = self.given.clone().map_or_else(beside_this_program, Ok)?;
        ensure!(
            path.is_file(),
            "{} does not exist: build it with `cargo build --release`, or name another one with --binary",
            path.display()
        );
        Ok(self.found.get_or_init(|| path))
    }
}

fn beside_this_program() -> Result<PathBuf> {
    let path = env::current_exe()
        .context("find this program")?
        .with_file_name(NAME);
    if let Some((cargo, manifest_dir)) = started_by_cargo() {
        build(&path, &cargo, &manifest_dir)?;
    }
    Ok(path)
}

/// Returns cargo's path and this package's directory if `cargo run` started this program.
fn started_by_cargo() -> Option<(PathBuf, PathBuf)> {
    let ours = env::var_os("CARGO_PKG_NAME")? == env!("CARGO_PKG_NAME");
    let variable = |name| Some(PathBuf::from(env::var_os(name)?));
    ours.then(|| Some((variable("CARGO")?, variable("CARGO_MANIFEST_DIR")?)))?
}

/// Builds the daemon with the profile that this program was built with.
///
/// `cargo run` builds this program only: the daemon beside it may be out of date, or missing.
fn build(path: &Path, cargo: &Path, manifest_dir: &Path) -> Result<()> {
    let profile_dir = path.parent().context("find the build directory")?;
    let profile = match profile_dir.file_name().and_then(|name| name.to_str()) {
        Some("debug") | None => "dev",
        Some(name) => name,
    };
    let status = Command::new(cargo)
        .args(["build", "--package", NAME, "--profile", profile])
        .arg("--manifest-path")
        .arg(manifest_dir.join("Cargo.toml"))
        .arg("--target-dir")
        .arg(profile_dir.parent().context("find the target directory")?)
        .stdin(Stdio::null())
        .status()
        .with_context(|| format!("start {}", cargo.display()))?;
    ensure!(
        status.success(),
        "cargo could not build {NAME} ({status}); name another one with --binary"
    );
    Ok(())
}

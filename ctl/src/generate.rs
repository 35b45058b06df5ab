//! `generate`: manual pages and completions, for packages.

use std::path::Path;

use anyhow::Result;

pub(crate) fn run(_directory: &Path) -> Result<()> {
    anyhow::bail!("not built yet")
}

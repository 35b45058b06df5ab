//! The disk images that the backends serve.

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::args::StorageKind;
use crate::scratch::Scratch;
use crate::units::Random;

/// An image, and how the backend is to open it.
#[derive(Clone, Debug)]
pub(crate) struct Image {
    pub(crate) path: PathBuf,
    pub(crate) direct: bool,
}

/// Makes (or finds, from an earlier call) the image for a kind of storage.
///
/// It is filled with random bytes: holes and zeroes would be read faster than data.
pub(crate) fn prepare(kind: StorageKind, size: u64, scratch: &Scratch) -> Result<Image> {
    let (dir, direct) = match kind {
        StorageKind::Tmpfs => (scratch.memory(), false),
        StorageKind::PageCache => (scratch.disk(), false),
        StorageKind::Direct => (scratch.disk(), true),
    };
    let path = dir.join("disk.img");
    if !path.exists() {
        fill(&path, size).with_context(|| format!("make the image {}", path.display()))?;
    }
    Ok(Image { path, direct })
}

fn fill(path: &std::path::Path, size: u64) -> std::io::Result<()> {
    const CHUNK: usize = 1 << 20;
    let mut random = Random::new(size);
    let chunk: Vec<u8> = (0..CHUNK / 8).flat_map(|_| random.next().to_ne_bytes()).collect();
    let mut file = File::create(path)?;
    let mut left = size;
    while left > 0 {
        let len = usize::try_from(left).unwrap_or(CHUNK).min(CHUNK);
        file.write_all(&chunk[..len])?;
        left -= len as u64;
    }
    // O_DIRECT readers must find it on the disk, and write-back must not run during the measurement.
    file.sync_all()
}

//! Creates the disk images that the backends serve.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::args::StorageKind;
use crate::scratch::Scratch;
use crate::units::Random;

/// Minimum size of a disk. The disks of a case share the size given with `--image-size`.
const SMALLEST: u64 = 1 << 20;

/// The image that a backend serves.
#[derive(Clone, Debug)]
pub(crate) enum Image {
    File { path: PathBuf, direct: bool },
    Null { size: u64 },
}

impl Image {
    pub(crate) fn is_direct(&self) -> bool {
        matches!(self, Self::File { direct: true, .. })
    }

    pub(crate) fn is_null(&self) -> bool {
        matches!(self, Self::Null { .. })
    }
}

/// Returns an image per disk on the given kind of storage, and creates those that do not exist yet.
///
/// The images are filled with random bytes: holes and zeroes would be read faster than data.
pub(crate) fn prepare(
    kind: StorageKind,
    (size, fill_size): (u64, u64),
    disks: u16,
    scratch: &Scratch,
) -> Result<Vec<Image>> {
    let disks = u64::from(disks);
    let each = if disks == 1 {
        size
    } else {
        (size / disks / 4096 * 4096).max(SMALLEST)
    };
    let (dir, direct) = match kind {
        StorageKind::Tmpfs => (scratch.memory(), false),
        StorageKind::PageCache => (scratch.disk(), false),
        StorageKind::Direct => (scratch.disk(), true),
        StorageKind::Null => return Ok((0..disks).map(|_| Image::Null { size: each }).collect()),
    };
    let image = |i| {
        let path = dir.join(format!("disk-{each}-{i}.img"));
        if !path.exists() {
            fill(&path, each, fill_size).with_context(|| format!("create the image {}", path.display()))?;
        }
        Ok(Image::File { path, direct })
    };
    (0..disks).map(image).collect()
}

fn fill(path: &Path, size: u64, piece: u64) -> std::io::Result<()> {
    const CHUNK: usize = 1 << 20;
    let mut random = Random::new(size);
    let chunk: Vec<u8> = (0..CHUNK / 8).flat_map(|_| random.next().to_ne_bytes()).collect();
    let piece = usize::try_from(piece).unwrap_or(CHUNK).min(CHUNK);
    let mut file = File::create(path)?;
    let mut left = size;
    while left > 0 {
        let len = usize::try_from(left).unwrap_or(piece).min(piece);
        file.write_all(&chunk[..len])?;
        left -= len as u64;
    }
    // O_DIRECT reads must find the data on the disk, and write-back must not run during the measurement.
    file.sync_all()
}

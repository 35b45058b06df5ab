//! Creates the disk images that the backends serve.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::args::StorageKind;
use crate::scratch::Scratch;
use crate::units::Random;

/// Minimum size of a disk. The disks of a case share the size given with `--image-size`.
const SMALLEST: u64 = 1 << 20;
/// Size of an image that is made for each run. Most writes allocate clusters, and all L2 tables fit in QEMU's cache.
const NEW_SIZE: &str = "128G";

/// The image that a backend serves.
#[derive(Clone, Debug)]
pub(crate) enum Image {
    File {
        path: PathBuf,
        direct: bool,
    },
    Null {
        size: u64,
    },
    /// `raw`: the image with the same data. Without, the image is empty, and made anew for each run.
    Qcow2 {
        path: PathBuf,
        raw: Option<PathBuf>,
    },
}

impl Image {
    pub(crate) fn is_direct(&self) -> bool {
        matches!(self, Self::File { direct: true, .. })
    }

    pub(crate) fn is_null(&self) -> bool {
        matches!(self, Self::Null { .. })
    }

    /// Returns whether this is neither a raw image nor a null disk.
    pub(crate) fn has_format(&self) -> bool {
        matches!(self, Self::Qcow2 { .. })
    }

    /// Makes an image that has to be empty at the start of a run.
    ///
    /// # Errors
    /// qemu-img fails or is missing.
    pub(crate) fn renew(&self) -> Result<()> {
        match self {
            Self::Qcow2 { path, raw: None } => {
                let options = ["create", "-q", "-f", "qcow2", "-o", "cluster_size=64k"];
                qemu_img(&options, &[path], &[NEW_SIZE])
            }
            _ => Ok(()),
        }
    }

    /// Removes what a run has written to an image that had to be empty.
    pub(crate) fn drain(&self) {
        if let Self::Qcow2 { path, raw: None } = self {
            let _ = std::fs::remove_file(path);
        }
    }
}

fn qemu_img(options: &[&str], paths: &[&Path], more: &[&str]) -> Result<()> {
    let status = Command::new("qemu-img")
        .args(options)
        .args(paths)
        .args(more)
        .status();
    let status = status.context("run qemu-img")?;
    ensure!(status.success(), "qemu-img {} failed", options[0]);
    Ok(())
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
        StorageKind::Tmpfs | StorageKind::Qcow2 | StorageKind::Qcow2New => (scratch.memory(), false),
        StorageKind::PageCache => (scratch.disk(), false),
        StorageKind::Direct => (scratch.disk(), true),
        StorageKind::Null => return Ok((0..disks).map(|_| Image::Null { size: each }).collect()),
    };
    let image = |i| {
        if kind == StorageKind::Qcow2New {
            let path = dir.join(format!("new-{i}.qcow2"));
            return Ok(Image::Qcow2 { path, raw: None });
        }
        let path = dir.join(format!("disk-{each}-{i}.img"));
        if !path.exists() {
            fill(&path, each, fill_size).with_context(|| format!("create the image {}", path.display()))?;
        }
        match kind {
            StorageKind::Qcow2 => converted(path),
            _ => Ok(Image::File { path, direct }),
        }
    };
    (0..disks).map(image).collect()
}

/// Makes a qcow2 image of a raw one, unless it exists.
fn converted(raw: PathBuf) -> Result<Image> {
    let path = raw.with_extension("qcow2");
    if !path.exists() {
        let options = [
            "convert",
            "-q",
            "-f",
            "raw",
            "-O",
            "qcow2",
            "-o",
            "cluster_size=64k",
        ];
        qemu_img(&options, &[&raw, &path], &[])?;
    }
    Ok(Image::Qcow2 { path, raw: Some(raw) })
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

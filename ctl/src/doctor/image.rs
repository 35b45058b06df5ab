//! An image that is not served yet.

use std::fs::{self, File};
use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use super::finding::Finding;
use crate::qcow2::{Header, MAGIC, path_of};

/// First bytes of formats that are not served.
const FORMATS: [(&[u8], &str); 4] = [
    (b"QED\0", "QED"),
    (b"KDMV", "VMDK"),
    (b"vhdxfile", "VHDX"),
    (b"conectix", "VHD"),
];

pub(super) fn look(path: &Path) -> Vec<Finding> {
    let shown = path.display().to_string();
    let meta = match fs::metadata(path) {
        Ok(meta) => meta,
        Err(error) => {
            let what = format!("{shown} cannot be used: {error}");
            let cure = format!(
                "make an image: truncate -s 10G {shown}, or qemu-img create -f qcow2 {shown} 10G for --format qcow2"
            );
            return vec![Finding::error(what, cure)];
        }
    };
    let kind = meta.file_type();
    if !kind.is_file() && !kind.is_block_device() {
        let what = format!("{shown} is neither a file nor a block device");
        return vec![Finding::error(what, "name a raw image or a block device")];
    }
    let mut findings = contents(path, &meta, &shown);
    findings.extend(locked(path, &shown));
    findings.extend(volatile(path, &shown));
    findings
}

/// Looks at the format, and at the size of a raw image. The length of an image in another format says nothing about its
/// disk.
fn contents(path: &Path, meta: &fs::Metadata, shown: &str) -> Vec<Finding> {
    let start = start(path).unwrap_or_default();
    if start.starts_with(MAGIC) {
        return qcow2(path, shown);
    }
    let format = format(&start, shown);
    format.or_else(|| size(meta, shown)).into_iter().collect()
}

fn start(path: &Path) -> std::io::Result<[u8; 8]> {
    let mut start = [0; 8];
    File::open(path)?.read_exact(&mut start)?;
    Ok(start)
}

fn size(meta: &fs::Metadata, shown: &str) -> Option<Finding> {
    let odd = meta.is_file() && (meta.len() == 0 || !meta.len().is_multiple_of(512));
    odd.then(|| {
        let whole = meta.len().div_ceil(512).max(1) * 512;
        Finding::error(
            format!(
                "{shown} is {} bytes long, which is not a multiple of 512",
                meta.len()
            ),
            format!("if nothing is missing at its end, make it longer: truncate -s {whole} {shown}"),
        )
    })
}

fn format(start: &[u8], shown: &str) -> Option<Finding> {
    let (_, name) = FORMATS.iter().find(|(magic, _)| start.starts_with(magic))?;
    Some(Finding::error(
        format!("{shown} looks like {name}, which is not served"),
        format!("convert it: qemu-img convert -O raw {shown} {shown}.raw"),
    ))
}

/// Looks at a qcow2 image, which is no mistake in itself.
fn qcow2(path: &Path, shown: &str) -> Vec<Finding> {
    let header = match Header::read(path) {
        Ok(header) => header,
        Err(error) => {
            return vec![Finding::error(
                format!("{shown} begins like qcow2, but {error:#}"),
                "restore it; or serve it with --format raw if it is a raw disk whose guest has written that",
            )];
        }
    };
    let mut findings = vec![Finding::note(
        format!("{shown} is a qcow2 image"),
        "serve the disk inside with --format qcow2",
    )];
    let refused = [
        (header.encrypted, "is encrypted", "decrypt it: qemu-img convert"),
        (
            header.unknown_features,
            "has features that are not known here",
            "convert it: qemu-img convert",
        ),
        (
            header.corrupt,
            "is marked as corrupt, and can only be read",
            "repair it: qemu-img check -r all",
        ),
    ];
    let refused = refused.into_iter().filter(|(is, ..)| *is);
    findings.extend(refused.map(|(_, what, cure)| Finding::error(format!("{shown} {what}"), cure)));
    if let Some(name) = &header.backing
        && header.backing_format.is_none()
    {
        findings.push(Finding::error(
            format!(
                "{shown} does not tell the format of its backing file '{name}', and formats are never guessed"
            ),
            format!("write it into the image: qemu-img rebase -u -F FORMAT -b {name} {shown}"),
        ));
    }
    for name in header.backing.iter().chain(&header.data_file) {
        findings.push(named(path, shown, name));
    }
    findings
}

/// Looks at a file that an image names.
fn named(image: &Path, shown: &str, name: &str) -> Finding {
    match path_of(image, name) {
        Err(error) => Finding::error(
            format!("{error:#}"),
            "make a node of that disk, and name it (backing=NODE)",
        ),
        Ok(path) => match fs::metadata(&path) {
            Err(error) => Finding::error(
                format!("{shown} names {}, which cannot be used: {error}", path.display()),
                "put that file back, or change the name with qemu-img rebase -u",
            ),
            Ok(_) => Finding::note(
                format!("{shown} names {}", path.display()),
                "add --follow-names if you trust the image: without it, no file that an image names is opened",
            ),
        },
    }
}

/// Looks for locks that QEMU and the daemon take on an image that they write: one on the byte that says so, and one on the
/// byte that keeps other writers away.
fn locked(path: &Path, shown: &str) -> Option<Finding> {
    const WRITES: libc::off_t = 101;
    const KEEPS_WRITERS_AWAY: libc::off_t = 201;
    let file = File::open(path).ok()?;
    let held = [WRITES, KEEPS_WRITERS_AWAY]
        .into_iter()
        .any(|byte| is_locked(&file, byte));
    held.then(|| {
        Finding::error(
            format!("{shown} is in use by another process: a daemon or a QEMU has locked it"),
            format!("find that process (lsof {shown}) and end it, or serve the image read-only in both"),
        )
    })
}

/// Returns whether another open file has a lock on this byte.
#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    reason = "constants of the C library that are small"
)]
fn is_locked(file: &File, byte: libc::off_t) -> bool {
    let mut lock = libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: byte,
        l_len: 1,
        l_pid: 0,
    };
    // SAFETY: the kernel only writes to `lock`.
    let asked = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_GETLK, &mut lock) };
    asked == 0 && lock.l_type != libc::F_UNLCK as libc::c_short
}

fn volatile(path: &Path, shown: &str) -> Option<Finding> {
    const TMPFS_MAGIC: i64 = 0x0102_1994;
    let is_tmpfs = rustix::fs::statfs(path).is_ok_and(|stat| stat.f_type == TMPFS_MAGIC);
    is_tmpfs.then(|| {
        Finding::warning(
            format!("{shown} is on a tmpfs: it is gone after a reboot"),
            "move it to a file system on a disk",
        )
    })
}

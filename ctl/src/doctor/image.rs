//! An image that is not served yet.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use super::finding::Finding;
use super::format;
use crate::qcow2::{Header, path_of};

pub(super) fn look(path: &Path) -> Vec<Finding> {
    let shown = path.display().to_string();
    let meta = match fs::metadata(path) {
        Ok(meta) => meta,
        Err(error) => return vec![unusable(&shown, &error)],
    };
    let kind = meta.file_type();
    if !kind.is_file() && !kind.is_block_device() {
        let what = format!("{shown} is neither a file nor a block device");
        return vec![Finding::error(what, "name a raw image or a block device")];
    }
    let format = match File::open(path).and_then(|image| format::of(&image)) {
        Ok(format) => format,
        Err(error) => return vec![unusable(&shown, &error)],
    };
    // The length of an image in another format says nothing about its disk.
    let mut findings = match format {
        Some(format::QCOW2) => qcow2(path, &shown),
        Some(name) => vec![foreign(&shown, name)],
        None => size(&meta, &shown).into_iter().collect(),
    };
    findings.extend(locked(path, &shown));
    findings.extend(volatile(path, &shown));
    findings
}

fn unusable(shown: &str, error: &io::Error) -> Finding {
    let cure = match error.kind() {
        ErrorKind::NotFound => format!(
            "make an image: truncate -s 10G {shown}, or qemu-img create -f qcow2 {shown} 10G for --format qcow2"
        ),
        ErrorKind::PermissionDenied => {
            "run this as root; the daemon's user and group need the right to read and write the image"
                .to_owned()
        }
        ErrorKind::NotADirectory => "name a raw image or a block device".to_owned(),
        _ => "look at the kernel's log (dmesg) for the storage below".to_owned(),
    };
    Finding::error(format!("{shown} cannot be used: {error}"), cure)
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

fn foreign(shown: &str, format: &str) -> Finding {
    Finding::error(
        format!("{shown} looks like {format}, which is not served"),
        format!(
            "convert it: qemu-img convert -O raw {shown} {shown}.raw; or serve it with --format raw if it is a raw disk whose \
             guest has written that"
        ),
    )
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

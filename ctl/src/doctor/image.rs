//! An image that is not served yet.

use std::fs::{self, File};
use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use super::finding::Finding;

/// First bytes of formats that are not raw.
const FORMATS: [(&[u8], &str); 5] = [
    (b"QFI\xfb", "qcow2"),
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
            return vec![Finding::error(
                what,
                format!("make an image: truncate -s 10G {shown}"),
            )];
        }
    };
    let kind = meta.file_type();
    if !kind.is_file() && !kind.is_block_device() {
        let what = format!("{shown} is neither a file nor a block device");
        return vec![Finding::error(what, "name a raw image or a block device")];
    }
    let format = format(path, &shown);
    // The length of an image in another format says nothing about its disk.
    let size = format.is_none().then(|| size(&meta, &shown)).flatten();
    let checks = [size, format, locked(path, &shown), volatile(path, &shown)];
    checks.into_iter().flatten().collect()
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

fn format(path: &Path, shown: &str) -> Option<Finding> {
    let mut start = [0; 8];
    File::open(path).ok()?.read_exact(&mut start).ok()?;
    let (_, name) = FORMATS.iter().find(|(magic, _)| start.starts_with(magic))?;
    let convert = format!("convert it: qemu-img convert -O raw {shown} {shown}.raw");
    Some(match *name {
        "qcow2" => Finding::error(
            format!("{shown} looks like qcow2, and is not served as a raw image"),
            format!("serve the disk inside with --format qcow2, or {convert}"),
        ),
        name => Finding::error(format!("{shown} looks like {name}, which is not served"), convert),
    })
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

//! A disk that is served: its figures, its image, its frontend.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::finding::Finding;
use super::qemu;
use crate::snapshot::Disk;

/// Looks at a disk of the daemon with this process.
pub(super) fn look(disk: &Disk, daemon: Option<u32>) -> Vec<Finding> {
    let checks = [broken, full, failing, ignored, late, limited, inactive];
    let mut findings: Vec<Finding> = checks.into_iter().filter_map(|check| check(disk)).collect();
    findings.extend(daemon.and_then(|daemon| file(disk, daemon)));
    let frontend = disk.export.frontend.as_ref().and_then(|frontend| frontend.pid);
    findings.extend(
        frontend
            .into_iter()
            .flat_map(|pid| qemu::look(&disk.id, &disk.export.socket, pid)),
    );
    findings
}

fn broken(disk: &Disk) -> Option<Finding> {
    let is_broken = |ring: &Option<String>| ring.as_deref() == Some("broken");
    let queues = disk.export.queues.iter().enumerate();
    let queues: Vec<String> = queues
        .filter(|(_, queue)| is_broken(&queue.ring))
        .map(|(index, _)| index.to_string())
        .collect();
    (!queues.is_empty()).then(|| {
        Finding::error(
            format!(
                "disk {}: the driver has left queue {} inconsistent",
                disk.id,
                queues.join(", ")
            ),
            "reset the guest; the daemon's log has the reason",
        )
    })
}

fn full(disk: &Disk) -> Option<Finding> {
    let held = disk.export.total.held;
    (held > 0).then(|| {
        Finding::error(
            format!(
                "disk {}: {held} requests wait for room on {}",
                disk.id,
                disk.image()
            ),
            "make room on that file system; the requests then go on by themselves",
        )
    })
}

fn failing(disk: &Disk) -> Option<Finding> {
    let errors = disk.export.total.errors;
    (errors > 0).then(|| {
        Finding::warning(
            format!("disk {}: {errors} requests have failed", disk.id),
            "look at the daemon's log, and at the kernel's (dmesg) for the storage below the image",
        )
    })
}

fn ignored(disk: &Disk) -> Option<Finding> {
    let ignored = disk.export.total.ignored;
    (ignored > 0).then(|| {
        Finding::error(
            format!(
                "disk {}: {ignored} requests have failed, and the guest was told that they succeeded",
                disk.id
            ),
            "check the guest's file systems, and do not use rerror=ignore or werror=ignore",
        )
    })
}

fn late(disk: &Disk) -> Option<Finding> {
    let late = disk.export.total.late;
    (late > 0).then(|| {
        Finding::warning(
            format!(
                "disk {}: {late} requests took longer than the io-timeout",
                disk.id
            ),
            "look at the load and the health of the storage (iostat -x, smartctl)",
        )
    })
}

fn limited(disk: &Disk) -> Option<Finding> {
    let waiting = disk.export.total.throttled;
    (waiting > 0).then(|| {
        Finding::warning(
            format!("disk {}: {waiting} requests wait for their throttle group", disk.id),
            format!(
                "if that is too slow, raise the limits ({} requests/s and {} bytes/s now, 0 is none): vhost-user-blkctl throttle",
                disk.node.iops, disk.node.bps
            ),
        )
    })
}

fn inactive(disk: &Disk) -> Option<Finding> {
    let idle = !disk.node.active && disk.export.frontend.is_some();
    idle.then(|| {
        Finding::warning(
            format!(
                "disk {}: a frontend is connected, but the image is inactive and writes fail",
                disk.id
            ),
            "unless a migration is under way: blockdev-set-active over QMP",
        )
    })
}

/// Looks whether the image still has the name by which it was opened.
fn file(disk: &Disk, daemon: u32) -> Option<Finding> {
    let image = disk.image();
    // A relative name is relative to the daemon's directory.
    let directory = fs::read_link(format!("/proc/{daemon}/cwd")).ok()?;
    let path = directory.join(Path::new(&image));
    let opened = fs::read_dir(format!("/proc/{daemon}/fd")).ok()?.flatten();
    let opened: Vec<fs::Metadata> = opened.filter_map(|fd| fs::metadata(fd.path()).ok()).collect();
    let named = fs::metadata(&path).ok();
    let is_open = |named: &fs::Metadata| {
        opened
            .iter()
            .any(|file| (file.dev(), file.ino()) == (named.dev(), named.ino()))
    };
    if !matches!(
        disk.node.drv.as_str(),
        "file" | "host_device" | "throttle" | "raw"
    ) || image.starts_with("/dev/fdset/")
    {
        return None;
    }
    match named {
        Some(named) if is_open(&named) => None,
        Some(_) => Some(Finding::error(
            format!(
                "disk {}: {} is another file than the one that is served",
                disk.id,
                path.display()
            ),
            "the guest still writes to the old one, which is lost when the daemon ends: copy the data from inside the guest",
        )),
        None => Some(Finding::error(
            format!(
                "disk {}: {} has been deleted while it is served",
                disk.id,
                path.display()
            ),
            format!("copy it back from /proc/{daemon}/fd before the daemon ends, with the guest shut down"),
        )),
    }
}

//! Loop devices as block devices. The tests need root and the loop driver. Without them, they report that they are
//! skipped.

use std::fs::File;
use std::path::PathBuf;
use std::process::Command;

use vhost_user_blk::storage::{ImageLock, OpenOptions, RawFile};

use crate::model;
use crate::support::{Buffers, Image, On, message, options, read, refusal, write};
use testkit::skip::skipped;

const MIB: u64 = 1 << 20;

/// A loop device over a file. It is detached when the last user closes it, even if the test is killed.
struct LoopDevice {
    path: PathBuf,
    /// Keeps the device attached: the kernel detaches it on the last close.
    _file: File,
}

impl LoopDevice {
    fn over(image: &Image, args: &[&str]) -> Option<Self> {
        let mut losetup = Command::new("losetup");
        let losetup = losetup.args(["--find", "--show"]).args(args).arg(&image.path);
        let out = match losetup.output() {
            Ok(out) if out.status.success() => out,
            Ok(out) => {
                skipped(String::from_utf8_lossy(&out.stderr).trim());
                return None;
            }
            Err(e) => {
                skipped(format_args!("losetup: {e}"));
                return None;
            }
        };
        let path = PathBuf::from(String::from_utf8(out.stdout).unwrap().trim());
        let file = File::open(&path);
        let detached = Command::new("losetup")
            .arg("--detach")
            .arg(&path)
            .status()
            .unwrap();
        assert!(detached.success());
        Some(Self {
            _file: file.unwrap(),
            path,
        })
    }

    fn open(&self, direct: bool) -> RawFile {
        let options = OpenOptions {
            direct,
            ..options(&self.path)
        };
        RawFile::open(&options).unwrap_or_else(|e| panic!("{}", message(&e)))
    }
}

#[test]
fn a_block_device_tells_its_size_and_blocks() {
    let image = Image::new(On::Disk, MIB);
    let Some(device) = LoopDevice::over(&image, &[]) else {
        return;
    };
    for direct in [false, true] {
        let storage = device.open(direct);
        assert_eq!(storage.size(), MIB);
        let limits = *storage.limits();
        assert_eq!(limits.logical_block_size, 512);
        assert_eq!(limits.request_alignment, if direct { 512 } else { 1 });
        assert!(limits.physical_block_size >= 512 && limits.discard_granularity >= 512);
        assert!(limits.write_zeroes && !limits.read_only);
    }
}

#[test]
fn blocks_are_never_smaller_than_the_devices_own() {
    let image = Image::new(On::Disk, MIB);
    let Some(device) = LoopDevice::over(&image, &["--sector-size", "4096"]) else {
        return;
    };
    for direct in [false, true] {
        let limits = *device.open(direct).limits();
        assert_eq!(limits.logical_block_size, 4096);
        assert_eq!(limits.request_alignment, if direct { 4096 } else { 1 });
        let text = refusal(&OpenOptions {
            direct,
            logical_block_size: Some(512),
            ..options(&device.path)
        });
        assert!(text.contains("too small") && text.contains("4096"), "{text}");
    }
}

#[test]
fn a_device_with_a_partial_block_is_refused() {
    let image = Image::new(On::Disk, 5 * 512);
    let Some(device) = LoopDevice::over(&image, &[]) else {
        return;
    };
    let text = refusal(&OpenOptions {
        logical_block_size: Some(1024),
        ..options(&device.path)
    });
    assert!(
        text.contains("2560 bytes") && text.contains("logical block size, 1024 bytes"),
        "{text}"
    );
}

#[test]
fn write_protected_devices_are_refused_with_the_reason() {
    let image = Image::filled(On::Disk, MIB, 7);
    let Some(device) = LoopDevice::over(&image, &["--read-only"]) else {
        return;
    };
    let text = refusal(&options(&device.path));
    assert!(
        text.contains(device.path.to_str().unwrap()) && text.contains("for writing"),
        "{text}"
    );
    let read_only = true;
    let storage = RawFile::open(&OpenOptions {
        read_only,
        ..options(&device.path)
    })
    .unwrap();
    assert_eq!(read(&storage, 0, 512).unwrap(), [7; 512]);
    assert_eq!(
        write(&storage, 0, &[0; 512]).unwrap_err().raw_os_error(),
        Some(libc::EROFS)
    );
}

fn behaves_like_a_vec(args: &[&str], direct: bool) {
    let image = Image::new(On::Disk, model::SIZE);
    let Some(device) = LoopDevice::over(&image, args) else {
        return;
    };
    let storage = device.open(direct);
    // Guests send multiples of 512 even where blocks are larger.
    let unit = u64::from(storage.limits().request_alignment.max(512));
    model::runner(32)
        .run(&model::ops(), |ops| model::check(&storage, &ops, unit, false))
        .unwrap();
}

#[test]
fn a_block_device_matches_a_vec() {
    behaves_like_a_vec(&[], false);
    behaves_like_a_vec(&["--sector-size", "4096"], false);
}

#[test]
fn block_devices_with_o_direct_match_a_vec() {
    behaves_like_a_vec(&[], true);
    behaves_like_a_vec(&["--sector-size", "4096"], true);
}

#[test]
fn discards_and_zeroes_reach_the_backing_file() {
    for direct in [false, true] {
        let image = Image::filled(On::Disk, 4 * MIB, 7);
        let Some(device) = LoopDevice::over(&image, &[]) else {
            return;
        };
        let storage = device.open(direct);
        // The device's page cache now has the data, so a stale copy could remain there.
        read(&storage, 0, 4 << 20).unwrap();
        let full = image.allocated();
        storage.discard(0, MIB).unwrap();
        storage.flush().unwrap();
        assert!(
            image.allocated() <= full - MIB / 2,
            "{} of {full}",
            image.allocated()
        );
        storage.write_zeroes(2 * MIB, MIB, true).unwrap();
        storage.flush().unwrap();
        assert!(
            image.allocated() <= full - MIB - MIB / 2,
            "{} of {full}",
            image.allocated()
        );
        storage.write_zeroes(3 * MIB, MIB, false).unwrap();
        assert_eq!(read(&storage, MIB, 1 << 20).unwrap(), vec![7; 1 << 20]);
        assert_eq!(read(&storage, 2 * MIB, 2 << 20).unwrap(), vec![0; 2 << 20]);
    }
}

#[test]
fn a_block_device_can_be_locked() {
    let image = Image::new(On::Disk, MIB);
    let Some(device) = LoopDevice::over(&image, &[]) else {
        return;
    };
    let (first, second) = (device.open(false), device.open(false));
    let lock = ImageLock::acquire(&first).unwrap();
    assert!(lock.is_held());
    let error = ImageLock::acquire(&second).unwrap_err();
    assert!(
        error.to_string().contains(device.path.to_str().unwrap()),
        "{error}"
    );
    drop(lock);
    ImageLock::acquire(&second).unwrap();
}

/// Returns the number of flushes that have reached the device, from `/sys/block/loopN/stat`.
fn flushes(device: &LoopDevice) -> u64 {
    let name = device.path.file_name().unwrap().to_str().unwrap();
    let stat = std::fs::read_to_string(format!("/sys/block/{name}/stat")).unwrap();
    stat.split_whitespace().nth(15).unwrap().parse().unwrap()
}

#[test]
fn only_durable_writes_and_flushes_flush_the_device() {
    let image = Image::new(On::Disk, MIB);
    let Some(device) = LoopDevice::over(&image, &[]) else {
        return;
    };
    for direct in [true, false] {
        let storage = device.open(direct);
        let mut flushed = flushes(&device);
        let mut more = |what: &str, wanted: bool| {
            let now = flushes(&device);
            assert_eq!(now > flushed, wanted, "{what}, direct: {direct}");
            flushed = now;
        };
        write(&storage, 0, &[1; 4096]).unwrap();
        more("a write", false);
        storage
            .writev_durable(&Buffers::with(&[2; 4096]).iov(), 0)
            .unwrap();
        more("a durable write", true);
        write(&storage, 0, &[3; 4096]).unwrap();
        more("another write", false);
        storage.flush().unwrap();
        more("a flush", true);
    }
}

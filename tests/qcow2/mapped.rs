//! Images in memory, whose clusters are read and written in a mapping of the file.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::SystemTime;

use rustix::fs::{FallocateFlags, fallocate};
use testkit::frontend::{Frontend, Op, Queue};
use testkit::full::SmallDisk;

use super::support::{
    check_clean, create, directory_in_memory, expected, l2_table, place, qemu_io, serve_writable, word,
};

const MIB: u64 = 1 << 20;
const CLUSTER: u64 = 64 << 10;

fn write(queue: &mut Queue, offset: u64, data: &[u8]) -> i32 {
    let data = data.to_vec();
    queue.run(&Op::Write { offset, data }).ret
}

fn read(queue: &mut Queue, offset: u64, len: usize) -> Vec<u8> {
    let done = queue.run(&Op::Read { offset, len });
    assert_eq!(done.ret, 0, "read at {offset}");
    done.data
}

fn open(image: &Path) -> File {
    OpenOptions::new()
        .read(true)
        .write(true)
        .open(image)
        .expect("open the image")
}

/// Returns the offset of a cluster's data in an image.
fn cluster(image: &Path, offset: u64) -> u64 {
    let bytes = std::fs::read(image).expect("read the image");
    let number = usize::try_from(offset / CLUSTER).expect("small");
    place(word(&bytes, l2_table(&bytes) + number * 8)) as u64
}

/// Writes to a place again and again. Returns whether a write has left the time stamp of `file` alone, which those with
/// system calls change. At first, writes may be executed by workers, because the last ones had to wait.
fn is_written_in_mapping(queue: &mut Queue, file: &Path, offset: u64, data: &[u8]) -> bool {
    let file = open(file);
    (0..200).any(|_| {
        file.set_modified(SystemTime::UNIX_EPOCH).expect("set the time");
        assert_eq!(write(queue, offset, data), 0);
        file.metadata().expect("look").modified().expect("a time") == SystemTime::UNIX_EPOCH
    })
}

#[test]
fn allocated_clusters_are_written_without_system_calls() {
    let Some(dir) = directory_in_memory() else { return };
    let dir = dir.path();
    for (options, more) in [
        ("cluster_size=64k", &[][..]),
        ("extended_l2=on", &[]),
        ("data_file=data", &["--follow-names"]),
    ] {
        create(dir, options, &["image", "64M"]);
        let data = dir.join(if more.is_empty() { "image" } else { "data" });
        let (mut daemon, mut frontend) = serve_writable(dir, "image", more);
        let queue = frontend.queue(0);
        // The image grows far past what is mapped at first.
        for at in (0..64 * MIB).step_by(64 << 10) {
            assert_eq!(write(queue, at, &[1; 64 << 10]), 0);
        }
        for at in [0, 17 * MIB + 4096, 63 * MIB] {
            assert!(
                is_written_in_mapping(queue, &data, at, &[2; 8192]),
                "{options}: {at}"
            );
            assert_eq!(write(queue, at, &[3; 4096]), 0);
            assert_eq!(read(queue, at, 8192), [[3; 4096], [2; 4096]].concat());
        }
        drop(frontend);
        assert!(daemon.terminate().status.success());
        check_clean(dir, "image");
        let content = expected(dir, "image");
        for (number, block) in content.chunks(4096).enumerate() {
            let byte = match number * 4096 {
                0 | 0x0110_1000 | 0x03f0_0000 => 3,
                0x1000 | 0x0110_2000 | 0x03f0_1000 => 2,
                _ => 1,
            };
            assert!(
                block.iter().all(|found| *found == byte),
                "{options}: block {number}"
            );
        }
    }
}

#[test]
fn mappings_can_be_turned_off() {
    let Some(dir) = directory_in_memory() else { return };
    let dir = dir.path();
    create(dir, "", &["image", "4M"]);
    qemu_io(dir, "image", &["write -P 1 0 4M"]);
    let (_daemon, mut frontend) = serve_writable(dir, "image", &["--mmap", "off"]);
    let queue = frontend.queue(0);
    assert!(!is_written_in_mapping(
        queue,
        &dir.join("image"),
        4096,
        &[2; 4096]
    ));
}

#[test]
fn a_truncated_image_loses_only_what_was_cut_off() {
    let Some(dir) = directory_in_memory() else { return };
    let dir = dir.path();
    create(dir, "", &["image", "4M"]);
    qemu_io(dir, "image", &["write -P 1 0 4M"]);
    let (_daemon, mut frontend) = serve_writable(dir, "image", &[]);
    let queue = frontend.queue(0);
    let all = |queue: &mut Queue| -> Vec<u8> {
        (0..4 * MIB)
            .step_by(64 << 10)
            .flat_map(|at| read(queue, at, 64 << 10))
            .collect()
    };
    for _ in 0..2 {
        assert!(all(queue) == [1; 4 << 20]);
    }
    // In the middle of a block of the guest.
    let end = cluster(&dir.join("image"), 2 * MIB) + 1000;
    open(&dir.join("image")).set_len(end).expect("cut");
    // What is past the end of an image reads as zeroes, as in QEMU.
    let mut model = vec![1; 4 << 20];
    model[(2 << 20) + 1000..].fill(0);
    for _ in 0..2 {
        assert!(all(queue) == model);
    }
    for at in [2 * MIB, 3 * MIB, 4 * MIB - 4096] {
        assert_eq!(write(queue, at, &[3; 4096]), 0);
        let start = usize::try_from(at).expect("small");
        model[start..start + 4096].fill(3);
    }
    for _ in 0..2 {
        assert!(all(queue) == model);
    }
}

/// Makes an image whose clusters are all allocated on a small file system, and serves it.
fn serve_small(disk: &SmallDisk) -> (testkit::daemon::Daemon, Frontend) {
    let image = disk.image();
    let (dir, name) = (image.parent().expect("a directory"), image.file_name());
    let name = name.and_then(|name| name.to_str()).expect("UTF-8");
    create(dir, "", &[name, "1M"]);
    qemu_io(dir, name, &["write -P 1 0 1M"]);
    serve_writable(dir, name, &["--werror", "report"])
}

#[test]
fn a_full_tmpfs_fails_writes_to_holes_in_clusters() {
    if directory_in_memory().is_none() {
        return;
    }
    let Some(disk) = SmallDisk::mount(4 << 20) else {
        return;
    };
    let (_daemon, mut frontend) = serve_small(&disk);
    let queue = frontend.queue(0);
    assert!(is_written_in_mapping(queue, &disk.image(), 8192, &[7; 8192]));
    // The daemon does not learn that these blocks are gone.
    let image = open(&disk.image());
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    let hole = cluster(&disk.image(), 0) + 8192;
    fallocate(&image, punch, hole, 8192).expect("punch a hole");
    let mut filler = File::create(disk.image().with_file_name("other")).expect("create a file");
    while filler.write_all(&[1; 4096]).is_ok() {}
    assert_ne!(write(queue, 8192, &[8; 4096]), 0);
    assert_eq!(write(queue, 32_768, &[8; 4096]), 0, "this block exists");
    assert_eq!(read(queue, 32_768, 4096), [8; 4096]);
    assert_eq!(read(queue, 8192, 4096), [0; 4096]);
    let mut found = [0; 4096];
    image.read_exact_at(&mut found, hole + 24_576).expect("read");
    assert_eq!(found, [8; 4096]);
}

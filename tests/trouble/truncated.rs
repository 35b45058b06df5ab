//! An image that is truncated while it is served.

use std::fs::{File, OpenOptions};
use std::io::Write;

use rustix::fs::{FallocateFlags, fallocate};
use tempfile::TempDir;

use crate::{EIO, connect, engines, read, said, write};
use testkit::daemon::{Daemon, IMAGE};
use testkit::frontend::{Op, Queue};
use testkit::full::SmallDisk;

const MIB: usize = 1 << 20;
/// The new size, in the middle of a block.
const END: usize = MIB / 2 + 1000;

fn pattern(offset: usize, len: usize) -> Vec<u8> {
    (offset..offset + len)
        .map(|n| (n / 512 % 255).to_le_bytes()[0] + 1)
        .collect()
}

fn cut(path: &std::path::Path, len: usize) {
    let image = OpenOptions::new().write(true).open(path).expect("open the image");
    image.set_len(len as u64).expect("cut the image");
}

/// Serves an image of 1 MiB that is in the page cache, and truncates it.
fn cut_short(options: &[&str]) -> Daemon {
    let daemon = Daemon::start(&pattern(0, MIB), options);
    let mut frontend = connect(&daemon, 1);
    let done = frontend.queue(0).run(&read(MIB - 4096, 4096));
    assert!(done.data == pattern(MIB - 4096, 4096));
    cut(&daemon.image_path(), END);
    daemon
}

/// Returns the engines that work where these tests keep their images.
fn all_engines() -> Vec<&'static [&'static str]> {
    let image = tempfile::NamedTempFile::new().expect("make a file");
    image.as_file().set_len(4096).expect("size it");
    engines(image.path())
}

/// Ranges, and whether all of their data still exists.
const PLACES: [(usize, usize, bool); 6] = [
    (0, 65_536, true),
    (END - 1000 - 4096, 4096, true),
    (END - 1000, 512, true),
    (END - 1000, 4096, false),
    (END - 1000 - 61_440, 65_536, false),
    (MIB - 4096, 4096, false),
];

#[test]
fn a_read_fails_exactly_where_data_is_missing() {
    for options in all_engines() {
        let daemon = cut_short(options);
        let mut frontend = connect(&daemon, 1);
        for (offset, len, there) in PLACES {
            let done = frontend.queue(0).run(&read(offset, len));
            assert_eq!(
                done.ret,
                if there { 0 } else { EIO },
                "{options:?}: {offset}+{len}"
            );
            assert!(
                !there || done.data == pattern(offset, len),
                "{options:?}: {offset}"
            );
        }
        assert!(
            daemon.output().contains("image ends there"),
            "{}",
            daemon.output()
        );
    }
}

#[test]
fn ignored_read_errors_zero_only_missing_data() {
    for options in all_engines() {
        let mut daemon = cut_short(&[options, &["--rerror", "ignore"]].concat());
        let mut frontend = connect(&daemon, 1);
        for (offset, len, _) in PLACES {
            let done = frontend.queue(0).run(&read(offset, len));
            assert_eq!(done.ret, 0, "{options:?}: {offset}");
            let mut expected = pattern(offset, len);
            let left = END.saturating_sub(offset).min(len);
            expected[left..].fill(0);
            assert!(done.data == expected, "{options:?}: {offset}+{len}");
        }
        let ignored = PLACES.iter().filter(|place| !place.2).count();
        assert_eq!(daemon.count("total", "ignored"), ignored as u64);
        assert_eq!(said(&daemon, "ignored: the guest is told that all is well"), 1);
    }
}

/// Runs `op`, which extends the image to `end` again.
fn extends(queue: &mut Queue, daemon: &Daemon, op: &Op, end: usize) {
    assert_eq!(queue.run(op).ret, 0, "{op:?}");
    let now = daemon.image_path().metadata().expect("look at the image").len();
    assert_eq!(now, end as u64, "{op:?}");
}

#[test]
fn writes_and_zeroes_extend_the_image_again() {
    for options in all_engines() {
        let daemon = cut_short(options);
        let mut frontend = connect(&daemon, 1);
        let queue = frontend.queue(0);
        let (first, zeroes, unmapped) = (768 << 10, 832 << 10, 896 << 10);
        extends(queue, &daemon, &write(first, &[7; 4096]), first + 4096);
        for (offset, unmap) in [(zeroes, false), (unmapped, true)] {
            let op = Op::WriteZeroes {
                offset: offset as u64,
                len: 8192,
                unmap,
            };
            extends(queue, &daemon, &op, offset + 8192);
            assert_eq!(queue.run(&read(offset, 8192)).data, [0; 8192], "{options:?}");
        }
        assert_eq!(queue.run(&read(first, 4096)).data, [7; 4096], "{options:?}");
        assert_eq!(queue.run(&read(MIB - 4096, 4096)).ret, EIO, "{options:?}");
        assert_eq!(queue.run(&Op::Flush).ret, 0);
        let discard = Op::Discard {
            offset: (MIB - 65_536) as u64,
            len: 65_536,
        };
        assert_eq!(queue.run(&discard).ret, 0);
    }
}

#[test]
fn a_truncated_tmpfs_image_behaves_the_same() {
    // Without polling, a visit finds both requests of `run_beside`. A lone one is not copied from the mapping.
    for options in [&["--poll-max-ns", "0"][..], &["--mmap", "off"]] {
        let dir = TempDir::new_in("/dev/shm").expect("make a directory");
        std::fs::write(dir.path().join(IMAGE), pattern(0, MIB)).expect("write the image");
        let daemon = Daemon::start_in(dir, options);
        let mut frontend = connect(&daemon, 2);
        let queue = frontend.queue(0);
        // The second time, a mapped image is copied from.
        for _ in 0..2 {
            for offset in (0..MIB).step_by(65_536) {
                let done = queue.run_beside(&read(offset, 65_536));
                assert!(done.data == pattern(offset, 65_536), "{offset}");
            }
        }
        cut(&daemon.image_path(), END);
        for (offset, len, there) in PLACES {
            let done = queue.run_beside(&read(offset, len));
            assert_eq!(
                done.ret,
                if there { 0 } else { EIO },
                "{options:?}: {offset}+{len}"
            );
        }
        let first = 768 << 10;
        extends(queue, &daemon, &write(first, &[7; 4096]), first + 4096);
        assert_eq!(queue.run_beside(&read(first, 4096)).data, [7; 4096]);
        assert!(queue.run_beside(&read(first - 4096, 4096)).data == [0; 4096]);
    }
}

#[test]
fn a_full_tmpfs_fails_writes_to_holes_of_a_mapped_image() {
    let Some(disk) = SmallDisk::mount(4 << 20) else {
        return;
    };
    std::fs::write(disk.image(), pattern(0, MIB)).expect("write the image");
    let daemon = disk.daemon(&["--werror", "report", "--poll-max-ns", "0"]);
    let mut frontend = connect(&daemon, 2);
    let queue = frontend.queue(0);
    for _ in 0..3 {
        assert_eq!(queue.run_beside(&write(8192, &[7; 8192])).ret, 0);
    }
    // The daemon does not learn that these blocks are gone.
    let image = OpenOptions::new()
        .write(true)
        .open(disk.image())
        .expect("open the image");
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    fallocate(&image, punch, 8192, 8192).expect("punch a hole");
    let other = disk.image().with_file_name("other");
    let mut filler = File::create(other).expect("create a file");
    while filler.write_all(&[1; 4096]).is_ok() {}
    assert_ne!(queue.run_beside(&write(8192, &[8; 4096])).ret, 0);
    assert_eq!(
        queue.run_beside(&write(32_768, &[8; 4096])).ret,
        0,
        "this block exists"
    );
    assert_eq!(queue.run_beside(&read(32_768, 4096)).data, [8; 4096]);
    assert!(queue.run_beside(&read(8192, 4096)).data == [0; 4096]);
}

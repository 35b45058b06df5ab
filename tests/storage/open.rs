//! Files that can be opened, files that are refused, and the messages of the refusals.

use std::ffi::CString;
use std::fs::{self, File, Permissions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::process::Command;
use std::thread;

use vhost_user_blk::storage::{Limits, OpenOptions, RawFile};

use crate::support::{Buffers, Image, On, options, refusal};

#[track_caller]
fn refused(options: &OpenOptions, words: &[&str]) {
    let text = refusal(options);
    for word in words {
        assert!(text.contains(word), "{word:?} is not in: {text}");
    }
    assert!(!text.contains('\n'), "{text}");
}

#[test]
fn a_plain_file_has_sectors_of_512_bytes() {
    let image = Image::new(On::Disk, 1 << 20);
    let storage = image.open();
    assert_eq!(storage.size(), 1 << 20);
    assert_eq!(storage.path(), image.path);
    let Limits {
        discard_granularity, ..
    } = *storage.limits();
    let expected = Limits {
        logical_block_size: 512,
        physical_block_size: 4096,
        optimal_io_size: 0,
        request_alignment: 1,
        memory_alignment: 1,
        discard_granularity,
        write_zeroes: true,
        read_only: false,
    };
    assert_eq!(*storage.limits(), expected);
}

#[test]
fn a_descriptor_that_appends_writes_where_it_is_told() {
    let image = Image::filled(On::Disk, 8192, 7);
    let file = File::options().read(true).append(true).open(&image.path).unwrap();
    let storage = RawFile::from_file(file, None, &options(&image.path)).unwrap();
    storage.writev(&Buffers::with(&[9; 512]).iov(), 512).unwrap();
    let mut expected = vec![7; 8192];
    expected[512..1024].fill(9);
    assert!(image.contents() == expected);
}

#[test]
fn non_disks_are_refused_by_file_type() {
    let image = Image::new(On::Disk, 512);
    let dir = image.dir();
    let name = |name: &str| dir.join(name);
    let fifo = CString::new(name("fifo").as_os_str().as_bytes()).unwrap();
    // SAFETY: a C string and a mode.
    assert_eq!(unsafe { libc::mkfifo(fifo.as_ptr(), 0o600) }, 0);
    let _listener = UnixListener::bind(name("socket")).unwrap();

    refused(&options(dir), &[dir.to_str().unwrap(), "directory"]);
    refused(&options(&name("fifo")), &["fifo", "FIFO"]);
    refused(&options(&name("socket")), &["socket", "is a socket"]);
    refused(&options("/dev/null".as_ref()), &["/dev/null", "character device"]);
    refused(
        &options(&name("missing")),
        &["cannot open", "missing", "No such file"],
    );
}

#[test]
fn a_symbolic_link_is_followed() {
    let image = Image::new(On::Disk, 1024);
    let link = image.dir().join("link");
    std::os::unix::fs::symlink(&image.path, &link).unwrap();
    assert_eq!(RawFile::open(&options(&link)).unwrap().size(), 1024);
}

#[test]
fn an_empty_file_is_refused() {
    let image = Image::new(On::Disk, 0);
    refused(
        &image.options(),
        &[image.path.to_str().unwrap(), "is empty", "truncate -s"],
    );
}

#[test]
fn partial_last_blocks_are_refused_with_a_fix() {
    for (size, block) in [(1000, None), (513, None), (511, None), (6144, Some(4096))] {
        let image = Image::new(On::Disk, size);
        let options = OpenOptions {
            logical_block_size: block,
            ..image.options()
        };
        let text = refusal(&options);
        assert!(text.contains(&format!("{size} bytes")), "{text}");
        let command = text.split('\'').nth(1).unwrap();
        assert!(command.starts_with("truncate -s"), "{text}");
        let done = Command::new("sh").args(["-c", command]).status().unwrap();
        assert!(done.success(), "{command}");
        RawFile::open(&options).unwrap();
    }
}

#[test]
fn block_sizes_are_powers_of_two_within_limits() {
    let image = Image::new(On::Disk, 1 << 20);
    let with = |size| OpenOptions {
        logical_block_size: Some(size),
        ..image.options()
    };
    for size in [0, 1, 256, 511, 513, 3 * 512, 32769, 65536, u32::MAX] {
        refused(
            &with(size),
            &[&size.to_string(), "power of two from 512 to 32768"],
        );
    }
    for size in [512, 1024, 4096, 32768] {
        let limits = *RawFile::open(&with(size)).unwrap().limits();
        assert_eq!(limits.logical_block_size, size);
        assert_eq!(limits.physical_block_size, size.max(4096));
    }
}

#[test]
fn direct_io_announces_blocks_that_it_can_serve() {
    let image = Image::new(On::Disk, 1 << 20);
    let limits = *image.open_direct().limits();
    assert!(limits.request_alignment >= 512 && limits.memory_alignment >= 1);
    assert_eq!(limits.logical_block_size, limits.request_alignment);
}

#[test]
fn an_unwritable_file_is_refused_with_the_reason() {
    /// `nobody`.
    const NOBODY: libc::uid_t = 65534;
    // Every user can reach the image on tmpfs.
    let image = Image::new(On::Tmpfs, 512);
    fs::set_permissions(image.dir(), Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(&image.path, Permissions::from_mode(0o444)).unwrap();
    let nobody = || {
        // Root may write to every file. This changes only the files that the calling thread may open.
        // SAFETY: the call takes and returns a number.
        unsafe { libc::setfsuid(NOBODY) };
        let words = [
            image.path.to_str().unwrap(),
            "for writing",
            "may not write",
            "denied",
        ];
        refused(&image.options(), &words);
        image.open_read_only();
    };
    thread::scope(|scope| scope.spawn(nobody).join().unwrap());
}

#[test]
fn probing_for_holes_does_not_change_the_file() {
    for on in [On::Disk, On::Tmpfs] {
        let image = Image::filled(on, 5 * 512, 7);
        let allocated = image.allocated();
        image.open();
        assert!(image.contents() == vec![7; 5 * 512], "{on:?}");
        assert_eq!(image.allocated(), allocated, "{on:?}");
    }
}

//! Image locks against other instances of the daemon and against QEMU's programs (package `qemu-utils`).

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use vhost_user_blk::storage::{ImageLock, LockError, RawFile};

use crate::support::{Image, On, message, options};
use testkit::fuse::StalledFile;
use testkit::skip::skipped;

const MIB: u64 = 1 << 20;

/// A `qemu-storage-daemon` that exports an image, until dropped.
struct Qsd(Child);

impl Qsd {
    /// Starts the program and waits until it serves. If it refuses, the error is its output.
    fn start(image: &Image, writable: bool) -> Result<Self, String> {
        let socket = image.dir().join("qsd.sock");
        let _ = std::fs::remove_file(&socket);
        let read_only = if writable { "off" } else { "on" };
        let writable = if writable { "on" } else { "off" };
        let mut child = Command::new("qemu-storage-daemon")
            .arg("--blockdev")
            .arg(format!("driver=file,node-name=disk,read-only={read_only},filename={}", image.path.display()))
            .arg("--export")
            .arg(format!(
                "type=vhost-user-blk,id=export,node-name=disk,writable={writable},addr.type=unix,addr.path={}",
                socket.display()
            ))
            .stderr(Stdio::piped())
            .spawn()
            .expect("qemu-storage-daemon runs");
        let deadline = Instant::now() + Duration::from_secs(60);
        while UnixStream::connect(&socket).is_err() {
            if child.try_wait().unwrap().is_some() {
                let Output { stderr, .. } = child.wait_with_output().unwrap();
                return Err(String::from_utf8(stderr).unwrap());
            }
            if Instant::now() > deadline {
                drop(Self(child));
                panic!("qemu-storage-daemon neither serves nor ends");
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(Self(child))
    }
}

impl Drop for Qsd {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// Runs `qemu-img`. Returns whether it succeeded, and its error output.
fn qemu_img(args: &[&str], image: &Image) -> (bool, String) {
    let out = Command::new("qemu-img")
        .args(args)
        .arg(&image.path)
        .output()
        .expect("qemu-img runs");
    (out.status.success(), String::from_utf8(out.stderr).unwrap())
}

/// Arguments for `qemu-img` that write to the image.
const WRITE_ONCE: [&str; 5] = ["bench", "-w", "-f", "raw", "-c1"];

#[track_caller]
fn refused(storage: &RawFile, image: &Image) {
    let error = ImageLock::acquire(storage).expect_err("locked");
    assert!(matches!(error, LockError::InUse { .. }), "{error}");
    assert!(
        error.to_string().contains(image.path.to_str().unwrap()),
        "{error}"
    );
}

#[test]
fn writers_exclude_everyone_and_readers_exclude_writers() {
    let image = Image::new(On::Disk, MIB);
    let lock = |storage: &RawFile| ImageLock::acquire(storage);
    let writers = [image.open(), image.open()];
    let readers = [image.open_read_only(), image.open_read_only()];

    let writing = lock(&writers[0]).unwrap();
    refused(&writers[1], &image);
    refused(&readers[0], &image);
    drop(writing);

    let reading = readers.each_ref().map(|reader| lock(reader).unwrap());
    refused(&writers[0], &image);
    drop(reading);
    lock(&writers[1]).unwrap();
}

#[test]
fn a_refused_lock_leaves_nothing_locked() {
    let image = Image::new(On::Disk, MIB);
    let (reader, writer) = (image.open_read_only(), image.open());
    let reading = ImageLock::acquire(&reader).unwrap();
    refused(&writer, &image);
    // Locks left by the writer would refuse this reader.
    let other = image.open_read_only();
    ImageLock::acquire(&other).unwrap();
    drop(reading);
    ImageLock::acquire(&writer).unwrap();
}

#[test]
fn a_lock_can_be_retaken_after_release() {
    let image = Image::new(On::Disk, MIB);
    let storage = image.open();
    let lock = ImageLock::acquire(&storage).unwrap();
    assert!(lock.is_held());
    assert!(matches!(
        ImageLock::acquire(&storage),
        Err(LockError::Held { .. })
    ));
    // The failed attempt must not release the lock.
    refused(&image.open(), &image);
    drop(lock);
    ImageLock::acquire(&storage).unwrap();
}

#[test]
fn a_lock_outlives_its_storage() {
    let image = Image::new(On::Disk, MIB);
    let storage = image.open();
    let lock = ImageLock::acquire(&storage).unwrap();
    drop(storage);
    refused(&image.open(), &image);
    drop(lock);
    ImageLock::acquire(&image.open()).unwrap();
}

/// Locks bytes of an open file as another program would. Closing the file releases them.
fn lock_bytes(file: &File, kind: i32, start: i64, len: i64) {
    // SAFETY: all-zero bytes are a valid `struct flock`.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = libc::c_short::try_from(kind).unwrap();
    (lock.l_start, lock.l_len) = (start, len);
    // SAFETY: F_OFD_SETLK reads one `struct flock` through the pointer.
    let rc = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) };
    assert_eq!(rc, 0);
}

#[test]
fn each_qemu_lock_byte_excludes_the_right_users() {
    let image = Image::new(On::Disk, MIB);
    let (reader, writer) = (image.open_read_only(), image.open());
    for byte in (100..104).chain(200..204) {
        let other = image.file();
        lock_bytes(&other, libc::F_RDLCK, byte, 1);
        let (reads, writes) = match byte {
            101 => (false, false), // it writes
            200 => (false, false), // it lets nobody read
            201 => (true, false),  // it lets nobody write
            _ => (true, true),
        };
        assert_eq!(ImageLock::acquire(&reader).is_ok(), reads, "reader, byte {byte}");
        assert_eq!(ImageLock::acquire(&writer).is_ok(), writes, "writer, byte {byte}");
    }
}

#[test]
fn a_lock_of_an_unknown_program_is_respected() {
    let image = Image::new(On::Disk, MIB);
    let storage = image.open();
    let other = image.file();
    lock_bytes(&other, libc::F_WRLCK, 0, 0);
    refused(&storage, &image);
    drop(other);
    ImageLock::acquire(&storage).unwrap();
}

#[test]
fn qemu_tools_refuse_an_image_we_write() {
    let image = Image::new(On::Disk, MIB);
    let storage = image.open();
    let lock = ImageLock::acquire(&storage).unwrap();
    let words = Qsd::start(&image, true).err().expect("qsd started");
    assert!(words.contains("lock"), "{words}");
    let (done, words) = qemu_img(&WRITE_ONCE, &image);
    assert!(!done && words.contains("lock"), "{words}");

    drop(lock);
    Qsd::start(&image, true).unwrap();
    let (done, words) = qemu_img(&WRITE_ONCE, &image);
    assert!(done, "{words}");
}

#[test]
fn qemu_tools_only_read_an_image_we_read() {
    let image = Image::new(On::Disk, MIB);
    let storage = image.open_read_only();
    let _lock = ImageLock::acquire(&storage).unwrap();
    Qsd::start(&image, false).unwrap();
    assert!(Qsd::start(&image, true).is_err());
    let (done, words) = qemu_img(&["info", "-f", "raw"], &image);
    assert!(done, "{words}");
    let (done, words) = qemu_img(&WRITE_ONCE, &image);
    assert!(!done && words.contains("lock"), "{words}");
}

#[test]
fn we_refuse_an_image_that_qsd_writes() {
    let image = Image::new(On::Disk, MIB);
    let qsd = Qsd::start(&image, true).unwrap();
    refused(&image.open(), &image);
    refused(&image.open_read_only(), &image);
    drop(qsd);
    ImageLock::acquire(&image.open()).unwrap();
}

#[test]
fn we_use_qsds_image_as_qsd_allows() {
    let image = Image::new(On::Disk, MIB);
    let _qsd = Qsd::start(&image, false).unwrap();
    ImageLock::acquire(&image.open_read_only()).unwrap();
    // qsd's export shares all permissions unless its user asks otherwise.
    ImageLock::acquire(&image.open()).unwrap();
}

#[test]
fn a_lock_server_that_fails_is_an_error() {
    let file = match StalledFile::mount(MIB) {
        Ok(file) => file,
        Err(e) => return skipped(format_args!("fuse: {e}")),
    };
    let storage = RawFile::open(&options(&file.path())).unwrap();
    let error = ImageLock::acquire(&storage).expect_err("two hosts would write");
    let text = message(&error);
    for word in [file.path().to_str().unwrap(), "rpc.statd", "os error 37"] {
        assert!(text.contains(word), "{text}");
    }
}

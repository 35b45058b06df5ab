//! Images that are not as they should be when they are written to.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use testkit::daemon::binary;
use testkit::frontend::Op;
use testkit::process::{Process, wait_for};

use super::killed::check_no_errors;
use super::support::{
    check_clean, convert, create, directory_in_memory, expected, l2_table, place, qemu_img, qemu_io,
    serve_writable, try_run, word,
};

/// Serves and closes an image, and checks it.
fn close(dir: &Path, image: &str) {
    let (mut daemon, mut frontend) = serve_writable(dir, image, &[]);
    let data = vec![3; 4096];
    assert_eq!(frontend.queue(0).run(&Op::Write { offset: 0, data }).ret, 0);
    drop(frontend);
    assert!(daemon.terminate().status.success());
    check_clean(dir, image);
}

#[test]
fn refcounts_that_qemu_left_open_are_repaired() {
    let Some(dir) = directory_in_memory() else { return };
    let dir = dir.path();
    create(dir, "lazy_refcounts=on", &["image", "8M"]);
    let commands = ["-c", "write -P 9 1M 2M", "-c", "flush", "-c", "abort"];
    let args = [&["-f", "qcow2"], &commands[..], &["image"]].concat();
    assert!(try_run(dir, "qemu-io", &args).is_err());
    assert!(
        try_run(dir, "qemu-img", &["check", "-q", "image"]).is_err(),
        "refcounts are wrong"
    );
    close(dir, "image");
    let found = expected(dir, "image");
    assert!(found[1 << 20..3 << 20].iter().all(|byte| *byte == 9));
}

#[test]
fn leaks_of_version_2_are_repaired() {
    let Some(dir) = directory_in_memory() else { return };
    let dir = dir.path();
    create(dir, "compat=0.10", &["image", "8M"]);
    qemu_io(dir, "image", &["write -P 9 1M 2M"]);
    // A reference is removed.
    let mut image = fs::read(dir.join("image")).expect("read");
    let l2 = l2_table(&image);
    image[l2 + 20 * 8..][..8].fill(0);
    fs::write(dir.join("image"), image).expect("write");
    assert!(
        try_run(dir, "qemu-img", &["check", "-q", "image"]).is_err(),
        "a cluster is leaked"
    );
    close(dir, "image");
}

#[test]
fn clusters_have_one_user_again_after_a_repair() {
    let Some(dir) = directory_in_memory() else { return };
    let dir = dir.path();
    create(dir, "compat=0.10", &["image", "8M"]);
    qemu_io(dir, "image", &["write -P 9 1M 2M"]);
    qemu_img(dir, &["snapshot", "-c", "lost", "image"]);
    // The list of snapshots is emptied, so all refcounts are too high, as if a removal had been interrupted.
    let mut image = fs::read(dir.join("image")).expect("read");
    image[60..72].fill(0);
    fs::write(dir.join("image"), image).expect("write");
    close(dir, "image");
}

#[test]
fn corrupt_images_are_marked() {
    let Some(dir) = directory_in_memory() else { return };
    let dir = dir.path();
    create(dir, "", &["image", "8M"]);
    qemu_io(dir, "image", &["write -P 9 0 1M"]);
    let mut image = fs::read(dir.join("image")).expect("read");
    let l2 = l2_table(&image);
    // The second cluster has no alignment any more.
    image[l2 + 8 + 6] |= 2;
    fs::write(dir.join("image"), image).expect("write");
    let (mut daemon, mut frontend) = serve_writable(dir, "image", &[]);
    let mut write = |offset| {
        let data = vec![1; 4096];
        frontend.queue(0).run(&Op::Write { offset, data }).ret
    };
    assert_eq!(write(0), 0);
    assert_ne!(write(64 << 10), 0);
    assert_ne!(write(0), 0, "nothing is written any more");
    let done = frontend.queue(0).run(&Op::Read { offset: 0, len: 4096 });
    assert!(done.ret == 0 && done.data == [1; 4096], "it can still be read");
    drop(frontend);
    let told = daemon.terminate().output;
    assert_eq!(told.matches("marked as corrupt").count(), 1, "{told}");
    assert_eq!(fs::read(dir.join("image")).expect("read")[79] & 2, 2);
    let refused = testkit::daemon::run(
        &["--socket-path", "s", "--blk-file", "image", "--format", "qcow2"],
        dir,
    );
    assert!(refused.output.contains("marked as corrupt"), "{}", refused.output);
}

#[test]
fn damaged_compressed_data_does_not_mark_the_image() {
    let Some(dir) = directory_in_memory() else { return };
    let dir = dir.path();
    fs::write(dir.join("source.raw"), vec![7; 1 << 20]).expect("write");
    convert(dir, "cluster_size=64k", &["-c"]);
    let mut image = fs::read(dir.join("image")).expect("read");
    let entry = word(&image, l2_table(&image));
    assert_eq!(entry >> 62, 1, "compressed");
    let data = usize::try_from(entry & ((1 << 54) - 1)).expect("small");
    // No block of deflate begins like this.
    image[data] = 0xff;
    fs::write(dir.join("image"), image).expect("write");
    let (mut daemon, mut frontend) = serve_writable(dir, "image", &[]);
    let mut run = |op| frontend.queue(0).run(&op).ret;
    assert_ne!(run(Op::Read { offset: 0, len: 4096 }), 0);
    let data = vec![1; 4096];
    assert_ne!(run(Op::Write { offset: 0, data }), 0, "the rest cannot be copied");
    let write = |offset, len| Op::Write {
        offset,
        data: vec![1; len],
    };
    assert_eq!(run(write(64 << 10, 4096)), 0);
    assert_eq!(run(write(0, 64 << 10)), 0, "nothing has to be copied");
    assert_eq!(run(Op::Read { offset: 0, len: 4096 }), 0);
    drop(frontend);
    let told = daemon.terminate().output;
    assert!(told.contains("cannot be decompressed"), "{told}");
    assert!(!told.contains("marked as corrupt"), "{told}");
    check_clean(dir, "image");
}

#[test]
fn mistakes_in_a_backing_file_do_not_mark_the_overlay() {
    let Some(dir) = directory_in_memory() else { return };
    let dir = dir.path();
    create(dir, "", &["base", "8M"]);
    qemu_io(dir, "base", &["write -P 9 0 1M"]);
    create(dir, "", &["-b", "base", "-F", "qcow2", "image", "8M"]);
    let mut base = fs::read(dir.join("base")).expect("read");
    let l2 = l2_table(&base);
    // The second cluster has no alignment any more.
    base[l2 + 8 + 6] |= 2;
    fs::write(dir.join("base"), base).expect("write");
    let (mut daemon, mut frontend) = serve_writable(dir, "image", &["--follow-names"]);
    let mut run = |op| frontend.queue(0).run(&op).ret;
    let len = 4096;
    let offset = 64 << 10;
    assert_ne!(run(Op::Read { offset, len }), 0);
    let data = vec![1; 4096];
    assert_eq!(run(Op::Write { offset: 0, data }), 0);
    drop(frontend);
    let told = daemon.terminate().output;
    assert!(told.contains("backing file") && told.contains("base: "), "{told}");
    assert!(!told.contains("marked as corrupt"), "{told}");
    assert_eq!(fs::read(dir.join("image")).expect("read")[79] & 2, 0);
}

#[test]
fn tables_marked_as_free_are_not_overwritten() {
    let Some(dir) = directory_in_memory() else { return };
    let dir = dir.path();
    create(dir, "", &["image", "8M"]);
    qemu_io(dir, "image", &["write -P 9 0 1M"]);
    check_no_errors(dir, "image");
    let mut image = fs::read(dir.join("image")).expect("read");
    let (l1, block) = (
        place(word(&image, 40)),
        place(word(&image, place(word(&image, 48)))),
    );
    // The refcount of the L1 table is 0.
    image[block + (l1 >> 16) * 2..][..2].fill(0);
    fs::write(dir.join("image"), image).expect("write");
    let (mut daemon, mut frontend) = serve_writable(dir, "image", &[]);
    let data = vec![1; 4096];
    let done = frontend.queue(0).run(&Op::Write {
        offset: 4 << 20,
        data,
    });
    assert_ne!(done.ret, 0);
    drop(frontend);
    daemon.terminate();
    let image = fs::read(dir.join("image")).expect("read");
    assert_eq!(image[79] & 2, 2);
    assert!(word(&image, l1) != 0, "the table is as it was");
}

#[test]
fn a_block_of_refcounts_is_used_only_once() {
    let Some(dir) = directory_in_memory() else { return };
    let dir = dir.path();
    create(dir, "", &["image", "8M"]);
    qemu_io(dir, "image", &["write -P 9 0 1M"]);
    let mut image = fs::read(dir.join("image")).expect("read");
    // Such a table can claim any number of clusters as used, and none as free.
    let table = place(word(&image, 48));
    let block = image[table..table + 8].to_vec();
    for entry in image[table..table + (64 << 10)].chunks_mut(8) {
        entry.copy_from_slice(&block);
    }
    fs::write(dir.join("image"), image).expect("write");
    let (mut daemon, mut frontend) = serve_writable(dir, "image", &[]);
    let data = vec![1; 4096];
    let offset = 4 << 20;
    assert_ne!(frontend.queue(0).run(&Op::Write { offset, data }).ret, 0);
    let done = frontend.queue(0).run(&Op::Read { offset: 0, len: 4096 });
    assert!(done.ret == 0 && done.data == [9; 4096], "it can still be read");
    drop(frontend);
    let told = daemon.terminate().output;
    assert!(told.contains("the same block twice"), "{told}");
}

/// Starts a daemon on an image with many clusters, and ends it with a signal. Returns what it said, or `None` if it served
/// the disk before the signal came.
fn interrupted_repair(dir: &Path) -> Option<String> {
    let log = dir.join("log");
    let mut command = Command::new(binary());
    command
        .args([
            "--socket-path",
            "sock",
            "--blk-file",
            "image",
            "--format",
            "qcow2",
        ])
        .current_dir(dir)
        .stdin(Stdio::null())
        .stderr(File::create(&log).expect("make a log"));
    let (mut daemon, ()) = Process::start("the daemon", &mut command, |_| ());
    let said = || fs::read_to_string(&log).unwrap_or_default();
    wait_for("a repair", || {
        said().contains("counting the references").then_some(())
    });
    let sent = Instant::now();
    daemon.signal(libc::SIGTERM);
    let status = daemon.wait();
    if said().contains("serving") {
        return None;
    }
    assert_eq!(status.code(), Some(1), "{}", said());
    assert!(sent.elapsed() < Duration::from_secs(10), "{:?}", sent.elapsed());
    Some(said())
}

#[test]
fn a_signal_ends_a_repair() {
    let Some(dir) = directory_in_memory() else { return };
    let dir = dir.path();
    create(dir, "compat=0.10,cluster_size=512", &["image", "1G"]);
    let image = File::options().write(true).open(dir.join("image"));
    image
        .expect("open it")
        .set_len(100 << 30)
        .expect("make it longer");
    // A test that is stopped for a while may come too late.
    let said = (0..5).find_map(|_| interrupted_repair(dir));
    let said = said.expect("a signal during a repair");
    let last = said.lines().last().unwrap_or_default();
    assert!(
        last.contains("error: ") && last.contains("image") && last.contains("a signal ends the daemon"),
        "{said}"
    );
}

//! Images, and a frontend that reads disks.

use std::fs;
use std::path::Path;
use std::process::Command;

use tempfile::TempDir;
use testkit::daemon::Daemon;
use testkit::frontend::{Frontend, Op, all_features};
use testkit::qmp::Qmp;
use testkit::skip::skipped;

/// Makes a directory for images, or skips the test without QEMU's tools.
pub(crate) fn directory() -> Option<TempDir> {
    directory_in(env!("CARGO_TARGET_TMPDIR"))
}

/// Makes a directory for images in memory, where flushes cost nothing, or skips the test without QEMU's tools.
pub(crate) fn directory_in_memory() -> Option<TempDir> {
    directory_in("/dev/shm")
}

fn directory_in(parent: &str) -> Option<TempDir> {
    for tool in ["qemu-img", "qemu-io"] {
        if Command::new(tool).arg("--version").output().is_err() {
            skipped(format!("no {tool}"));
            return None;
        }
    }
    Some(tempfile::tempdir_in(parent).expect("make a directory"))
}

/// Runs a tool in a directory. Returns its error output if it fails.
pub(crate) fn try_run(dir: &Path, tool: &str, args: &[&str]) -> Result<(), String> {
    let output = Command::new(tool).args(args).current_dir(dir).output();
    let output = output.expect("run a tool");
    match output.status.success() {
        true => Ok(()),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}

pub(crate) fn qemu_img(dir: &Path, args: &[&str]) {
    try_run(dir, "qemu-img", args).unwrap_or_else(|error| panic!("qemu-img {args:?}: {error}"));
}

/// Makes an image with these options of qcow2. `args`: more options, the name and the size.
pub(crate) fn create(dir: &Path, options: &str, args: &[&str]) {
    let create = ["create", "-q", "-f", "qcow2"];
    let options = if options.is_empty() {
        &[][..]
    } else {
        &["-o", options]
    };
    qemu_img(dir, &[&create, options, args].concat());
}

/// Converts the file `source.raw` to an image with these options of qcow2.
pub(crate) fn convert(dir: &Path, options: &str, more: &[&str]) {
    let args = ["convert", "-f", "raw", "-O", "qcow2", "-o", options];
    qemu_img(dir, &[&args, more, &["source.raw", "image"]].concat());
}

/// Runs commands on an image.
pub(crate) fn qemu_io(dir: &Path, image: &str, commands: &[&str]) {
    let mut args = vec!["-f", "qcow2"];
    for command in commands {
        args.extend(["-c", command]);
    }
    args.push(image);
    try_run(dir, "qemu-io", &args).unwrap_or_else(|error| panic!("qemu-io {args:?}: {error}"));
}

/// Makes a raw file of data that can be compressed in part, with holes.
pub(crate) fn raw(dir: &Path, name: &str, len: usize) {
    let mut seed = 1_u32;
    let mut content = vec![0; len];
    for (number, block) in content.chunks_mut(7 << 10).enumerate() {
        match number % 5 {
            0 => block.fill(u8::try_from(number % 251).expect("a byte")),
            1 | 2 => block.iter_mut().for_each(|byte| {
                seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                *byte = seed.to_be_bytes()[0];
            }),
            _ => {}
        }
    }
    fs::write(dir.join(name), content).expect("write an image");
}

/// Returns the content of the disk in an image as qemu-img sees it.
pub(crate) fn expected(dir: &Path, image: &str) -> Vec<u8> {
    qemu_img(
        dir,
        &["convert", "-f", "qcow2", "-O", "raw", image, "expected.raw"],
    );
    let content = fs::read(dir.join("expected.raw")).expect("read the result");
    fs::remove_file(dir.join("expected.raw")).expect("remove the result");
    content
}

/// Serves an image with these options of the short form.
pub(crate) fn serve(dir: &Path, image: &str, options: &[&str]) -> (Daemon, Frontend) {
    let path = dir.join(image);
    let path = path.to_str().expect("a name in UTF-8");
    let args = [
        "--socket-path",
        "s",
        "--blk-file",
        path,
        "--format",
        "qcow2",
        "--read-only",
    ];
    connect(&[&args, options].concat())
}

/// Serves an image for writing with these options of the short form.
pub(crate) fn serve_writable(dir: &Path, image: &str, options: &[&str]) -> (Daemon, Frontend) {
    let path = dir.join(image);
    let path = path.to_str().expect("a name in UTF-8");
    let args = ["--socket-path", "s", "--blk-file", path, "--format", "qcow2"];
    connect(&[&args, options].concat())
}

/// The options of a monitor for [`manage`].
pub(crate) const MONITOR: [&str; 4] = [
    "--chardev",
    "socket,id=qmp,path=qmp.sock,server=on,wait=off",
    "--monitor",
    "chardev=qmp",
];

/// Serves a node for writing, and connects a frontend and a QMP client. `node`: the options of the node, which begin with
/// its driver.
pub(crate) fn serve_node(name: &str, node: &str, more: &[&str]) -> (Daemon, Frontend, Qmp) {
    let (driver, options) = node.split_once(',').expect("options");
    let node = format!("{driver},node-name={name},discard=unmap,{options}");
    let export = format!("vhost-user-blk,id=e,node-name={name},addr.type=unix,addr.path=s,writable=on");
    let args = ["--blockdev", &node, "--export", &export];
    let (daemon, frontend) = connect(&[&args, &MONITOR[..], more].concat());
    let client = manage(&daemon);
    (daemon, frontend, client)
}

/// Connects a QMP client.
pub(crate) fn manage(daemon: &Daemon) -> Qmp {
    Qmp::connect(&daemon.dir().join("qmp.sock"))
}

/// Fails unless qemu-img finds no errors and no leaks in an image.
pub(crate) fn check_clean(dir: &Path, image: &str) {
    let output = Command::new("qemu-img")
        .args(["check", "-f", "qcow2", image])
        .current_dir(dir)
        .output();
    let output = output.expect("run qemu-img");
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    assert!(output.status.success(), "qemu-img check: {text}");
}

/// Starts a daemon and connects to its socket `s`.
pub(crate) fn connect(args: &[&str]) -> (Daemon, Frontend) {
    let own = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("make a directory");
    let daemon = Daemon::start_with(own, args);
    let frontend = Frontend::connect(&daemon.dir().join("s"), 1, 8, all_features()).expect("connect");
    (daemon, frontend)
}

/// Compares a disk with the expected content, in requests of several sizes.
pub(crate) fn compare(frontend: &mut Frontend, expected: &[u8]) {
    let size = usize::try_from(frontend.config().capacity.to_native() * 512).expect("a small disk");
    assert_eq!(size, expected.len(), "size");
    // A few requests of any size, then all of it twice: from the image, and with tables that are in memory.
    for (len, step) in [
        (512, 37 << 9),
        (5 << 9, 61 << 9),
        (64 << 10, 64 << 10),
        (33 << 9, 33 << 9),
    ] {
        for at in (0..size).step_by(step) {
            let len = len.min(size - at);
            let done = frontend.queue(0).run(&Op::Read {
                offset: at as u64,
                len,
            });
            assert_eq!(done.ret, 0, "read of {len} bytes at {at}");
            assert!(
                done.data == expected[at..at + len],
                "content of {len} bytes at {at}"
            );
        }
    }
}

/// Serves an image and compares it with what qemu-img reads.
pub(crate) fn check(dir: &Path, image: &str, options: &[&str]) {
    let expected = expected(dir, image);
    let (mut daemon, mut frontend) = serve(dir, image, options);
    compare(&mut frontend, &expected);
    drop(frontend);
    let exit = daemon.terminate();
    assert!(exit.status.success(), "{}", exit.output);
}

/// Returns the number at a place of an image.
pub(crate) fn word(image: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(image[at..at + 8].try_into().expect("8 bytes"))
}

/// Returns the offset that an entry of a table has.
pub(crate) fn place(entry: u64) -> usize {
    usize::try_from(entry & !(1 << 63)).expect("small")
}

/// Returns the offset of the first L2 table.
pub(crate) fn l2_table(image: &[u8]) -> usize {
    place(word(image, place(word(image, 40))))
}

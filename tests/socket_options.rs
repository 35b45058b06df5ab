//! The command line: what is refused, and how; what is printed for programs.

mod common;

use std::path::Path;

use common::daemon::{Daemon, Exit, run};

fn directory() -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("make a directory");
    std::fs::write(dir.path().join("disk.img"), [0; 4096]).expect("write the image");
    std::fs::write(dir.path().join("odd.img"), [0; 1000]).expect("write an image");
    std::fs::write(dir.path().join("empty.img"), []).expect("write an image");
    dir
}

/// A refusal ends the program soon, with a message and without a socket.
fn refused(args: &[&str], dir: &Path) -> Exit {
    let exit = run(args, dir);
    assert!(
        exit.status.code().is_some_and(|code| code != 0 && code != 124),
        "{args:?}: {}",
        exit.status
    );
    assert!(!exit.output.contains("panicked"), "{args:?}: {}", exit.output);
    assert!(!dir.join("s").exists(), "{args:?} made a socket");
    exit
}

#[test]
fn options_that_make_no_sense_are_refused() {
    let dir = directory();
    let bad: &[&[&str]] = &[
        &["--num-queues", "0"],
        &["--num-queues", "70000"],
        &["--num-queues=-1"],
        &["--queue-size", "0"],
        &["--queue-size", "3"],
        &["--queue-size", "2048"],
        &["--iothreads", "0"],
        &["--aio", "sync"],
        &["--notify", "sometimes"],
        &["--logical-block-size", "0"],
        &["--logical-block-size", "256"],
        &["--logical-block-size", "1000"],
        &["--serial", "123456789012345678901"],
        &["--thread-pool-max", "0"],
        &["--thread-pool-min", "5", "--thread-pool-max", "4"],
        &["--thread-pool-min", "65"],
        &["--no-such-option"],
        &["--fd", "3"],
        &["--sandbox", "perhaps"],
        &["--socket-mode", "0999"],
        &["--user", "no-such-user"],
        &["--socket-group", "no-such-group"],
    ];
    for options in bad {
        let args = [&["--socket-path", "s", "--blk-file", "disk.img"], *options].concat();
        let exit = refused(&args, dir.path());
        // The message names what it is about.
        let name = options[0].split('=').next().expect("there is a first part");
        let words = name.trim_start_matches('-').replace('-', " ");
        assert!(
            exit.output.contains(name) || exit.output.contains(&words),
            "{options:?}: {}",
            exit.output
        );
    }
}

#[test]
fn needed_options_are_asked_for() {
    let dir = directory();
    refused(&[], dir.path());
    assert!(
        refused(&["--socket-path", "s"], dir.path())
            .output
            .contains("--blk-file")
    );
    assert!(
        refused(&["--blk-file", "disk.img"], dir.path())
            .output
            .contains("--socket-path")
    );
}

#[test]
fn what_cannot_be_opened_is_named_in_one_line() {
    let dir = directory();
    let long = "x".repeat(120);
    let cases: &[(&[&str], &str)] = &[
        (
            &["--socket-path", "s", "--blk-file", "missing.img"],
            "missing.img",
        ),
        (&["--socket-path", "s", "--blk-file", "odd.img"], "odd.img"),
        (&["--socket-path", "s", "--blk-file", "empty.img"], "empty.img"),
        (&["--socket-path", "s", "--blk-file", "."], "."),
        (&["--socket-path", "s", "--blk-file", "/dev/null"], "/dev/null"),
        (
            &["--socket-path", "nowhere/s", "--blk-file", "disk.img"],
            "nowhere/s",
        ),
        (&["--socket-path", &long, "--blk-file", "disk.img"], "xxx"),
        (&["--fd", "999", "--blk-file", "disk.img"], "999"),
        (&["--fd", "0", "--blk-file", "disk.img"], "0"),
    ];
    for (args, named) in cases {
        let exit = refused(args, dir.path());
        assert_eq!(exit.output.lines().count(), 1, "{args:?}: {}", exit.output);
        assert!(exit.output.contains(named), "{args:?}: {}", exit.output);
    }
}

#[test]
fn linux_aio_is_refused_without_o_direct() {
    let dir = directory();
    let exit = refused(
        &["--socket-path", "s", "--blk-file", "disk.img", "--aio", "native"],
        dir.path(),
    );
    assert!(exit.output.contains("needs --direct"), "{}", exit.output);
}

#[test]
fn capabilities_are_printed_as_management_programs_expect() {
    let exit = run(&["--print-capabilities"], Path::new("/"));
    assert!(exit.status.success());
    let printed: serde_json::Value = serde_json::from_str(&exit.output).expect("it is JSON");
    assert_eq!(
        printed,
        serde_json::json!({"type": "block", "features": ["read-only", "blk-file"]})
    );
}

#[test]
fn help_lists_every_option() {
    let exit = run(&["--help"], Path::new("/"));
    assert!(exit.status.success());
    for option in [
        "--socket-path",
        "--fd",
        "--blk-file",
        "--read-only",
        "--print-capabilities",
        "--serial",
        "--logical-block-size",
        "--num-queues",
        "--queue-size",
        "--iothreads",
        "--aio",
        "--null",
        "--direct",
        "--thread-pool-min",
        "--thread-pool-max",
        "--notify",
        "--stats",
        "--sandbox",
        "--user",
        "--socket-mode",
        "--socket-group",
    ] {
        assert!(exit.output.contains(option), "{option} is missing");
    }
}

#[test]
fn one_image_is_not_written_by_two_daemons() {
    let first = Daemon::start(&[0; 4096], &[]);
    let exit = run(
        &["--socket-path", "other.sock", "--blk-file", "disk.img"],
        first.dir(),
    );
    assert!(!exit.status.success(), "the image is open twice");
    assert_eq!(exit.output.lines().count(), 1, "{}", exit.output);
    assert!(exit.output.contains("disk.img"), "{}", exit.output);
}

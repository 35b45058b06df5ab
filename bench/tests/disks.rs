//! Runs the measurements of many disks in one process, of disks that come and go, and of throttle groups.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

const BENCH: &str = env!("CARGO_BIN_EXE_vhost-user-blk-bench");

/// Returns the daemon beside the benchmark. If this package is tested alone, cargo has not built it, so this does.
fn daemon() -> PathBuf {
    let daemon = Path::new(BENCH).with_file_name("vhost-user-blk");
    if !daemon.exists() {
        let profile_dir = daemon.parent().expect("it is in a directory");
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args(["build", "--locked", "--package", "vhost-user-blk", "--target-dir"]);
        cargo.arg(profile_dir.parent().expect("it is in the target directory"));
        if profile_dir.ends_with("release") {
            cargo.arg("--release");
        }
        assert!(
            cargo.status().expect("start cargo").success(),
            "the daemon does not build"
        );
    }
    daemon
}

/// Runs the benchmark, which leaves nothing behind.
fn run(action: &str, args: &[&str]) -> Output {
    let dir = tempfile::tempdir().expect("create a directory");
    let output = Command::new(BENCH)
        .arg(action)
        .arg("--binary")
        .arg(daemon())
        .arg("--dir")
        .arg(dir.path())
        .args(args)
        .stdin(Stdio::null())
        .output();
    let left: Vec<_> = std::fs::read_dir(dir.path()).expect("list").flatten().collect();
    assert!(left.is_empty(), "{left:?} is left behind");
    output.expect("run the benchmark")
}

fn succeeded(action: &str, args: &[&str]) -> String {
    let output = run(action, args);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Returns the numbers of the first line that starts with `name`.
fn numbers(text: &str, name: &str) -> Vec<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let words = line.unwrap_or_else(|| panic!("no {name} in {text}"));
    let words = words.split(|c: char| !c.is_ascii_digit() && c != '.');
    words.filter_map(|word| word.parse().ok()).collect()
}

#[test]
fn many_disks_are_measured_in_one_process() {
    let old = format!("old={} {{disks}} --stats", daemon().display());
    let brief = [
        "--disks",
        "3",
        "--rounds",
        "1",
        "--runtime",
        "0.2",
        "--warmup",
        "0",
        "--idle",
        "0",
    ];
    let backends = ["--backend", "ours", "--backend", &old, "--storage", "null,tmpfs"];
    let text = succeeded("disks", &[&brief[..], &backends].concat());
    assert_eq!(text.matches("3 disks in one process").count(), 2, "{text}");
    for name in ["all sockets listen, ms", "threads before", "many disks: kIOPS"] {
        let found = numbers(&text, name);
        assert!(
            found.len() == 2 && found.iter().all(|&n| n > 0.0),
            "{name}: {found:?}"
        );
    }
}

#[test]
fn only_some_backends_serve_several_disks() {
    for args in [
        &["--backend", "plain"][..],
        &["--backend", "mine=serve {socket}"],
        &["--disks", "1"],
        &["--disks", "257"],
    ] {
        assert!(!run("disks", args).status.success(), "{args:?}");
    }
}

#[test]
fn a_disk_comes_and_goes_beside_another() {
    let text = succeeded("hot", &["--backend", "ours", "--rounds", "25"]);
    assert!(!text.contains("failed after"), "{text}");
    for kind in [
        "without changes",
        "changes of another process",
        "changes of this process",
    ] {
        assert!(numbers(&text, kind).iter().all(|&n| n > 0.0), "{text}");
    }
    assert!(text.contains("after 25 rounds and at the end: threads"), "{text}");
    let removal = numbers(&text, "hard removal with 64 requests in flight");
    assert!(matches!(removal[..], [took] if took < 2.0), "{text}");
}

#[test]
fn the_rate_of_a_limit_is_measured() {
    let args = ["--backend", "ours", "--runtime", "0.5", "--only", "1 k IOPS"];
    let text = succeeded("throttle", &args);
    let found = numbers(&text, "1 k IOPS");
    // The rate cannot be higher; whether it is reached depends on the machine.
    assert!(
        matches!(found[..], [set, rate, ..] if set == 1000.0 && (100.0..1020.0).contains(&rate)),
        "{text}"
    );
}

#[test]
fn a_group_with_two_disks_is_measured() {
    let args = ["--backend", "ours", "--runtime", "0.3", "--only", "two IOThreads"];
    let text = succeeded("throttle", &args);
    assert_eq!(text.matches("first / second").count(), 2, "{text}");
    assert!(!run("throttle", &["--backend", "plain"]).status.success());
    assert!(!run("throttle", &["--only", "no such row"]).status.success());
}

#[test]
fn a_neighbours_noise_is_measured() {
    let args = ["--backend", "ours", "--runtime", "0.1", "--rounds", "1"];
    for noise in ["connections", "64 requests"] {
        let text = succeeded("neighbours", &[&args[..], &["--only", noise]].concat());
        let found = numbers(&text, noise);
        // p50 and p99 of three kinds of segments, and two ratios.
        assert!(found.len() >= 8 && found[..6].iter().all(|&n| n > 0.0), "{text}");
    }
    assert!(!run("neighbours", &["--backend", "plain"]).status.success());
}

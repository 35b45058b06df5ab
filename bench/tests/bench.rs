//! Runs the benchmark as a whole: its reports, its errors, and what it cleans up.

use std::num::NonZero;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

const BENCH: &str = env!("CARGO_BIN_EXE_vhost-user-blk-bench");

/// Returns the daemon beside the benchmark. If this package is tested alone, cargo has not built it, so this does.
fn daemon() -> PathBuf {
    static BUILT: OnceLock<()> = OnceLock::new();
    let daemon = Path::new(BENCH).with_file_name("vhost-user-blk");
    BUILT.get_or_init(|| {
        let profile_dir = daemon.parent().expect("it is in a directory");
        let target_dir = profile_dir.parent().expect("it is in the target directory");
        if !daemon.exists() {
            let mut cargo = Command::new(env!("CARGO"));
            cargo.args(["build", "--locked", "--package", "vhost-user-blk"]);
            if profile_dir.ends_with("release") {
                cargo.arg("--release");
            }
            let status = cargo.arg("--target-dir").arg(target_dir).status();
            assert!(
                status.expect("start cargo").success(),
                "the daemon does not build"
            );
        }
    });
    daemon
}

/// Returns a command that runs the benchmark on a small image in `dir`.
fn bench(dir: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(BENCH);
    command
        .arg("--binary")
        .arg(daemon())
        .args(["--image-size", "1M", "--storage", "page-cache", "--dir"])
        .arg(dir);
    command.args(args).stdin(Stdio::null());
    command
}

fn run(args: &[&str]) -> Output {
    let dir = tempfile::tempdir().expect("create a directory");
    let output = bench(dir.path(), args).output().expect("run the benchmark");
    let left: Vec<_> = std::fs::read_dir(dir.path()).expect("list").flatten().collect();
    assert!(left.is_empty(), "{left:?} is left behind");
    output
}

fn refused(args: &[&str]) -> String {
    let start = Instant::now();
    let output = run(args);
    assert!(!output.status.success(), "{args:?} succeeded");
    assert!(
        start.elapsed() < Duration::from_secs(15),
        "{args:?} took {:?}",
        start.elapsed()
    );
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Returns the command lines of all processes that mention `dir`.
fn processes(dir: &Path) -> Vec<String> {
    let dir = dir.to_str().expect("the path is UTF-8");
    let all = std::fs::read_dir("/proc").expect("list /proc").flatten();
    let lines = all.filter_map(|entry| std::fs::read_to_string(entry.path().join("cmdline")).ok());
    lines
        .filter(|line| line.contains(dir))
        .map(|line| line.replace('\0', " "))
        .collect()
}

fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < Duration::from_secs(30), "timeout: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_report_has_rows_for_all_backends_and_cases() {
    let out = tempfile::tempdir().expect("create a directory");
    let path = out.path().to_str().expect("the path is UTF-8");
    let output = run(&[
        "--backend",
        "ours",
        "--backend",
        "ours:--notify each",
        "--backend",
        "plain",
        "--shape",
        "1x1,2x16",
        "--runtime",
        "0.4",
        "--warmup",
        "0.05",
        "--rounds",
        "2",
        "--no-event-idx",
        "--out",
        path,
    ]);
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let table = String::from_utf8(output.stdout).expect("the table is UTF-8");
    // On a busy machine, latencies above 100 ms are wider than their columns.
    let surplus = |line: &str| -> usize {
        let numbers = line.split_whitespace().filter(|word| word.parse::<u64>().is_ok());
        numbers.map(|number| number.len().saturating_sub(5)).sum()
    };
    let fits = |line: &str| line.chars().count() <= 85 + surplus(line);
    assert!(table.lines().all(fits), "{table}");
    let json = std::fs::read_to_string(out.path().join("report.json")).expect("report.json");
    let report: serde_json::Value = serde_json::from_str(&json).expect("it is JSON");
    let rows = report["summaries"].as_array().expect("summaries");
    assert_eq!(
        (rows.len(), report["samples"].as_array().expect("samples").len()),
        (6, 12)
    );
    let each = rows.iter().filter(|row| row["backend"] == "ours:--notify each");
    for row in each {
        let ratio = row["completions_per_notification"].as_f64().expect("a number");
        assert!((0.99..=1.01).contains(&ratio), "{row}");
    }
    let html = std::fs::read_to_string(out.path().join("report.html")).expect("report.html");
    assert!(
        html.contains("<svg") && !html.contains("http"),
        "the page has no plots, or needs the network"
    );
}

/// Measures briefly, writes the report to `out` and returns it as JSON.
///
/// 0.4 seconds: on a busy machine, a process may wait for a tenth of a second until it runs.
fn report(out: &Path, args: &[&str]) -> serde_json::Value {
    let brief = ["--runtime", "0.4", "--warmup", "0.05", "--rounds", "1", "--out"];
    let path = out.to_str().expect("the path is UTF-8");
    let output = run(&[args, &brief, &[path]].concat());
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    read(&out.join("report.json"))
}

fn read(path: &Path) -> serde_json::Value {
    let json = std::fs::read_to_string(path).expect("the report is there");
    serde_json::from_str(&json).expect("it is JSON")
}

#[test]
fn the_schema_documents_every_field() {
    let documented = include_str!("../../docs/bench-schema.md");
    let out = tempfile::tempdir().expect("create a directory");
    let report = report(out.path(), &["--backend", "plain", "--shape", "1x4"]);
    for part in [
        &report,
        &report["machine"],
        &report["samples"][0],
        &report["summaries"][0],
    ] {
        for field in part.as_object().expect("an object").keys() {
            assert!(
                documented.contains(&format!("`{field}`")),
                "{field} is not documented"
            );
        }
    }
}

#[test]
fn each_contention_is_a_case_of_its_own() {
    let out = tempfile::tempdir().expect("create a directory");
    let kinds = ["idle", "one-cpu", "busy-loops"];
    let args = ["--backend", "plain", "--shape", "1x1", "--contention"];
    let report = report(out.path(), &[&args[..], &[&kinds.join(",")]].concat());
    let rows = report["summaries"].as_array().expect("summaries");
    let measured: Vec<_> = rows.iter().map(|row| row["contention"].as_str()).collect();
    assert_eq!(measured, kinds.map(Some));
}

/// Sets a flag when dropped, even if the test fails. The threads that check it end then.
struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn cpu_time_of_other_programs_is_measured() {
    let out = tempfile::tempdir().expect("create a directory");
    let stop = AtomicBool::new(false);
    let report = thread::scope(|scope| {
        let _guard = StopOnDrop(&stop);
        // To the benchmark, this process is another program.
        for _ in 0..thread::available_parallelism().map_or(1, NonZero::get) {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            });
        }
        report(out.path(), &["--backend", "plain", "--shape", "1x1"])
    });
    let share = report["summaries"][0]["others_cpu"].as_f64().expect("a number");
    assert!((0.1..=1.0).contains(&share), "{share}");
    let html = std::fs::read_to_string(out.path().join("report.html")).expect("report.html");
    assert!(html.contains("busy machine"), "{html}");
}

#[test]
fn a_report_has_the_date_of_its_first_run() {
    let out = tempfile::tempdir().expect("create a directory");
    let before = SystemTime::now();
    let report = report(out.path(), &["--backend", "plain", "--shape", "1x1"]);
    let started = report["started"].as_str().expect("a text");
    let started = humantime::parse_rfc3339(started).expect("a date");
    // It has whole seconds.
    assert!(started + Duration::from_secs(1) > before && started <= SystemTime::now());
}

#[test]
fn the_limit_is_measured_with_the_backends() {
    let out = tempfile::tempdir().expect("create a directory");
    let report = report(out.path(), &["--backend", "plain", "--shape", "1x4", "--limit"]);
    let rows = report["summaries"].as_array().expect("summaries");
    let names: Vec<_> = rows.iter().map(|row| row["backend"].as_str()).collect();
    assert_eq!(names, ["plain", "limit:psync", "limit:io_uring"].map(Some));
    let shares: Vec<_> = rows
        .iter()
        .filter_map(|row| row["share_of_limit"].as_f64())
        .collect();
    assert_eq!(shares.len(), 3);
    assert!(
        shares.iter().all(|&share| share > 0.0 && share <= 1.0),
        "{shares:?}"
    );
    assert!(
        rows.iter()
            .all(|row| row["backend"] == "plain" || row["ratio"].is_null())
    );
}

#[test]
fn each_disk_has_its_own_backend() {
    let out = tempfile::tempdir().expect("create a directory");
    let report = report(out.path(), &["--backend", "ours", "--shape", "1x4x3,1x4"]);
    let rss = |i: usize| report["samples"][i]["rss_kib"].as_u64().expect("a number");
    assert_eq!(report["samples"][0]["disks"], 3);
    assert!(rss(0) > 2 * rss(1), "{} and {} KiB", rss(0), rss(1));
}

#[test]
fn a_null_disk_needs_no_file() {
    let out = tempfile::tempdir().expect("create a directory");
    let args = [
        "--backend",
        "plain",
        "--shape",
        "1x4",
        "--storage",
        "null",
        "--limit",
    ];
    let report = report(out.path(), &args);
    let all = report["summaries"].as_array().expect("summaries");
    let rows: Vec<_> = all.iter().filter(|row| row["storage"] == "null").collect();
    assert_eq!(rows.len(), 1, "there is no limit on a null disk");
    assert!(rows[0]["iops"].as_f64() > Some(0.0));
}

#[test]
fn reports_can_be_compared_and_rendered_again() {
    let out = tempfile::tempdir().expect("create a directory");
    let mut old = report(out.path(), &["--backend", "plain", "--shape", "1x4"]);
    let new = out.path().join("report.json");
    let compare = |old: &Path| {
        let output = Command::new(BENCH).arg("compare").args([old, &new]).output();
        output.expect("compare")
    };
    assert!(compare(&new).status.success());
    let iops = old["samples"][0]["iops"].as_f64().expect("a number");
    old["samples"][0]["iops"] = (iops * 2.0).into();
    let better = out.path().join("better.json");
    std::fs::write(&better, old.to_string()).expect("write");
    let output = compare(&better);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(!output.status.success() && text.contains("SLOWER"), "{text}");

    let again = out.path().join("again");
    let rendered = Command::new(BENCH)
        .arg("render")
        .arg(&new)
        .arg("--out")
        .arg(&again)
        .output();
    assert!(rendered.expect("render").status.success());
    assert_eq!(read(&again.join("report.json"))["samples"], read(&new)["samples"]);
}

#[test]
fn a_killed_benchmark_leaves_nothing_behind() {
    for signal in [libc::SIGKILL, libc::SIGTERM, libc::SIGINT] {
        let dir = tempfile::tempdir().expect("create a directory");
        let args = [
            "--backend",
            "ours",
            "--shape",
            "1x4",
            "--runtime",
            "60",
            "--rounds",
            "1",
        ];
        let mut child = bench(dir.path(), &args)
            .stderr(Stdio::null())
            .spawn()
            .expect("start the benchmark");
        wait_until("the backend starts", || {
            processes(dir.path())
                .iter()
                .any(|line| line.contains("--blk-file"))
        });
        send(&child, signal);
        child.wait().expect("wait for the benchmark");
        wait_until("all processes end", || processes(dir.path()).is_empty());
        let is_empty = || std::fs::read_dir(dir.path()).expect("list").next().is_none();
        wait_until("all files are removed", is_empty);
    }
}

fn send(child: &Child, signal: libc::c_int) {
    let pid = libc::pid_t::try_from(child.id()).expect("a pid fits");
    // SAFETY: no memory is involved; the child was not waited for, so the pid is its own.
    assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
}

#[test]
fn broken_backends_are_reported_within_seconds() {
    let cases = [
        ("gone=/no/such/program {socket}", "/no/such/program"),
        ("ends=false {socket}", "ended while starting"),
        ("complains=ls /no-such-file {socket}", "no-such-file"),
        ("silent=sh -c sleep${IFS}60 {socket}", "did not create its socket"),
    ];
    for (spec, said) in cases {
        let message = refused(&["--backend", spec]);
        assert!(message.contains(said), "{spec}: {message}");
    }
}

#[test]
fn invalid_options_are_refused() {
    for args in [
        ["--shape", "8"],
        ["--shape", "0x1"],
        ["--block-size", "1000"],
        ["--rounds", "0"],
        ["--backend", "nothing"],
        ["--backend", "mine=serve {image}"],
        ["--storage", "paper"],
    ] {
        refused(&args);
    }
}

/// Returns a command that runs a copy of the benchmark in `dir`, where there is no daemon.
fn copy_to(dir: &Path) -> Command {
    let copy = dir.join("vhost-user-blk-bench");
    std::fs::copy(BENCH, &copy).expect("copy the benchmark");
    let mut command = Command::new(copy);
    command.args(["--backend", "ours", "--shape", "1x1", "--storage", "null"]);
    command.args(["--rounds", "1", "--runtime", "0.1", "--warmup", "0"]);
    command.env_remove("CARGO_PKG_NAME").stdin(Stdio::null());
    command
}

#[test]
fn a_missing_daemon_is_explained() {
    let dir = tempfile::tempdir().expect("create a directory");
    let output = copy_to(dir.path()).output().expect("run the benchmark");
    let message = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "{message}");
    let missing = dir.path().join("vhost-user-blk");
    for part in [
        missing.to_str().expect("UTF-8"),
        "cargo build --release",
        "--binary",
    ] {
        assert!(message.contains(part), "{part} is missing: {message}");
    }
}

#[test]
fn cargo_run_builds_the_daemon_with_the_same_profile() {
    let target = tempfile::tempdir().expect("create a directory");
    let release = target.path().join("release");
    std::fs::create_dir(&release).expect("create a directory");
    // A script in place of cargo, whose build would take minutes. It writes its arguments to a file.
    let cargo = target.path().join("cargo");
    let script = "#!/bin/sh\necho \"$@\" >\"${0%/*}/args\"\nln -s \"$REAL_DAEMON\" \"${0%/*}/release/vhost-user-blk\"\n";
    std::fs::write(&cargo, script).expect("write the script");
    std::fs::set_permissions(&cargo, PermissionsExt::from_mode(0o755)).expect("make it executable");
    let output = copy_to(&release)
        .env("CARGO", &cargo)
        .env("CARGO_PKG_NAME", "vhost-user-blk-bench")
        .env("CARGO_MANIFEST_DIR", "/sources/bench")
        .env("REAL_DAEMON", daemon())
        .output()
        .expect("run the benchmark");
    let message = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{message}");
    let args = std::fs::read_to_string(target.path().join("args")).expect("cargo was run");
    let expected = format!(
        "build --package vhost-user-blk --profile release --manifest-path /sources/bench/Cargo.toml --target-dir {}\n",
        target.path().display()
    );
    assert_eq!(args, expected);
}

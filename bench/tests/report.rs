//! Renders reports of given samples, without measuring anything.

use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

const BENCH: &str = env!("CARGO_BIN_EXE_vhost-user-blk-bench");

/// A report as a table, as a page and as JSON.
struct Report {
    table: String,
    html: String,
    json: Value,
}

impl Report {
    /// Renders `samples`, and `more` top-level fields.
    fn of(samples: &[Value], more: &Value) -> Self {
        let dir = tempfile::tempdir().expect("create a directory");
        let mut input = json!({ "schema": 2, "samples": samples });
        for (name, value) in more.as_object().expect("more fields") {
            input[name] = value.clone();
        }
        let path = dir.path().join("samples.json");
        std::fs::write(&path, input.to_string()).expect("write the samples");
        let output = Command::new(BENCH)
            .arg("render")
            .arg(&path)
            .arg("--out")
            .arg(dir.path())
            .output()
            .expect("render");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{errors}");
        let read = |name: &str| std::fs::read_to_string(dir.path().join(name)).expect("read the report");
        Self {
            table: String::from_utf8(output.stdout).expect("the table is UTF-8"),
            html: read("report.html"),
            json: serde_json::from_str(&read("report.json")).expect("it is JSON"),
        }
    }

    fn assert_both_say(&self, wanted: &str) {
        // The table breaks long lines between words.
        let table: Vec<&str> = self.table.split_whitespace().collect();
        assert!(
            table.join(" ").contains(wanted),
            "no {wanted:?} in {}",
            self.table
        );
        assert!(self.html.contains(wanted), "no {wanted:?} in the page");
    }

    fn assert_none_says(&self, unwanted: &str) {
        assert!(!self.table.contains(unwanted), "{unwanted:?} in {}", self.table);
        assert!(!self.html.contains(unwanted), "{unwanted:?} in the page");
    }
}

fn sample(backend: &str, round: usize, iops: f64, p999_us: f64) -> Value {
    json!({
        "backend": backend, "round": round, "frontend": "native", "storage": "tmpfs", "queues": 8, "iodepth": 64,
        "disks": 1, "rw": "randread", "block_size": 4096, "wait": "sleep", "event_idx": true,
        "negotiated_event_idx": true, "suppress": false, "driver_threads": 1, "iops": iops, "completions": 1000,
        "notifications": 100, "completions_per_notification": 10.0, "batches": [0, 0, 0, 0, 100, 0, 0, 0, 0, 0, 0],
        "kicks_per_io": 0.1, "wakeups_per_io": 0.1, "p50_us": 10.0, "p99_us": 50.0, "p999_us": p999_us,
        "max_us": 900.0, "latency_us": [1, 2, 5, 10, 20, 30, 40, 50, 60, p999_us, 800],
        "cpu_us_per_io": 3.0, "context_switches_per_io": 0.1, "rss_kib": 4096, "others_cpu": 0.01
    })
}

/// Returns samples of `each` with about 100 kIOPS, and of `batch` with `factor` times as many and half the p99.9.
fn samples(rounds: usize, factor: f64) -> Vec<Value> {
    let round = |round: usize| {
        let noise = 1.0 + (round % 3) as f64 / 100.0;
        [
            sample("each", round, 1e5 * noise, 400.0 * noise),
            sample("batch", round, 1e5 * factor, 200.0),
        ]
    };
    (0..rounds).flat_map(round).collect()
}

#[test]
fn five_rounds_give_a_95_percent_interval() {
    let report = Report::of(&samples(5, 2.0), &json!({}));
    report.assert_both_say("ratio (95 %)");
    report.assert_both_say("batch: 1.98 times the IOPS of each (95 %: 1.96..2.00)");
    assert!(report.html.contains("with 95 % intervals"), "{}", report.html);
    assert_eq!(report.json["summaries"][1]["ratio"]["bounds"], "95-percent");
}

#[test]
fn fewer_rounds_give_extremes_and_say_so() {
    let report = Report::of(&samples(4, 2.0), &json!({}));
    report.assert_both_say("ratio (extremes)");
    report.assert_both_say("(extremes: 1.96..2.00)");
    report.assert_none_says("(95 %");
    report.assert_none_says("with 95 % intervals");
    assert_eq!(report.json["summaries"][1]["ratio"]["bounds"], "extremes");
}

#[test]
fn one_round_makes_no_claim() {
    let report = Report::of(&samples(1, 2.0), &json!({}));
    report.assert_both_say("batch: 2.00 times the IOPS of each in a single round");
    report.assert_none_says("(95 %");
    assert_eq!(report.json["summaries"][1]["ratio"]["bounds"], "one-round");
}

#[test]
fn large_changes_are_ratios_not_percentages() {
    let report = Report::of(&samples(5, 8.78), &json!({}));
    report.assert_both_say("batch: 8.69 times the IOPS of each");
    report.assert_none_says("+7");
    report.assert_none_says("% IOPS");
}

#[test]
fn claims_include_the_p999_latency() {
    let report = Report::of(&samples(5, 2.0), &json!({}));
    report.assert_both_say("p99.9 latency 200 µs against 404 µs, 0.50 times (95 %: 0.49..0.50)");
    let same = Report::of(&[samples(1, 2.0).remove(0)], &json!({}));
    same.assert_none_says("p99.9 latency 2");
}

#[test]
fn a_busy_machine_is_flagged() {
    let mut samples = samples(5, 2.0);
    let quiet = Report::of(&samples, &json!({}));
    quiet.assert_none_says("busy machine");
    for sample in &mut samples {
        sample["others_cpu"] = 0.42.into();
    }
    let busy = Report::of(&samples, &json!({}));
    busy.assert_both_say("busy machine: other programs used 42 % of the CPU time");
}

#[test]
fn the_load_average_flags_a_busy_machine_in_old_samples() {
    let mut samples = samples(5, 2.0);
    for sample in &mut samples {
        sample.as_object_mut().expect("an object").remove("others_cpu");
    }
    let report = |load: &str| {
        let machine = json!({ "cpu": "fast", "cpus": 4, "memory_mib": 1, "kernel": "6", "hypervisor": false,
            "file_system": "ext4", "load_before": load, "load_after": "3.00 3.00 3.00" });
        Report::of(&samples, &json!({ "machine": machine }))
    };
    report("0.30 0.20 0.10").assert_none_says("busy machine");
    report("3.10 2.00 1.00")
        .assert_both_say("busy machine: the load average before the first run was 3.10 on 4 CPUs");
}

#[test]
fn a_report_says_when_it_was_measured() {
    let report = Report::of(&samples(1, 2.0), &json!({ "started": "2026-11-27T13:22:05Z" }));
    report.assert_both_say("2026-11-27 13:22 UTC");
    assert_eq!(report.json["started"], "2026-11-27T13:22:05Z");
    let unknown = Report::of(&samples(1, 2.0), &json!({}));
    assert_eq!(unknown.json["started"], Value::Null);
}

#[test]
fn a_narrow_page_names_each_figure_in_its_row() {
    let report = Report::of(&samples(5, 2.0), &json!({}));
    assert!(
        report.html.contains("@media (max-width: 40rem)"),
        "{}",
        report.html
    );
    for column in ["kIOPS", "p99.9 µs", "RSS MiB"] {
        let label = format!("<td data-label='{column}'>");
        assert_eq!(report.html.matches(&label).count(), 2, "{column}");
    }
}

#[test]
fn a_long_name_leaves_room_for_the_figures() {
    let long = "ours:--aio io_uring --thread-pool-max 32 --request-merging off --poll-max-ns 0";
    let mut samples = samples(5, 2.0);
    for sample in samples.iter_mut().skip(1).step_by(2) {
        sample["backend"] = long.into();
    }
    let report = Report::of(&samples, &json!({}));
    // The plots are 400 units wide, so they shorten the name. The legend and the table have all of it.
    assert!(report.html.contains(&format!("{long}<")), "{}", report.html);
    let in_plots = report.html.split("<text").skip(1);
    let texts = in_plots.map(|text| text.split('>').nth(1).expect("a text").trim_end_matches("</text"));
    for text in texts {
        assert!(text.chars().count() <= 45, "{text}");
    }
    assert!(report.html.contains("ours:--aio io_uring…"), "{}", report.html);
}

#[test]
fn an_unusable_report_directory_is_refused_before_measuring() {
    let dir = tempfile::tempdir().expect("create a directory");
    let file = dir.path().join("file");
    std::fs::write(&file, "").expect("write a file");
    let taken = dir.path().join("taken");
    std::fs::create_dir_all(taken.join("report.html")).expect("create a directory");
    let refused = |out: &Path| {
        let output = Command::new(BENCH)
            .args([
                "--backend",
                "gone=/no/such/program {socket}",
                "--shape",
                "1x1",
                "--out",
            ])
            .arg(out)
            .stdin(Stdio::null())
            .output()
            .expect("run the benchmark");
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success(), "{message}");
        assert!(
            !message.contains("/no/such/program"),
            "a backend was started: {message}"
        );
        assert!(message.contains("--out"), "{message}");
        message
    };
    assert!(refused(&file.join("below")).contains("Not a directory"));
    assert!(refused(&file).contains("File exists"));
    assert!(refused(&taken).contains("report.html"));
    let left: Vec<_> = std::fs::read_dir(&taken).expect("list").flatten().collect();
    assert_eq!(left.len(), 1, "the check leaves nothing: {left:?}");
}

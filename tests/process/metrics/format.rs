//! The format of the page, checked by the client library of Prometheus.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use tempfile::TempDir;
use testkit::daemon::Daemon;
use testkit::frontend::{Frontend, Op, all_features};
use testkit::metrics::{Metrics, request, scrape};
use testkit::process::die_with_parent;
use testkit::skip::skipped;

use super::{UNIX, connect, start};

/// The directory where `scripts/test` unpacks the library.
const LIBRARY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/.cache/python");
/// Parses a page with the library's strict or classic parser, and prints the number of samples.
const SCRIPT: &str = "\
import sys
from prometheus_client.openmetrics.parser import text_string_to_metric_families as strict
from prometheus_client.parser import text_string_to_metric_families as classic
parse = {'openmetrics': strict, 'prometheus': classic}[sys.argv[1]]
print(sum(len(family.samples) for family in parse(sys.stdin.read())))
";

/// Returns a page with figures in every family.
fn page(accept: &str) -> String {
    let daemon = start(&[]);
    let mut frontend = Frontend::connect(&daemon.socket(), 1, 4, all_features()).expect("connect");
    let data = vec![1; 512];
    for op in [
        Op::Read { offset: 0, len: 512 },
        Op::Write { offset: 0, data },
        Op::Flush,
    ] {
        assert_eq!(frontend.queue(0).run(&op).ret, 0);
    }
    let head = format!("GET /metrics HTTP/1.1\r\nAccept: {accept}\r\n\r\n");
    let answer = request(connect(&daemon), &head);
    assert_eq!(answer.status, 200);
    answer.body
}

fn samples(parser: &str, page: &str) -> usize {
    let mut python = Command::new("python3");
    python
        .args(["-c", SCRIPT, parser])
        .env("PYTHONPATH", LIBRARY)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    die_with_parent(&mut python);
    let mut child = python.spawn().expect("run python3");
    child
        .stdin
        .take()
        .expect("a pipe")
        .write_all(page.as_bytes())
        .expect("write");
    let output = child.wait_with_output().expect("wait for python3");
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{told}\n{page}");
    let count = String::from_utf8_lossy(&output.stdout);
    count.trim().parse().expect("a number")
}

#[test]
fn prometheus_own_library_parses_both_formats() {
    if !Path::new(LIBRARY).join("prometheus_client").exists() {
        return skipped("prometheus_client (PyPI) is not there: run scripts/test");
    }
    for (parser, accept) in [
        ("openmetrics", "application/openmetrics-text"),
        ("prometheus", "*/*"),
    ] {
        let page = page(accept);
        let lines = page.lines().filter(|line| !line.starts_with('#')).count();
        assert_eq!(samples(parser, &page), lines, "{page}");
    }
}

#[test]
fn without_accept_the_older_format_is_sent() {
    let daemon = start(&[]);
    let answer = request(connect(&daemon), "GET /metrics HTTP/1.1\r\n\r\n");
    assert_eq!(
        answer.fields["content-type"],
        "text/plain; version=0.0.4; charset=utf-8"
    );
    let types: Vec<_> = answer
        .body
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE "))
        .collect();
    assert!(
        types.contains(&"vhost_user_blk_requests_total counter"),
        "{types:?}"
    );
    assert!(!answer.body.contains("# EOF"));
}

#[test]
fn strange_names_of_images_are_escaped() {
    let dir = TempDir::new().expect("make a directory");
    let image = "a\"b\\c\nd é.img";
    std::fs::write(dir.path().join(image), [0; 4096]).expect("write an image");
    let args = ["--socket-path", "s", "--blk-file", image];
    let daemon = Daemon::start_with(dir, &[&args[..], &UNIX].concat());
    let page: Metrics = scrape(connect(&daemon));
    assert_eq!(page.value("vhost_user_blk_disk_info", &[("image", image)]), 1.0);
}

//! Renders report.html: one file that needs neither scripts nor network, for screens, phones and paper.

use std::fmt::Write as _;

use crate::claims::{busy, busy_before, claims};
use crate::machine::Machine;
use crate::plot::{Row, bars, batches, curves, escape, latency, mark, ratios};
use crate::report::{Report, Version};
use crate::sample::{Case, Summary};
use crate::stats::Bounds;
use crate::table::{known, per_notification, ratio, ratio_title, title};
use crate::units::short;

/// Renders the report.
pub(crate) fn page(report: &Report) -> String {
    let mut out = format!("{HEAD}<h1>vhost-user-blk-bench</h1>");
    about(&mut out, report);
    let number = |summary: &Summary| {
        let is_its = |version: &Version| version.name == summary.backend;
        report.measured.backends.iter().position(is_its).unwrap_or(0)
    };
    let row = |summary| Row {
        backend: number(summary),
        summary,
    };
    let groups: Vec<Vec<Row>> = report
        .groups()
        .map(|group| group.iter().map(row).collect())
        .collect();
    for storage in groups.chunk_by(|a, b| is_one_sweep(&a[0], &b[0])) {
        scaling(&mut out, &storage.concat(), report);
    }
    for (group, summaries) in groups.iter().zip(report.groups()) {
        section(&mut out, group, summaries);
    }
    out + FOOT
}

/// Returns whether two cases differ only in their shape.
fn is_one_sweep(a: &Row, b: &Row) -> bool {
    let (a, b) = (a.summary.case, b.summary.case);
    let of = |case: Case| (case.storage, case.load.event_idx, case.load.contention);
    of(a) == of(b)
}

fn about(out: &mut String, report: &Report) {
    if let Some(date) = report.date() {
        let _ = write!(out, "<p>{}</p>", escape(&date));
    }
    if let Some(machine) = &report.measured.machine {
        let _ = write!(
            out,
            "<p>{} CPUs, {}{}, {} MiB; Linux {}; images on {}{}.</p>",
            machine.cpus,
            escape(&machine.cpu),
            if machine.hypervisor { ", virtual" } else { "" },
            machine.memory_mib,
            escape(&machine.kernel),
            escape(&machine.file_system),
            load(machine),
        );
    }
    let _ = write!(out, "<pre>{}</pre>", escape(&report.measured.command.join(" ")));
    out.push_str("<ul>");
    for (i, Version { name, version }) in report.measured.backends.iter().enumerate() {
        let version = version.as_deref().unwrap_or("version unknown");
        let _ = write!(
            out,
            "<li>{} {} <small>{}</small>",
            mark(i),
            escape(name),
            escape(version)
        );
    }
    out.push_str("</ul>");
    let warnings = [busy(&report.summaries), busy_before(&report.measured)];
    for note in warnings.iter().flatten().chain(&report.measured.notes) {
        let _ = write!(out, "<p><strong>{}</strong></p>", escape(note));
    }
}

fn load(machine: &Machine) -> String {
    match (machine.load_before.as_str(), machine.load_after.as_str()) {
        ("", _) | (_, "") => String::new(),
        (before, after) => format!(
            "; load average before {}, after {}",
            escape(before),
            escape(after)
        ),
    }
}

fn scaling(out: &mut String, rows: &[Row], report: &Report) {
    let plots = curves(rows);
    let Some(first) = rows.first().filter(|_| !plots.is_empty()) else {
        return;
    };
    let storage = title(first.summary);
    let storage = storage.split(',').next().unwrap_or_default();
    let _ = write!(out, "<section><h2>Scaling: {}</h2><p>", escape(storage));
    for (i, version) in report.measured.backends.iter().enumerate() {
        let _ = write!(
            out,
            "<span class='legend'>{} {}</span> ",
            mark(i),
            escape(&version.name)
        );
    }
    out.push_str("</p><div class='plots'>");
    for (caption, plot) in plots {
        figure(out, &caption, &plot);
    }
    out.push_str("</div></section>");
}

fn figure(out: &mut String, caption: &str, plot: &str) {
    if !plot.is_empty() {
        let _ = write!(out, "<figure><figcaption>{caption}</figcaption>{plot}</figure>");
    }
}

fn section(out: &mut String, rows: &[Row], summaries: &[Summary]) {
    let _ = write!(out, "<section><h2>{}</h2>", escape(&title(rows[0].summary)));
    if let Some(warning) = busy(summaries) {
        let _ = write!(out, "<p><strong>{}</strong></p>", escape(&warning));
    }
    out.push_str("<ul class='claims'>");
    for claim in claims(summaries) {
        let _ = write!(
            out,
            "<li>{} {}",
            mark(rows[claim.row].backend),
            escape(&claim.text)
        );
    }
    out.push_str("</ul><div class='plots'>");
    figure(out, "I/O per second; the line spans all rounds", &bars(rows));
    let reference = escape(&rows[0].summary.backend);
    figure(
        out,
        &format!("Times the IOPS of {reference}, {}", intervals(summaries)),
        &ratios(rows),
    );
    figure(out, "Latency", &latency(rows));
    figure(
        out,
        "Share of notifications by the number of completions they covered",
        &batches(rows),
    );
    out.push_str("</div>");
    table(out, rows, summaries);
    out.push_str("</section>");
}

fn intervals(rows: &[Summary]) -> &'static str {
    match rows.iter().find_map(|row| Some(row.ratio?.bounds)) {
        Some(Bounds::Confidence) => "with 95 % intervals",
        Some(Bounds::Extremes) => "with the extremes of the rounds",
        Some(Bounds::OneRound) | None => "of a single round",
    }
}

fn table(out: &mut String, rows: &[Row], summaries: &[Summary]) {
    let ratio_title = ratio_title(summaries);
    let titles = [
        "kIOPS",
        "min..max",
        &ratio_title,
        "completions per notification",
        "p50 µs",
        "p99 µs",
        "p99.9 µs",
        "CPU µs per I/O",
        "context switches per I/O",
        "RSS MiB",
    ];
    out.push_str("<div class='wide'><table><thead><tr><th>backend");
    for title in titles {
        let _ = write!(out, "<th>{title}");
    }
    out.push_str("</tr></thead><tbody>");
    for row in rows {
        let (summary, kilo) = (row.summary, |iops: f64| short(iops / 1e3));
        let _ = write!(out, "<tr><td>{} {}", mark(row.backend), escape(&summary.backend));
        let cells = [
            kilo(summary.iops),
            format!("{}..{}", kilo(summary.iops_min), kilo(summary.iops_max)),
            ratio(summary),
            per_notification(summary),
            short(summary.p50_us),
            short(summary.p99_us),
            short(summary.p999_us),
            known(summary.cpu_us_per_io),
            known(summary.context_switches_per_io),
            known(summary.rss_kib / 1024.0),
        ];
        for (title, cell) in titles.iter().zip(cells) {
            let _ = write!(out, "<td data-label='{title}'>{}", escape(&cell));
        }
        out.push_str("</tr>");
    }
    out.push_str("</tbody></table></div>");
}

const HEAD: &str = "<!DOCTYPE html>
<html lang='en'><head><meta charset='utf-8'>
<meta name='viewport' content='width=device-width, initial-scale=1'>
<title>vhost-user-blk-bench</title>
<style>
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #57606a; --line: #d0d7de; --paper: #fff;
  --c0: #6e7781; --c1: #0969da; --c2: #bc4c00; --c3: #1a7f37; --c4: #8250df; --c5: #bf3989 }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --soft: #9198a1; --line: #3d444d; --paper: #0d1117;
  --c0: #9198a1; --c1: #4493f8; --c2: #f0883e; --c3: #3fb950; --c4: #ab7df8; --c5: #db61a2 } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 62rem; margin: 0 auto; padding: 1rem }
h1 { font-size: 1.4rem } h2 { font-size: 1.1rem; margin: 2.5rem 0 .5rem }
pre { white-space: pre-wrap; overflow-wrap: anywhere; font-size: .8rem; color: var(--soft) }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(22rem, 100%), 1fr)); gap: 1.5rem }
figure { margin: 0 } figcaption { font-size: .85rem; color: var(--soft) }
.plot { width: 100%; height: auto; font-size: 12px } .plot text { fill: var(--ink) }
.plot .value { fill: var(--soft); font-size: 11px }
.grid { stroke: var(--line); fill: none } .range { stroke: var(--ink); stroke-width: 1.5; fill: none }
.f0 { fill: var(--c0) } .f1 { fill: var(--c1) } .f2 { fill: var(--c2) }
.f3 { fill: var(--c3) } .f4 { fill: var(--c4) } .f5 { fill: var(--c5) }
.small { font-size: 10px } .halo { paint-order: stroke; stroke: var(--paper); stroke-width: 3px }
.line { fill: none; stroke-width: 2 }
.l0 { stroke: var(--c0) } .l1 { stroke: var(--c1) } .l2 { stroke: var(--c2) }
.l3 { stroke: var(--c3) } .l4 { stroke: var(--c4) } .l5 { stroke: var(--c5) }
ul { list-style: none; padding: 0 } .legend { display: inline-block; margin-right: 1rem } .mark { width: .7em; height: .7em }
.claims li { margin: .4rem 0 } .wide { overflow-x: auto } table { border-collapse: collapse; font-size: .8rem; margin-top: 1rem; width: 100% }
th, td { text-align: right; padding: .25rem .5rem; border-bottom: 1px solid var(--line); vertical-align: bottom }
th { font-weight: 600; color: var(--soft) } td { white-space: nowrap; font-variant-numeric: tabular-nums }
th:first-child, td:first-child { text-align: left }
/* A phone has no room for eleven columns: each row becomes a block of figures with their names. */
@media (max-width: 40rem) { thead { display: none } tr { display: grid; grid-template-columns: 1fr 1fr;
  column-gap: 1rem; border-bottom: 1px solid var(--line); padding: .5rem 0 }
  td { display: flex; justify-content: space-between; gap: .5rem; border: 0; padding: .1rem 0; white-space: normal }
  td::before { content: attr(data-label); color: var(--soft); text-align: left }
  td:first-child { grid-column: 1 / -1; justify-content: start; align-items: center; font-weight: 600 } }
@media print { :root { color-scheme: light; --ink: #000; --soft: #444; --paper: #fff; --line: #bbb; --c0: #6e7781;
  --c1: #0969da; --c2: #bc4c00; --c3: #1a7f37; --c4: #8250df; --c5: #bf3989 }
  body { max-width: none; padding: 0; font-size: 12px } .plots { grid-template-columns: 1fr 1fr }
  section { break-inside: avoid } .wide { overflow: visible } table { font-size: .7rem } th, td { padding: .15rem .3rem } }
</style></head><body>
";

const FOOT: &str = "<p><small>The ratio is to the first backend, with a 95 % interval (below five rounds: the lowest and the \
highest ratio of a round); ~: no difference shown; ?: not enough data, or too noisy. The frontend counts completions \
and notifications, the latter from the call eventfd. CPU and context switches are the backend's own.</small></p>
</body></html>
";

//! The summaries as a table for the terminal, and the format of figures.

use std::fmt::Write as _;

use crate::claims::{busy, busy_before, claims};
use crate::contention::Contention;
use crate::load::Frontend;
use crate::report::{Report, is_limit};
use crate::sample::Summary;
use crate::stats::{Bounds, Verdict};
use crate::units::short;

const WIDTH: usize = 85;

/// Renders all summaries, at most 85 columns wide.
pub(crate) fn table(report: &Report) -> String {
    let mut out = report.date().map_or(String::new(), |date| format!("{date}\n"));
    for group in report.groups() {
        let _ = write!(out, "\n{}{}\n", wrap(&title(&group[0])), head(group));
        for row in group {
            let _ = writeln!(out, "{}", line(row));
        }
        for claim in claims(group) {
            out.push_str(&wrap(&claim.text));
        }
        out.push_str(&shares(group));
        out.push_str(&own_threads(group));
        out.extend(busy(group).map(|warning| wrap(&warning)));
    }
    out.extend(busy_before(&report.measured).map(|warning| "\n".to_owned() + &wrap(&warning)));
    out + LEGEND
}

/// Breaks a long line between words, and indents all lines but the first.
fn wrap(text: &str) -> String {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        let line = lines.last_mut().expect("there is a first line");
        let len = line.chars().count();
        if len > 0 && len + 1 + word.chars().count() > WIDTH {
            lines.push(format!("  {word}"));
        } else {
            line.push_str(if len > 0 { " " } else { "" });
            line.push_str(word);
        }
    }
    lines.join("\n") + "\n"
}

/// Returns the title of a case.
pub(crate) fn title(row: &Summary) -> String {
    let load = &row.case.load;
    let disks = if load.shape.disks > 1 { " x disks" } else { "" };
    let process = if load.one_process { " in one process" } else { "" };
    let event_idx = if load.event_idx { "" } else { ", no EVENT_IDX" };
    let contention = match load.contention {
        Contention::Idle => "",
        Contention::OneCpu => ", one CPU",
        Contention::BusyLoops => ", CPUs with busy loops",
    };
    let frontend = match load.frontend {
        Frontend::Native => "",
        Frontend::GuestKvm => "guest (KVM): ",
        Frontend::GuestTcg => "guest (TCG): ",
    };
    format!(
        "{frontend}{} {} {} B, {} (queues x iodepth{disks}){process}{event_idx}{contention}, medians of {}",
        name(&row.case.storage),
        name(&load.rw),
        load.block_size,
        load.shape,
        row.rounds
    )
}

fn head(rows: &[Summary]) -> String {
    format!(
        "{:<18} {:>5} {:>11} {:>19} {:>5} {:>5} {:>5} {:>5} {:>4}",
        "backend",
        "kIOPS",
        "min..max",
        ratio_title(rows),
        "c/n",
        "p50us",
        "p99",
        "p99.9",
        "cpu"
    )
}

/// Returns the title of the ratios' column, which names the kind of interval.
pub(crate) fn ratio_title(rows: &[Summary]) -> String {
    let bounds = rows.iter().find_map(|row| Some(row.ratio?.bounds));
    format!(
        "ratio ({})",
        bounds.unwrap_or_else(|| Bounds::of(rows[0].rounds)).label()
    )
}

const LEGEND: &str = "
ratio: to the first backend, with a 95 % interval (below 5 rounds: the lowest
and highest of a round);  '~': no difference shown;  '?': not enough data, or
too noisy;  c/n: completions per notification;  cpu: backend's CPU us per I/O
";

fn line(row: &Summary) -> String {
    let kilo = |iops: f64| short(iops / 1e3);
    let range = format!("{}..{}", kilo(row.iops_min), kilo(row.iops_max));
    let ratio = ratio(row);
    let backend: String = row.backend.chars().take(18).collect();
    format!(
        "{backend:<18} {:>5} {range:>11} {ratio:>19} {:>5} {:>5} {:>5} {:>5} {:>4}",
        kilo(row.iops),
        per_notification(row),
        short(row.p50_us),
        short(row.p99_us),
        short(row.p999_us),
        known(row.cpu_us_per_io),
    )
}

/// Lists the share of the limit that each backend reaches.
fn shares(rows: &[Summary]) -> String {
    let mut lines = vec!["of the limit:".to_owned()];
    for row in rows.iter().filter(|row| !is_limit(&row.backend)) {
        let Some(share) = row.share_of_limit else {
            return String::new();
        };
        let item = format!(" {} {:.0} %;", row.backend, share * 100.0);
        match lines.last_mut() {
            Some(line) if line.chars().count() + item.chars().count() <= WIDTH => line.push_str(&item),
            _ => lines.push(format!(" {item}")),
        }
    }
    lines.join("\n").trim_end_matches(';').to_owned() + "\n"
}

/// Lists the CPU time of each backend apart from librbd's threads, if there are any.
fn own_threads(rows: &[Summary]) -> String {
    let known = rows.iter().filter_map(|row| Some((row, row.own_cpu_us_per_io?)));
    let items: Vec<String> = known
        .map(|(row, own)| format!("{} {}", row.backend, short(own)))
        .collect();
    match items.is_empty() {
        true => String::new(),
        false => wrap(&format!(
            "CPU us per I/O apart from librbd's threads: {}",
            items.join("; ")
        )),
    }
}

/// Formats the ratio to the reference, with its interval and a mark of doubt.
pub(crate) fn ratio(row: &Summary) -> String {
    let Some(ratio) = row.ratio else {
        let limit = is_limit(&row.backend);
        return if limit { "-" } else { "reference" }.to_owned();
    };
    let mark = match ratio.verdict() {
        Verdict::Higher | Verdict::Lower => "",
        Verdict::Same => " ~",
        Verdict::Noise => " ?",
        Verdict::OneRound => return format!("{} ?", short(ratio.value)),
    };
    format!(
        "{} ({}..{}){mark}",
        short(ratio.value),
        short(ratio.low),
        short(ratio.high)
    )
}

/// Formats completions per notification, or `-` if there were no notifications.
pub(crate) fn per_notification(row: &Summary) -> String {
    known(row.completions_per_notification)
}

/// Formats a figure, or `-` for 0, which stands for unknown.
pub(crate) fn known(figure: f64) -> String {
    match figure {
        0.0 => "-".to_owned(),
        figure => short(figure),
    }
}

/// Returns the name of a value on the command line.
fn name<T: clap::ValueEnum>(value: &T) -> String {
    value
        .to_possible_value()
        .map(|value| value.get_name().to_owned())
        .unwrap_or_default()
}

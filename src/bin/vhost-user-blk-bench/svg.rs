//! The plots of the HTML report. Colours and fonts come from the page's style sheet.

use std::fmt::Write as _;

use crate::report::{ratio, short};
use crate::sample::{QUANTILES, Summary};

/// Units of all plots: wide enough for a screen, and text of 12 stays readable on a phone.
const WIDTH: f64 = 400.0;
const ROW: f64 = 46.0;
/// Backends that have a colour of their own.
const COLOURS: usize = 6;

/// Horizontal bars of IOPS with a line from the slowest to the fastest round.
pub(crate) fn bars(rows: &[Summary]) -> String {
    let most = rows.iter().map(|row| row.iops_max).fold(1.0, f64::max);
    let x = |iops: f64| iops / most * (WIDTH - 2.0);
    let height = ROW * rows.len() as f64;
    let mut svg = open("IOPS of each backend", height);
    for (i, row) in rows.iter().enumerate() {
        let top = ROW * i as f64;
        let (text, bar, middle) = (top + 15.0, top + 22.0, top + 30.0);
        let label = escape(&row.backend);
        let value = format!("{} k/s · {}", short(row.iops / 1e3), escape(&ratio(row)));
        let (width, low, high) = (x(row.iops), x(row.iops_min), x(row.iops_max));
        let _ = write!(
            svg,
            "<text x='0' y='{text}'>{label}</text>\
             <text x='{WIDTH}' y='{text}' text-anchor='end' class='value'>{value}</text>\
             <rect x='0' y='{bar}' width='{width:.1}' height='16' rx='2' class='f{colour}'/>\
             <path d='M{low:.1} {middle}H{high:.1}M{low:.1} {bar}v16M{high:.1} {bar}v16' class='range'/>",
            colour = i % COLOURS,
        );
    }
    svg + "</svg>"
}

/// Latency over percentiles: the more nines, the further right; logarithmic upwards.
pub(crate) fn latency(rows: &[Summary]) -> String {
    const HEIGHT: f64 = 220.0;
    const LEFT: f64 = 52.0;
    const BOTTOM: f64 = 190.0;
    let values = || {
        rows.iter()
            .flat_map(|row| row.latency_us.iter().copied())
            .filter(|&us| us > 0.0)
    };
    let low = values().fold(f64::INFINITY, f64::min).log10().floor();
    let high = values().fold(0.0, f64::max).log10().ceil().max(low + 1.0);
    if !low.is_finite() {
        return String::new();
    }
    let nines = |quantile: f64| -(1.0 - quantile).log10();
    let x = |quantile: f64| LEFT + nines(quantile) / nines(0.9999) * (WIDTH - LEFT - 8.0);
    let y = |us: f64| BOTTOM - (us.log10() - low) / (high - low) * (BOTTOM - 10.0);
    let mut svg = open("latency percentiles of each backend", HEIGHT);
    let mut decade = low;
    while decade <= high {
        let (at, us) = (y(10_f64.powf(decade)), 10_f64.powf(decade));
        let _ = write!(
            svg,
            "<path d='M{LEFT} {at:.1}H{WIDTH}' class='grid'/>\
             <text x='{}' y='{:.1}' text-anchor='end' class='value'>{}</text>",
            LEFT - 5.0,
            at + 4.0,
            time(us)
        );
        decade += 1.0;
    }
    for (quantile, name) in [
        (0.5, "p50"),
        (0.9, "p90"),
        (0.99, "p99"),
        (0.999, "p99.9"),
        (0.9999, "p99.99"),
    ] {
        let (at, anchor) = (x(quantile), if quantile > 0.999 { "end" } else { "middle" });
        let _ = write!(
            svg,
            "<path d='M{at:.1} 10V{BOTTOM}' class='grid'/>\
             <text x='{at:.1}' y='{}' text-anchor='{anchor}' class='value'>{name}</text>",
            BOTTOM + 16.0
        );
    }
    for (i, row) in rows.iter().enumerate() {
        let points = QUANTILES.iter().zip(&row.latency_us).filter(|&(_, &us)| us > 0.0);
        let points: Vec<String> = points
            .map(|(&q, &us)| format!("{:.1},{:.1}", x(q), y(us)))
            .collect();
        let _ = write!(
            svg,
            "<polyline points='{}' class='l{}'/>",
            points.join(" "),
            i % COLOURS
        );
    }
    svg + "</svg>"
}

/// A small square in a backend's colour, for tables and legends.
pub(crate) fn mark(index: usize) -> String {
    format!(
        "<svg class='mark' viewBox='0 0 10 10' aria-hidden='true'><rect width='10' height='10' rx='2' class='f{}'/></svg>",
        index % COLOURS
    )
}

/// Text as HTML and attribute values take it.
pub(crate) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '\'' => out.push_str("&#39;"),
            '"' => out.push_str("&quot;"),
            c => out.push(c),
        }
    }
    out
}

fn open(what: &str, height: f64) -> String {
    format!("<svg class='plot' viewBox='0 0 {WIDTH} {height}' role='img' aria-label='{what}'>")
}

/// A power of ten of microseconds in the unit that people read.
fn time(us: f64) -> String {
    match us {
        us if us >= 1e6 => format!("{} s", us / 1e6),
        us if us >= 1e3 => format!("{} ms", us / 1e3),
        us => format!("{us} µs"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_cannot_break_out_of_the_page() {
        assert_eq!(escape("<b a='x'>&\""), "&lt;b a=&#39;x&#39;&gt;&amp;&quot;");
    }

    #[test]
    fn times_are_read_in_their_unit() {
        assert_eq!([time(1.0), time(1e4), time(1e6)], ["1 µs", "10 ms", "1 s"]);
    }
}

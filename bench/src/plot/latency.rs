use std::fmt::Write as _;

use super::{Frame, Row, open};
use crate::sample::QUANTILES;

const LABELS: [(f64, &str); 5] = [
    (0.5, "p50"),
    (0.9, "p90"),
    (0.99, "p99"),
    (0.999, "p99.9"),
    (0.9999, "p99.99"),
];

/// Draws the latency over percentiles. Each further nine is one step to the right; the latency is logarithmic.
pub(crate) fn latency(rows: &[Row]) -> String {
    let values = || {
        let all = rows.iter().flat_map(|row| row.summary.latency_us.iter().copied());
        all.filter(|&us| us > 0.0)
    };
    let low = values().fold(f64::INFINITY, f64::min).log10().floor();
    let high = values().fold(0.0, f64::max).log10().ceil().max(low + 1.0);
    if !low.is_finite() {
        return String::new();
    }
    let frame = Frame {
        left: 52.0,
        bottom: 190.0,
        x: (0.0, nines(0.9999)),
        y: (low, high),
    };
    let mut svg = open("latency percentiles of each backend", 220.0);
    let mut decade = low;
    while decade <= high {
        frame.row(&mut svg, decade, &time(10_f64.powf(decade)));
        decade += 1.0;
    }
    for (quantile, name) in LABELS {
        frame.column(&mut svg, nines(quantile), name);
    }
    for row in rows {
        let points = QUANTILES.iter().zip(&row.summary.latency_us);
        let points: Vec<String> = points
            .filter(|&(_, &us)| us > 0.0)
            .map(|(&quantile, &us)| format!("{:.1},{:.1}", frame.x(nines(quantile)), frame.y(us.log10())))
            .collect();
        let _ = write!(
            svg,
            "<polyline points='{}' class='l{} line'/>",
            points.join(" "),
            row.colour()
        );
    }
    svg + "</svg>"
}

fn nines(quantile: f64) -> f64 {
    -(1.0 - quantile).log10()
}

/// Formats a power of ten of microseconds in the unit that people use.
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
    fn times_are_shown_in_their_usual_unit() {
        assert_eq!([time(1.0), time(1e4), time(1e6)], ["1 µs", "10 ms", "1 s"]);
    }
}

use std::fmt::Write as _;

use super::{Frame, RIGHT, Row, escape, label, open, step};
use crate::table::ratio;
use crate::units::short;

const ROW: f64 = 34.0;

/// Draws each backend's ratio to the reference with its interval, and a line at 1. Empty without ratios.
pub(crate) fn ratios(rows: &[Row]) -> String {
    let with_ratio = |row: &&Row| row.summary.ratio.is_some();
    let rows: Vec<&Row> = rows.iter().filter(with_ratio).collect();
    let intervals = || rows.iter().filter_map(|row| row.summary.ratio);
    if rows.is_empty() {
        return String::new();
    }
    let low = intervals().map(|ratio| ratio.low).fold(0.95, f64::min);
    let high = intervals().map(|ratio| ratio.high).fold(1.05, f64::max);
    let margin = (high - low) * 0.05;
    let bottom = 10.0 + ROW * rows.len() as f64;
    let frame = Frame {
        left: 20.0,
        bottom,
        x: (low - margin, high + margin),
        y: (0.0, 1.0),
    };
    let mut svg = open("ratio to the first backend", bottom + 22.0);
    let step = step(high - low);
    let mut value = (frame.x.0 / step).ceil() * step;
    while value <= frame.x.1 {
        // Leave room for the label of 1.
        if (value - 1.0).abs() > step * 0.6 {
            frame.column(&mut svg, value, &format!("{}×", short(value)));
        }
        value += step;
    }
    frame.column(&mut svg, 1.0, "1×");
    let _ = write!(svg, "<path d='M{:.1} 10V{bottom}' class='range'/>", frame.x(1.0));
    for (i, row) in rows.iter().enumerate() {
        let Some(interval) = row.summary.ratio else {
            continue;
        };
        let text = 24.0 + ROW * i as f64;
        let (at, up, down) = (text + 9.0, text + 5.0, text + 13.0);
        let [low, value, high] = [interval.low, interval.value, interval.high].map(|v| frame.x(v));
        let _ = write!(
            svg,
            "<text x='8' y='{text}' class='halo'>{label}</text>\
             <text x='{RIGHT}' y='{text}' text-anchor='end' class='value halo'>{figure}</text>\
             <path d='M{low:.1} {at}H{high:.1}M{low:.1} {up}V{down}M{high:.1} {up}V{down}' class='l{colour} line'/>\
             <circle cx='{value:.1}' cy='{at}' r='4' class='f{colour}'/>",
            label = label(&row.summary.backend),
            figure = escape(&ratio(row.summary)),
            colour = row.colour(),
        );
    }
    svg + "</svg>"
}

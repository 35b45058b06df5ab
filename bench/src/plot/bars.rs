use std::fmt::Write as _;

use super::{Row, WIDTH, label, open};
use crate::units::short;

const ROW: f64 = 46.0;

/// Draws the IOPS as horizontal bars, with a line from the slowest to the fastest round.
pub(crate) fn bars(rows: &[Row]) -> String {
    let most = rows.iter().map(|row| row.summary.iops_max).fold(1.0, f64::max);
    let x = |iops: f64| iops / most * (WIDTH - 2.0);
    let mut svg = open("IOPS of each backend", ROW * rows.len() as f64);
    for (i, row) in rows.iter().enumerate() {
        let summary = row.summary;
        let top = ROW * i as f64;
        let (text, bar, middle) = (top + 15.0, top + 22.0, top + 30.0);
        let label = label(&summary.backend);
        let share = summary.share_of_limit.map_or(String::new(), |share| {
            format!(" · {:.0} % of the limit", share * 100.0)
        });
        let value = format!("{} k/s{share}", short(summary.iops / 1e3));
        let (width, low, high) = (x(summary.iops), x(summary.iops_min), x(summary.iops_max));
        let _ = write!(
            svg,
            "<text x='0' y='{text}'>{label}</text>\
             <text x='{WIDTH}' y='{text}' text-anchor='end' class='value'>{value}</text>\
             <rect x='0' y='{bar}' width='{width:.1}' height='16' rx='2' class='f{colour}'/>\
             <path d='M{low:.1} {middle}H{high:.1}M{low:.1} {bar}v16M{high:.1} {bar}v16' class='range'/>",
            colour = row.colour(),
        );
    }
    svg + "</svg>"
}

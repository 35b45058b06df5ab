use std::fmt::Write as _;

use super::{Row, WIDTH, label, open};
use crate::batches::BUCKETS;

const ROW: f64 = 74.0;
const BAR: f64 = 36.0;

/// Draws the share of each backend's notifications that covered 0, 1, 2-3, 4-7, ... completions.
pub(crate) fn batches(rows: &[Row]) -> String {
    let rows: Vec<&Row> = rows
        .iter()
        .filter(|row| !row.summary.batches.is_empty())
        .collect();
    if rows.is_empty() {
        return String::new();
    }
    let width = WIDTH / BUCKETS as f64;
    let height = ROW * rows.len() as f64 + 18.0;
    let mut svg = open("completions per notification of each backend", height);
    for (i, row) in rows.iter().enumerate() {
        let top = ROW * i as f64;
        let _ = write!(
            svg,
            "<text x='0' y='{}'>{}</text><path d='M0 {base}H{WIDTH}' class='grid'/>",
            top + 13.0,
            label(&row.summary.backend),
            base = top + ROW - 6.0,
        );
        for (bucket, (_, share)) in row.summary.batches.shares().enumerate() {
            let (x, height) = (width * bucket as f64 + 2.0, share * BAR);
            let y = top + ROW - 6.0 - height;
            let _ = write!(
                svg,
                "<rect x='{x:.1}' y='{y:.1}' width='{:.1}' height='{height:.1}' class='f{}'/>",
                width - 4.0,
                row.colour()
            );
            if share >= 0.005 {
                let (middle, base) = (x + width / 2.0 - 2.0, y - 3.0);
                let _ = write!(
                    svg,
                    "<text x='{middle:.1}' y='{base:.1}' text-anchor='middle' class='small halo'>{:.0} %</text>",
                    share * 100.0
                );
            }
        }
    }
    for (bucket, (name, _)) in rows[0].summary.batches.shares().enumerate() {
        let _ = write!(
            svg,
            "<text x='{:.1}' y='{}' text-anchor='middle' class='small'>{name}</text>",
            width * (bucket as f64 + 0.5),
            height - 4.0
        );
    }
    svg + "</svg>"
}

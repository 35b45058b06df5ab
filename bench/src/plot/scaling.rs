use std::fmt::Write as _;

use super::{Frame, Row, open, step};
use crate::sample::Summary;
use crate::shape::Shape;
use crate::units::short;

/// The name of one number of a shape, a function that returns this number, and one that returns the other two numbers.
type Axis = (&'static str, fn(Shape) -> u16, fn(Shape) -> [u16; 2]);

const AXES: [Axis; 3] = [
    ("queues", |s| s.queues, |s| [s.iodepth, s.disks]),
    ("iodepth", |s| s.iodepth, |s| [s.queues, s.disks]),
    ("disks", |s| s.disks, |s| [s.queues, s.iodepth]),
];
/// Minimum number of points of a curve.
const LEAST: usize = 3;

/// Draws every figure over queues, iodepth and disks for which there are enough points. Returns titles and plots.
pub(crate) fn curves(rows: &[Row]) -> Vec<(String, String)> {
    let mut plots = Vec::new();
    for axis in AXES {
        let Some(rows) = longest(rows, axis) else { continue };
        let (name, ..) = axis;
        let fixed = fixed(rows[0].summary.case.load.shape, name);
        for (what, of) in FIGURES {
            plots.push((
                format!("{what} over {name} ({fixed})"),
                plot(&rows, axis, what, of),
            ));
        }
    }
    plots
}

type Figure = (&'static str, fn(&Summary) -> f64);

const FIGURES: [Figure; 2] = [
    ("kIOPS", |summary| summary.iops / 1e3),
    ("CPU µs per I/O", |summary| summary.cpu_us_per_io),
];

/// Returns the largest set of rows that differ only in this number of their shape.
fn longest<'a>(rows: &[Row<'a>], (_, value, others): Axis) -> Option<Vec<Row<'a>>> {
    let shape = |row: &Row| row.summary.case.load.shape;
    let along = |of: &Row| -> Vec<Row<'a>> {
        let rest = others(shape(of));
        rows.iter()
            .filter(|row| others(shape(row)) == rest)
            .copied()
            .collect()
    };
    let points = |set: &Vec<Row>| {
        let mut values: Vec<u16> = set.iter().map(|row| value(shape(row))).collect();
        values.sort_unstable();
        values.dedup();
        values.len()
    };
    let set = rows.iter().map(along).max_by_key(points)?;
    (points(&set) >= LEAST).then_some(set)
}

fn fixed(shape: Shape, name: &str) -> String {
    let Shape {
        queues,
        iodepth,
        disks,
    } = shape;
    match name {
        "queues" => format!("iodepth {iodepth}"),
        "iodepth" => format!("{queues} queues, {disks} disks"),
        _ => format!("{queues} queues, iodepth {iodepth}"),
    }
    .replace("1 queues", "1 queue")
    .replace("1 disks", "1 disk")
}

fn plot(rows: &[Row], (_, value, _): Axis, what: &str, of: fn(&Summary) -> f64) -> String {
    let position = |row: &Row| f64::from(value(row.summary.case.load.shape)).log2();
    let most = rows
        .iter()
        .map(|row| of(row.summary))
        .fold(0.0, f64::max)
        .max(1e-3);
    let (from, to) = rows
        .iter()
        .map(&position)
        .fold((f64::INFINITY, 0.0_f64), |(low, high), at| {
            (low.min(at), high.max(at))
        });
    let frame = Frame {
        left: 44.0,
        bottom: 190.0,
        x: (from, to),
        y: (0.0, most * 1.05),
    };
    let mut svg = open(&format!("{what}, a curve for each backend"), 214.0);
    let step = step(most);
    let mut at = 0.0;
    while at <= frame.y.1 {
        frame.row(&mut svg, at, &if at == 0.0 { "0".to_owned() } else { short(at) });
        at += step;
    }
    let mut values: Vec<u16> = rows
        .iter()
        .map(|row| value(row.summary.case.load.shape))
        .collect();
    values.sort_unstable();
    values.dedup();
    for value in values {
        frame.column(&mut svg, f64::from(value).log2(), &value.to_string());
    }
    let mut backends: Vec<usize> = rows.iter().map(|row| row.backend).collect();
    backends.sort_unstable();
    backends.dedup();
    for backend in backends {
        let mut line: Vec<&Row> = rows.iter().filter(|row| row.backend == backend).collect();
        line.sort_by(|a, b| position(a).total_cmp(&position(b)));
        let points = line
            .iter()
            .map(|row| (frame.x(position(row)), frame.y(of(row.summary))));
        let text: Vec<String> = points.clone().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        let colour = line[0].colour();
        let _ = write!(
            svg,
            "<polyline points='{}' class='l{colour} line'/>",
            text.join(" ")
        );
        for (x, y) in points {
            let _ = write!(svg, "<circle cx='{x:.1}' cy='{y:.1}' r='3' class='f{colour}'/>");
        }
    }
    svg + "</svg>"
}

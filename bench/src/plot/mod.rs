//! The plots of the HTML report, as SVG. Colours and fonts come from the page's style sheet.

mod bars;
mod batches;
mod latency;
mod ratios;
mod scaling;

use std::fmt::Write as _;

pub(crate) use bars::bars;
pub(crate) use batches::batches;
pub(crate) use latency::latency;
pub(crate) use ratios::ratios;
pub(crate) use scaling::curves;

use crate::sample::Summary;

/// Width of all plots, in SVG units. Scaled to the width of a phone, text of 12 units is readable.
const WIDTH: f64 = 400.0;
/// Number of colours for backends.
const COLOURS: usize = 6;
/// Maximum number of characters of a backend's name in a plot.
const LABEL: usize = 34;
/// Number of characters that a shortened name keeps at its start.
const HEAD: usize = 19;

/// A summary and the number of its backend, which selects the same colour all over the report.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Row<'a> {
    pub(crate) backend: usize,
    pub(crate) summary: &'a Summary,
}

impl Row<'_> {
    fn colour(&self) -> usize {
        self.backend % COLOURS
    }
}

/// Draws a small square in a backend's colour, for tables and legends.
pub(crate) fn mark(backend: usize) -> String {
    format!(
        "<svg class='mark' viewBox='0 0 10 10' aria-hidden='true'><rect width='10' height='10' rx='2' class='f{}'/></svg>",
        backend % COLOURS
    )
}

/// Shortens a backend's name in the middle, so that a figure fits beside it. The legend has the whole name.
fn label(name: &str) -> String {
    let chars: Vec<char> = name.chars().collect();
    if chars.len() <= LABEL {
        return escape(name);
    }
    let (head, tail) = (&chars[..HEAD], &chars[chars.len() - (LABEL - HEAD - 1)..]);
    escape(&format!(
        "{}…{}",
        String::from_iter(head),
        String::from_iter(tail)
    ))
}

/// Escapes text for HTML and for attribute values.
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

/// The area of a plot with axes, and the position of values in it.
struct Frame {
    left: f64,
    bottom: f64,
    /// Values at the left and right ends.
    x: (f64, f64),
    /// Values at the bottom and top ends.
    y: (f64, f64),
}

const TOP: f64 = 10.0;
const RIGHT: f64 = WIDTH - 8.0;

impl Frame {
    fn x(&self, value: f64) -> f64 {
        let (from, to) = self.x;
        self.left + (value - from) / (to - from) * (RIGHT - self.left)
    }

    fn y(&self, value: f64) -> f64 {
        let (from, to) = self.y;
        self.bottom - (value - from) / (to - from) * (self.bottom - TOP)
    }

    /// Draws a horizontal line with its value at the left.
    fn row(&self, svg: &mut String, value: f64, text: &str) {
        let at = self.y(value);
        let _ = write!(
            svg,
            "<path d='M{left} {at:.1}H{RIGHT}' class='grid'/>\
             <text x='{label}' y='{base:.1}' text-anchor='end' class='value'>{text}</text>",
            left = self.left,
            label = self.left - 5.0,
            base = at + 4.0,
        );
    }

    /// Draws a vertical line with its value below.
    fn column(&self, svg: &mut String, value: f64, text: &str) {
        let at = self.x(value);
        let anchor = if at > RIGHT - 10.0 { "end" } else { "middle" };
        let _ = write!(
            svg,
            "<path d='M{at:.1} {TOP}V{bottom}' class='grid'/>\
             <text x='{at:.1}' y='{base}' text-anchor='{anchor}' class='value'>{text}</text>",
            bottom = self.bottom,
            base = self.bottom + 16.0,
        );
    }
}

/// Returns a step of 1, 2 or 5 times a power of ten that divides `span` into three to eight parts.
fn step(span: f64) -> f64 {
    let power = 10_f64.powf((span / 3.0).log10().floor());
    // 2.99 rather than 3: rounding errors must not exclude the step that divides it into three.
    let fits = |factor: &f64| span / (factor * power) >= 2.99;
    [5.0, 2.0].into_iter().find(fits).unwrap_or(1.0) * power
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_cannot_break_out_of_the_page() {
        assert_eq!(escape("<b a='x'>&\""), "&lt;b a=&#39;x&#39;&gt;&amp;&quot;");
    }

    #[test]
    fn an_axis_has_three_to_eight_round_steps() {
        for span in [0.07, 0.3, 1.0, 2.9, 17.0, 640.0, 9999.0] {
            let steps = span / step(span);
            assert!((2.9..=8.0).contains(&steps), "{span}: {steps}");
        }
    }
}

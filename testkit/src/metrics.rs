//! Reads metrics over HTTP, and parses OpenMetrics strictly, as its specification says.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};

use crate::process::DEADLINE;

/// An HTTP answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    /// The header fields, with names in lower case.
    pub fields: BTreeMap<String, String>,
    pub body: String,
}

/// A socket with a timeout.
pub trait Stream: Read + Write {
    fn give_up_late(&self);
}

impl Stream for std::net::TcpStream {
    fn give_up_late(&self) {
        self.set_read_timeout(Some(DEADLINE)).expect("not zero");
    }
}

impl Stream for std::os::unix::net::UnixStream {
    fn give_up_late(&self) {
        self.set_read_timeout(Some(DEADLINE)).expect("not zero");
    }
}

/// Sends a request and reads the answer up to the end of the connection.
pub fn request(mut stream: impl Stream, request: &str) -> Answer {
    stream.give_up_late();
    stream.write_all(request.as_bytes()).expect("send a request");
    answer(stream)
}

/// Reads an answer up to the end of the connection.
pub fn answer(mut stream: impl Stream) -> Answer {
    stream.give_up_late();
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).expect("an answer in time");
    let text = String::from_utf8(bytes).expect("UTF-8");
    let (head, body) = text
        .split_once("\r\n\r\n")
        .unwrap_or_else(|| panic!("no head: {text:?}"));
    let mut lines = head.split("\r\n");
    let status = lines.next().and_then(|line| line.strip_prefix("HTTP/1.1 "));
    let status = status.and_then(|status| status.split(' ').next()?.parse().ok());
    let field = |line: &str| {
        let (name, value) = line.split_once(": ").expect("a header field");
        (name.to_ascii_lowercase(), value.to_owned())
    };
    Answer {
        status: status.unwrap_or_else(|| panic!("no status: {head:?}")),
        fields: lines.map(field).collect(),
        body: body.to_owned(),
    }
}

/// Reads the metrics in OpenMetrics format.
pub fn scrape(stream: impl Stream) -> Metrics {
    let accept = "Accept: application/openmetrics-text; version=1.0.0\r\n";
    let answer = request(
        stream,
        &format!("GET /metrics HTTP/1.1\r\nHost: h\r\n{accept}\r\n"),
    );
    assert_eq!(answer.status, 200);
    assert_eq!(
        answer.fields["content-type"],
        "application/openmetrics-text; version=1.0.0; charset=utf-8"
    );
    assert_eq!(answer.fields["content-length"], answer.body.len().to_string());
    Metrics::parse(&answer.body)
}

type Labels = BTreeMap<String, String>;

/// All metrics of a page.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    /// The families with their types.
    pub families: BTreeMap<String, String>,
    samples: Vec<(String, Labels, f64)>,
}

impl Metrics {
    /// Parses a page.
    ///
    /// # Panics
    /// The page violates the specification.
    pub fn parse(text: &str) -> Self {
        let mut parser = Parser::default();
        let text = text.strip_suffix("# EOF\n").expect("ends with # EOF");
        for line in text.split_terminator('\n') {
            match line.strip_prefix("# ") {
                Some(descriptor) => parser.descriptor(descriptor),
                None => parser.sample(line),
            }
        }
        parser.end_family();
        let metrics = parser.metrics;
        let series: BTreeSet<_> = metrics
            .samples
            .iter()
            .map(|(name, labels, _)| (name, labels))
            .collect();
        assert_eq!(series.len(), metrics.samples.len(), "a metric occurs twice");
        metrics
    }

    /// Returns the values of a metric whose labels include these.
    pub fn values(&self, name: &str, labels: &[(&str, &str)]) -> Vec<f64> {
        let fits = |found: &Labels| labels.iter().all(|(k, v)| found.get(*k).is_some_and(|f| f == v));
        let samples = self.samples.iter().filter(|(n, l, _)| n == name && fits(l));
        samples.map(|(.., value)| *value).collect()
    }

    /// Returns the only value of a metric whose labels include these.
    ///
    /// # Panics
    /// There is none, or more than one.
    pub fn value(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        match self.values(name, labels)[..] {
            [value] => value,
            ref others => panic!("{name} {labels:?}: {others:?}"),
        }
    }
}

/// The state of the parser: the family that it is in.
#[derive(Default)]
struct Parser {
    metrics: Metrics,
    name: String,
    kind: Option<String>,
    descriptors: BTreeSet<String>,
    samples: Vec<(String, Labels, f64)>,
}

impl Parser {
    fn descriptor(&mut self, line: &str) {
        let mut parts = line.splitn(3, ' ');
        let [what, name, rest] = [(); 3].map(|()| parts.next().unwrap_or_else(|| panic!("{line}")));
        assert!(is_name(name), "{line}");
        if name != self.name {
            self.end_family();
            assert!(!self.metrics.families.contains_key(name), "{name} occurs twice");
            name.clone_into(&mut self.name);
        }
        assert!(self.samples.is_empty(), "{line}: after the metrics");
        assert!(self.descriptors.insert(what.to_owned()), "{line}: twice");
        match what {
            "TYPE" => self.kind = Some(rest.to_owned()),
            "UNIT" => assert!(name.ends_with(&format!("_{rest}")), "{line}"),
            "HELP" => assert!(rest.ends_with('.'), "{line}: a sentence"),
            _ => panic!("{line}: unknown"),
        }
    }

    fn sample(&mut self, line: &str) {
        let end = line.find(['{', ' ']).unwrap_or_else(|| panic!("{line}"));
        let (name, rest) = line.split_at(end);
        let suffix = name.strip_prefix(&self.name);
        let suffix = suffix.unwrap_or_else(|| panic!("{line}: not in family {}", self.name));
        let allowed: &[&str] = match self.kind.as_deref() {
            Some("counter") => &["_total"],
            Some("gauge") => &[""],
            Some("info") => &["_info"],
            Some("histogram") => &["_bucket", "_sum", "_count"],
            kind => panic!("{line}: of type {kind:?}"),
        };
        assert!(allowed.contains(&suffix), "{line}");
        let (labels, value) = match rest.strip_prefix('{') {
            Some(rest) => labels(rest),
            None => (Labels::new(), rest),
        };
        let value = value.strip_prefix(' ').and_then(|value| value.parse().ok());
        let value: f64 = value.unwrap_or_else(|| panic!("{line}: no value"));
        assert!(value >= 0.0 && value.is_finite(), "{line}");
        assert!(suffix != "_info" || value == 1.0, "{line}");
        self.samples.push((name.to_owned(), labels, value));
    }

    fn end_family(&mut self) {
        if self.name.is_empty() {
            return;
        }
        let name = std::mem::take(&mut self.name);
        let kind = self.kind.take().unwrap_or_else(|| panic!("{name} has no type"));
        if kind == "histogram" {
            check_histograms(&name, &self.samples);
        }
        self.descriptors.clear();
        self.metrics.samples.append(&mut self.samples);
        self.metrics.families.insert(name, kind);
    }
}

fn is_name(name: &str) -> bool {
    let first = |c: char| c.is_ascii_alphabetic() || c == '_' || c == ':';
    name.starts_with(first) && name.chars().all(|c| first(c) || c.is_ascii_digit())
}

/// Parses labels up to their closing brace. Returns them and the rest of the line.
fn labels(mut rest: &str) -> (Labels, &str) {
    let mut found = Labels::new();
    loop {
        let (name, value) = rest.split_once("=\"").unwrap_or_else(|| panic!("{rest}"));
        assert!(is_name(name) && !name.contains(':'), "{name}");
        let (text, after) = unescape(value);
        assert!(found.insert(name.to_owned(), text).is_none(), "{name} twice");
        match after.split_at(1) {
            (",", next) => rest = next,
            ("}", next) => return (found, next),
            _ => panic!("{after}"),
        }
    }
}

/// Reads a label's value up to its closing quote. Returns it and what comes after the quote.
fn unescape(text: &str) -> (String, &str) {
    let (mut value, mut chars) = (String::new(), text.char_indices());
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return (value, &text[at + 1..]),
            '\\' => match chars.next() {
                Some((_, 'n')) => value.push('\n'),
                Some((_, c @ ('\\' | '"'))) => value.push(c),
                other => panic!("{text}: {other:?} after a backslash"),
            },
            c => value.push(c),
        }
    }
    panic!("{text}: no closing quote")
}

/// Checks that buckets rise up to `+Inf`, which equals the count.
fn check_histograms(name: &str, samples: &[(String, Labels, f64)]) {
    let mut histograms: BTreeMap<Labels, Vec<(f64, f64)>> = BTreeMap::new();
    let mut counts = BTreeMap::new();
    let mut sums = BTreeSet::new();
    for (sample, labels, value) in samples {
        let mut labels = labels.clone();
        let le = labels.remove("le").map(|le| match &*le {
            "+Inf" => f64::INFINITY,
            le => le.parse().unwrap_or_else(|_| panic!("{name}: le={le}")),
        });
        match (sample.strip_prefix(name), le) {
            (Some("_bucket"), Some(le)) => histograms.entry(labels).or_default().push((le, *value)),
            (Some("_count"), None) => assert!(counts.insert(labels, *value).is_none()),
            (Some("_sum"), None) => assert!(sums.insert(labels)),
            _ => panic!("{sample}: le={le:?}"),
        }
    }
    assert_eq!(
        (counts.len(), sums.len()),
        (histograms.len(), histograms.len()),
        "{name}"
    );
    for (labels, buckets) in histograms {
        let rises = |pair: &[(f64, f64)]| pair[0].0 < pair[1].0 && pair[0].1 <= pair[1].1;
        assert!(buckets.windows(2).all(rises), "{name} {labels:?}: {buckets:?}");
        let last = buckets.last().expect("a bucket");
        assert_eq!(*last, (f64::INFINITY, counts[&labels]), "{name} {labels:?}");
        assert!(sums.contains(&labels), "{name} {labels:?}");
    }
}

#[cfg(test)]
mod tests {
    use std::panic::catch_unwind;

    use super::Metrics;

    const PAGE: &str = "# HELP a A.\n# TYPE a counter\na_total{x=\"\\\"\\\\\\n\",y=\"2\"} 3\n\
        # TYPE t_seconds histogram\n# UNIT t_seconds seconds\nt_seconds_sum 0.5\nt_seconds_count 2\n\
        t_seconds_bucket{le=\"0.1\"} 1\nt_seconds_bucket{le=\"+Inf\"} 2\n# EOF\n";

    #[test]
    fn strict_pages_are_read() {
        let page = Metrics::parse(PAGE);
        assert_eq!(page.value("a_total", &[("x", "\"\\\n")]), 3.0);
        assert_eq!(page.values("t_seconds_bucket", &[]), [1.0, 2.0]);
        assert_eq!(page.families["t_seconds"], "histogram");
    }

    #[test]
    fn mistakes_are_found() {
        for (part, wrong) in [
            ("# EOF\n", "# EOF"),
            ("# EOF\n", "\n# EOF\n"),
            ("# EOF\n", "# EOF\n# EOF\n"),
            ("a_total{", "a{"),
            ("a_total{", "b_total{"),
            ("y=\"2\"", "x=\"2\""),
            ("y=\"2\"", "y=\"2"),
            ("y=\"2\"", "y=\"\\2\""),
            ("} 3\n", "} -3\n"),
            ("} 3\n", "} NaN\n"),
            ("} 3\n", "}3\n"),
            ("# TYPE a counter\n", ""),
            ("# TYPE a counter\n", "# TYPE a counter\n# TYPE a counter\n"),
            ("# HELP a A.\n", "# HELP b A.\n"),
            ("# UNIT t_seconds seconds\n", "# UNIT t_seconds bytes\n"),
            ("le=\"0.1\"} 1", "le=\"0.1\"} 3"),
            ("le=\"+Inf\"} 2", "le=\"+Inf\"} 3"),
            ("le=\"+Inf\"", "le=\"9\""),
            ("t_seconds_sum 0.5\n", ""),
            ("t_seconds_count 2\n", "t_seconds_count 2\nt_seconds_count 2\n"),
            (
                "# TYPE t_seconds histogram\n",
                "# TYPE a counter\na_total 1\n# TYPE t_seconds histogram\n",
            ),
        ] {
            assert!(PAGE.contains(part), "{part}");
            let page = PAGE.replacen(part, wrong, 1);
            assert!(catch_unwind(|| Metrics::parse(&page)).is_err(), "{page}");
        }
    }
}

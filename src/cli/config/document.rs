//! The values of a configuration file, and the lines on which they stand.

use std::collections::BTreeMap;

use serde_json::{Map, Number, Value};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::strict_json::Strict;

/// A configuration file as values, whatever its format.
#[derive(Debug)]
pub(super) struct Document {
    pub(super) root: Map<String, Value>,
    pub(super) lines: Lines,
}

/// The lines of keys by their paths, such as `blockdev[1].cache.direct`. Empty if the format does not tell.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Lines(BTreeMap<String, usize>);

/// A mistake that keeps a text from being read at all.
#[derive(Debug)]
pub(super) struct Mistake {
    /// The line, if it is known.
    pub(super) line: Option<usize>,
    pub(super) text: String,
}

impl Document {
    /// Reads a text: JSON if it begins with `{`, else TOML. A byte order mark before it means nothing.
    pub(super) fn read(text: &str) -> Result<Self, Mistake> {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        match text.trim_start().starts_with('{') {
            true => from_json(text),
            false => from_toml(text),
        }
    }
}

impl Lines {
    /// Returns the line of the key at `path`, or of the nearest key around it.
    pub(super) fn of(&self, path: &str) -> Option<usize> {
        let mut path = path;
        loop {
            if let Some(line) = self.0.get(path) {
                return Some(*line);
            }
            path = &path[..path.rfind(['.', '['])?];
        }
    }

    fn note(&mut self, path: &str, line: usize) {
        self.0.insert(path.to_owned(), line);
    }
}

fn from_json(text: &str) -> Result<Document, Mistake> {
    match serde_json::from_str(text) {
        Ok(Strict(Value::Object(root))) => Ok(Document {
            root,
            lines: Lines::default(),
        }),
        Ok(Strict(_)) => Err(Mistake {
            line: None,
            text: "not a JSON object".to_owned(),
        }),
        Err(error) => {
            let told = error.to_string();
            let reason = told.split(" at line ").next().unwrap_or(&told);
            Err(Mistake {
                line: Some(error.line()),
                text: format!("not valid JSON: {reason} (column {})", error.column()),
            })
        }
    }
}

fn from_toml(text: &str) -> Result<Document, Mistake> {
    let starts = Starts::of(text);
    let table = DeTable::parse(text).map_err(|error| Mistake {
        line: error.span().map(|span| starts.line(span.start)),
        text: format!("not valid TOML: {}", error.message()),
    })?;
    let mut lines = Lines::default();
    let root = to_map(table.get_ref(), "", &starts, &mut lines)?;
    Ok(Document { root, lines })
}

/// The positions at which the lines of a text start.
struct Starts(Vec<usize>);

impl Starts {
    fn of(text: &str) -> Self {
        let after = text.match_indices('\n').map(|(at, _)| at + 1);
        Self(std::iter::once(0).chain(after).collect())
    }

    /// Returns the number of the line that has this position. The first line has the number 1.
    fn line(&self, position: usize) -> usize {
        self.0.partition_point(|start| *start <= position)
    }
}

fn to_map(
    table: &DeTable<'_>,
    path: &str,
    starts: &Starts,
    lines: &mut Lines,
) -> Result<Map<String, Value>, Mistake> {
    let mut map = Map::new();
    for (key, value) in table {
        let name = key.get_ref();
        let path = match path {
            "" => name.clone().into_owned(),
            _ => format!("{path}.{name}"),
        };
        lines.note(&path, starts.line(key.span().start));
        map.insert(name.clone().into_owned(), to_value(value, &path, starts, lines)?);
    }
    Ok(map)
}

fn to_value(
    value: &Spanned<DeValue<'_>>,
    path: &str,
    starts: &Starts,
    lines: &mut Lines,
) -> Result<Value, Mistake> {
    let refused = |what: &str| {
        Err(Mistake {
            line: Some(starts.line(value.span().start)),
            text: format!("'{path}' is {what}, which no option takes"),
        })
    };
    match value.get_ref() {
        DeValue::String(text) => Ok(Value::String(text.clone().into_owned())),
        DeValue::Boolean(on) => Ok(Value::Bool(*on)),
        DeValue::Integer(digits) => {
            let (digits, radix) = (digits.as_str(), digits.radix());
            let positive = u64::from_str_radix(digits, radix).map(Number::from);
            let number = positive.or_else(|_| i64::from_str_radix(digits, radix).map(Number::from));
            number.map_or_else(|_| refused("a number beyond 64 bits"), |number| Ok(number.into()))
        }
        DeValue::Float(digits) => {
            let number = digits.as_str().parse().ok().and_then(Number::from_f64);
            number.map_or_else(|| refused("not a finite number"), |number| Ok(number.into()))
        }
        DeValue::Datetime(_) => refused("a date or a time"),
        DeValue::Array(list) => {
            let element = |(index, element): (usize, &Spanned<DeValue<'_>>)| {
                let path = format!("{path}[{index}]");
                lines.note(&path, starts.line(element.span().start));
                to_value(element, &path, starts, lines)
            };
            list.iter().enumerate().map(element).collect()
        }
        DeValue::Table(table) => to_map(table, path, starts, lines).map(Value::Object),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn both_formats_have_the_same_values() {
        let toml = "a = 1\n[[t]]\nx.y = true\nz = \"s\"\n[[t]]\nlist = ['p', 'q']\nbig = 18446744073709551615\nneg = -1\n";
        let json = r#" {"a": 1, "t": [{"x": {"y": true}, "z": "s"},
                        {"list": ["p", "q"], "big": 18446744073709551615, "neg": -1}]}"#;
        let root = |text| Value::Object(Document::read(text).expect(text).root);
        assert_eq!(root(toml), root(json));
        assert_eq!(root("hex = 0xff\nsep = 1_000"), json!({"hex": 255, "sep": 1000}));
        assert_eq!(root(""), json!({}));
    }

    #[test]
    fn a_byte_order_mark_means_nothing() {
        for text in ["a = 1\n", "{\"a\": 1}", " {\"a\": 1}"] {
            let marked = format!("\u{feff}{text}");
            let document = Document::read(&marked).expect(text);
            assert_eq!(Value::Object(document.root), json!({"a": 1}), "{text}");
        }
    }

    #[test]
    fn keys_are_found_on_their_lines() {
        let text = "# comment\na = 1\n\n[[t]]\nx.y = true\n[[t]]\n[t.sub]\nz = [\n  1,\n]\n";
        let lines = Document::read(text).expect("valid").lines;
        for (path, line) in [
            ("a", Some(2)),
            ("t[0].x.y", Some(5)),
            ("t[0].none", Some(4)),
            ("t[1]", Some(6)),
            ("t[1].sub.z[0]", Some(9)),
            ("t[1].sub.z.deeper", Some(8)),
            ("none", None),
        ] {
            assert_eq!(lines.of(path), line, "{path}");
        }
    }

    #[test]
    fn mistakes_have_a_line() {
        for (text, line, word) in [
            ("a = 1\na = 2\n", 2, "TOML"),
            ("a = 1\nb = \n", 2, "TOML"),
            ("\na = 1979-05-27", 2, "date"),
            ("a = nan", 1, "finite"),
            ("a = 99999999999999999999", 1, "64 bits"),
            ("{\n\"a\": }", 2, "JSON"),
            ("[1", 1, "TOML"),
        ] {
            let mistake = Document::read(text).expect_err(text);
            assert_eq!(mistake.line, Some(line), "{text}: {mistake:?}");
            assert!(mistake.text.contains(word), "{text}: {mistake:?}");
        }
    }
}

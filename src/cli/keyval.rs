//! Reads options that consist of keys and values, such as `file,node-name=disk,cache.direct=on`, or the same as JSON.

use serde_json::{Map, Value};

use crate::daemon::options::Origin;
use crate::qmp::parse_object;

/// Reads a list of keys and values, or a JSON object as over QMP. `implied` is the key of a first value that is given without a
/// key.
///
/// As in QEMU, a comma in a value is doubled, dots in keys make nested objects, and numeric keys make lists.
///
/// # Errors
/// The text has a mistake. The error is one line.
pub(super) fn parse(text: &str, implied: &str) -> Result<(Value, Origin), String> {
    parse_with_words(text, implied, &[])
}

/// Like [`parse`], with words that stand for a key and its value.
pub(super) fn parse_with_words(
    text: &str,
    implied: &str,
    words: &[(&str, (&str, &str))],
) -> Result<(Value, Origin), String> {
    if text.starts_with('{') {
        let object = parse_object(text).map_err(|error| format!("no JSON: {error}"))?;
        return Ok((object.into(), Origin::Json));
    }
    let mut map = Map::new();
    for (position, part) in split(text).into_iter().enumerate() {
        let (key, value) = match part.split_once('=') {
            Some((key, value)) => (key.to_owned(), value.to_owned()),
            None if position == 0 => (implied.to_owned(), part),
            None => match words.iter().find(|(word, _)| *word == part) {
                Some((_, (key, value))) => ((*key).to_owned(), (*value).to_owned()),
                None => return Err(format!("no value for '{part}': write {part}=VALUE")),
            },
        };
        insert(&mut map, &key, &key, value)?;
    }
    Ok((lists(Value::Object(map)), Origin::Text))
}

/// Splits the text at single commas. A double comma is a comma in a value.
pub(super) fn split(text: &str) -> Vec<String> {
    let (mut parts, mut rest) = (vec![String::new()], text.chars().peekable());
    while let Some(c) = rest.next() {
        let is_double = c == ',' && rest.peek() == Some(&',');
        if is_double {
            rest.next();
        }
        match parts.last_mut() {
            Some(part) if c != ',' || is_double => part.push(c),
            _ => parts.push(String::new()),
        }
    }
    if parts.last().is_some_and(String::is_empty) {
        parts.pop();
    }
    parts
}

/// Stores a value in the object that `key` leads to. `key` is a part of `whole`.
fn insert(map: &mut Map<String, Value>, key: &str, whole: &str, value: String) -> Result<(), String> {
    let (first, rest) = match key.split_once('.') {
        Some((first, rest)) => (first, Some(rest)),
        None => (key, None),
    };
    if first.is_empty() {
        return Err(format!("'{whole}' is not a name of a parameter"));
    }
    let clash = || format!("'{whole}' is given twice, as a value and as an object");
    match rest {
        None => match map.get(first) {
            // If a key is repeated, its last value counts.
            None | Some(Value::String(_)) => {
                map.insert(first.to_owned(), Value::String(value));
                Ok(())
            }
            Some(_) => Err(clash()),
        },
        Some(rest) => {
            let inner = map.entry(first).or_insert_with(|| Value::Object(Map::new()));
            insert(inner.as_object_mut().ok_or_else(clash)?, rest, whole, value)
        }
    }
}

/// Turns objects with the keys 0, 1, 2 and so on into lists.
fn lists(value: Value) -> Value {
    let Value::Object(map) = value else { return value };
    let map: Map<String, Value> = map.into_iter().map(|(key, value)| (key, lists(value))).collect();
    let is_list = !map.is_empty() && (0..map.len()).all(|index| map.contains_key(&index.to_string()));
    match is_list {
        true => (0..map.len())
            .filter_map(|index| map.get(&index.to_string()).cloned())
            .collect(),
        false => Value::Object(map),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn value(text: &str) -> Value {
        parse(text, "driver").unwrap().0
    }

    #[test]
    fn dots_commas_and_numbers_are_read_as_in_qemu() {
        assert_eq!(value("file"), json!({"driver": "file"}));
        assert_eq!(
            value("driver=file,node-name=d,cache.direct=on,cache.no-flush=off"),
            json!({"driver": "file", "node-name": "d", "cache": {"direct": "on", "no-flush": "off"}})
        );
        assert_eq!(
            value("file,filename=a,,b=c"),
            json!({"driver": "file", "filename": "a,b=c"})
        );
        assert_eq!(
            value("type=x,iothread.0=a,iothread.1=b"),
            json!({"type": "x", "iothread": ["a", "b"]})
        );
        assert_eq!(
            value("raw,file.driver=null-co,"),
            json!({"driver": "raw", "file": {"driver": "null-co"}})
        );
        assert_eq!(
            value("null-co,size=1,size=2"),
            json!({"driver": "null-co", "size": "2"})
        );
    }

    #[test]
    fn json_is_taken_as_it_is() {
        let (value, origin) = parse(r#"{"driver": "file", "read-only": true}"#, "driver").unwrap();
        assert_eq!(
            (value, origin),
            (json!({"driver": "file", "read-only": true}), Origin::Json)
        );
    }

    #[test]
    fn json_may_have_single_quotes() {
        let (value, origin) = parse("{'driver': 'null-co', 'node-name': 'it\\'s \"n\"' } ", "x").unwrap();
        assert_eq!(value, json!({"driver": "null-co", "node-name": "it's \"n\""}));
        assert_eq!(origin, Origin::Json);
        for (bad, reason) in [
            ("{'a': 1", "the end is missing"),
            ("{'a': 1} {}", "text after the end"),
            ("{'a': 1, 'a': 2}", "duplicate key"),
        ] {
            let error = parse(bad, "x").unwrap_err();
            assert!(error.contains(reason), "{bad}: {error}");
        }
    }

    #[test]
    fn malformed_lists_are_refused() {
        for bad in [
            "file,read-only",
            "{",
            r#"{"driver": "file", "driver": "raw"}"#,
            "file,.x=1",
            "a=1,a.b=2",
            "a.b=2,a=1",
            "file,=1",
        ] {
            let error = parse(bad, "driver").unwrap_err();
            assert!(!error.contains('\n'), "{bad}: {error}");
        }
    }
}

//! Writes the options of objects, nodes and exports in each notation that the daemon reads.

use serde_json::Value;

/// Returns a configuration file in TOML that has one table in this list. There is no notation for null.
pub fn toml(list: &str, options: &Value) -> String {
    let mut text = format!("[[{list}]]\n");
    for (key, value) in options.as_object().into_iter().flatten() {
        text += &format!("{} = {}\n", Value::from(key.as_str()), inline(value));
    }
    text
}

/// Returns a value as TOML in one line. Strings must be printable ASCII.
fn inline(value: &Value) -> String {
    match value {
        Value::Array(list) => {
            let list: Vec<String> = list.iter().map(inline).collect();
            format!("[{}]", list.join(", "))
        }
        Value::Object(map) => {
            let member = |(key, value): (&String, &Value)| {
                format!("{} = {}", Value::from(key.as_str()), inline(value))
            };
            let map: Vec<String> = map.iter().map(member).collect();
            format!("{{ {} }}", map.join(", "))
        }
        // The notation of strings, numbers and switches is that of JSON.
        other => other.to_string(),
    }
}

/// Returns a configuration file in JSON that has one table in this list.
pub fn json(list: &str, options: &Value) -> String {
    serde_json::json!({ list: [options] }).to_string()
}

/// Returns the options as keys and values for a command line. There is no notation for an empty list or table.
pub fn text(options: &Value) -> Option<String> {
    let mut parts = Vec::new();
    flatten("", options, &mut parts).then(|| parts.join(","))
}

fn flatten(key: &str, value: &Value, parts: &mut Vec<String>) -> bool {
    let within = |name: &str| match key {
        "" => name.to_owned(),
        _ => format!("{key}.{name}"),
    };
    let word = match value {
        Value::Null => return false,
        Value::Bool(on) => if *on { "on" } else { "off" }.to_owned(),
        Value::Number(number) => number.to_string(),
        Value::String(text) => text.replace(',', ",,"),
        Value::Array(list) => {
            let mut elements = list.iter().enumerate();
            return !list.is_empty()
                && elements.all(|(index, value)| flatten(&within(&index.to_string()), value, parts));
        }
        Value::Object(map) => {
            return !map.is_empty()
                && map
                    .iter()
                    .all(|(name, value)| flatten(&within(name), value, parts));
        }
    };
    parts.push(format!("{key}={word}"));
    true
}

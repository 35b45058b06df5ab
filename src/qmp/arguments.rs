//! Checks arguments against their types. Errors have QEMU's wording.

use serde_json::{Map, Value};

use super::error::QmpError;
use super::schema::{Member, Object, Type};

/// Checks that `arguments` are an object of type `of`.
///
/// # Errors
/// A member is missing, unknown, or of the wrong type. The error names the first such member.
pub fn check(of: &Object, arguments: &Map<String, Value>) -> Result<(), QmpError> {
    check_object(of, arguments, "")
}

fn check_object(of: &Object, value: &Map<String, Value>, path: &str) -> Result<(), QmpError> {
    check_members(of.members, value, path)?;
    let case = of.variants.as_ref().and_then(|variants| {
        let tag = value.get(variants.tag).and_then(Value::as_str);
        variants.cases.iter().find(|(case, _)| Some(*case) == tag)
    });
    let further = case.map_or(&[][..], |(_, of)| of.members);
    check_members(further, value, path)?;
    let known = |name: &str| of.members.iter().chain(further).any(|member| member.name == name);
    match value.keys().find(|name| !known(name)) {
        Some(name) => Err(QmpError::unexpected(&join(path, name))),
        None => Ok(()),
    }
}

fn check_members(members: &[Member], value: &Map<String, Value>, path: &str) -> Result<(), QmpError> {
    for member in members {
        let path = join(path, member.name);
        match value.get(member.name) {
            Some(value) => check_value(&member.value, value, &path)?,
            None if member.optional => {}
            None => return Err(QmpError::missing(&path)),
        }
    }
    Ok(())
}

fn check_value(of: &Type, value: &Value, path: &str) -> Result<(), QmpError> {
    let wrong = |expected| Err(QmpError::wrong_type(path, expected));
    let expects = |expected| Err(QmpError::expects(path, expected));
    match (of, value) {
        (Type::Any, _)
        | (Type::Str, Value::String(_))
        | (Type::Bool, Value::Bool(_))
        | (Type::Number, Value::Number(_))
        | (Type::Null, Value::Null) => Ok(()),
        (Type::Int, Value::Number(number)) if number.is_i64() => Ok(()),
        (Type::U64, Value::Number(number)) if number.is_u64() => Ok(()),
        (Type::U32, Value::Number(number)) if fits(number.as_u64(), u32::MAX.into()) => Ok(()),
        (Type::U16, Value::Number(number)) if fits(number.as_u64(), u16::MAX.into()) => Ok(()),
        (Type::Array(element), Value::Array(values)) => values
            .iter()
            .enumerate()
            .try_for_each(|(n, value)| check_value(element, value, &format!("{path}[{n}]"))),
        (Type::Enum(of), Value::String(word)) => match of.values.contains(&word.as_str()) {
            true => Ok(()),
            false => Err(QmpError::unknown_value(path, word)),
        },
        (Type::Object(of), Value::Object(members)) => check_object(of, members, path),
        (Type::Alternate(of), _) => match of.cases.iter().find(|case| has_form(case, value)) {
            Some(case) => check_value(case, value, path),
            None => wrong(of.name),
        },
        (Type::Str | Type::Enum(_), _) => wrong("string"),
        (Type::Bool, _) => wrong("boolean"),
        (Type::Number, _) => wrong("number"),
        (Type::Null, _) => wrong("null"),
        (Type::Array(_), _) => wrong("array"),
        (Type::Object(_), _) => wrong("object"),
        (Type::Int, _) => wrong("integer"),
        (Type::U64, _) => expects("uint64"),
        (Type::U32, _) => expects("uint32_t"),
        (Type::U16, _) => expects("uint16_t"),
    }
}

fn fits(number: Option<u64>, max: u64) -> bool {
    number.is_some_and(|number| number <= max)
}

/// Returns whether a value has the JSON form of a type, whatever its content.
fn has_form(of: &Type, value: &Value) -> bool {
    match of {
        Type::Str | Type::Enum(_) => value.is_string(),
        Type::Bool => value.is_boolean(),
        Type::Int | Type::U64 | Type::U32 | Type::U16 | Type::Number => value.is_number(),
        Type::Null => value.is_null(),
        Type::Any => true,
        Type::Array(_) => value.is_array(),
        Type::Object(_) => value.is_object(),
        Type::Alternate(of) => of.cases.iter().any(|case| has_form(case, value)),
    }
}

fn join(path: &str, name: &str) -> String {
    match path {
        "" => name.to_owned(),
        _ => format!("{path}.{name}"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::qmp::schema::{Alternate, Enum, optional, required};

    static KIND: Enum = Enum {
        name: "Kind",
        values: &["unix", "fd", "none"],
    };
    static ADDRESS: Object = Object::union(
        "Address",
        &[required("type", Type::Enum(&KIND))],
        "type",
        &[
            ("unix", &Object::new("Unix", &[required("path", Type::Str)])),
            ("fd", &Object::new("Fd", &[required("str", Type::Str)])),
        ],
    );
    static NAME_OR_NAMES: Alternate = Alternate {
        name: "NameOrNames",
        cases: &[Type::Str, Type::Array(&Type::Str), Type::Null],
    };
    static ARGUMENTS: Object = Object::new(
        "Arguments",
        &[
            required("id", Type::Str),
            required("addr", Type::Object(&ADDRESS)),
            optional("queues", Type::U16),
            optional("size", Type::Int),
            optional("limit", Type::U64),
            optional("on", Type::Bool),
            optional("names", Type::Alternate(&NAME_OR_NAMES)),
        ],
    );

    fn refusal(change: Value) -> Option<String> {
        let mut arguments = json!({"id": "x", "addr": {"type": "unix", "path": "p"}});
        let (Value::Object(change), Value::Object(arguments)) = (change, &mut arguments) else {
            panic!("objects");
        };
        for (name, value) in change {
            match value == "-" {
                true => arguments.remove(&name),
                false => arguments.insert(name, value),
            };
        }
        check(&ARGUMENTS, arguments).err().map(|error| error.desc)
    }

    #[test]
    fn arguments_that_fit_are_accepted() {
        for change in [
            json!({}),
            json!({"queues": 65535, "size": -1, "limit": u64::MAX, "on": false, "names": "a"}),
            json!({"names": ["a", "b"]}),
            json!({"names": null}),
            json!({"addr": {"type": "fd", "str": "x"}}),
            json!({"addr": {"type": "none"}}),
        ] {
            assert_eq!(refusal(change), None);
        }
    }

    #[test]
    fn refusals_name_the_parameter() {
        for (change, expected) in [
            (json!({"id": "-"}), "Parameter 'id' is missing"),
            (json!({"more": 1}), "Parameter 'more' is unexpected"),
            (
                json!({"id": 5}),
                "Invalid parameter type for 'id', expected: string",
            ),
            (
                json!({"addr": {"type": "vsock"}}),
                "Parameter 'addr.type' does not accept value 'vsock'",
            ),
            (
                json!({"addr": {"type": "unix"}}),
                "Parameter 'addr.path' is missing",
            ),
            (
                json!({"addr": {"type": "fd", "str": "x", "path": "p"}}),
                "Parameter 'addr.path' is unexpected",
            ),
            (
                json!({"addr": []}),
                "Invalid parameter type for 'addr', expected: object",
            ),
            (json!({"queues": 65536}), "Parameter 'queues' expects uint16_t"),
            (json!({"queues": "4"}), "Parameter 'queues' expects uint16_t"),
            (json!({"limit": -1}), "Parameter 'limit' expects uint64"),
            (
                json!({"size": 1.5}),
                "Invalid parameter type for 'size', expected: integer",
            ),
            (
                json!({"on": "on"}),
                "Invalid parameter type for 'on', expected: boolean",
            ),
            (
                json!({"names": ["a", 1]}),
                "Invalid parameter type for 'names[1]', expected: string",
            ),
            (
                json!({"names": 1}),
                "Invalid parameter type for 'names', expected: NameOrNames",
            ),
        ] {
            assert_eq!(refusal(change).as_deref(), Some(expected));
        }
    }
}

//! `query-qmp-schema` describes the commands as they are.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::client::Client;
use crate::server::Server;

/// Returns the entities of the schema by name.
pub(crate) fn entities(client: &mut Client) -> BTreeMap<String, Value> {
    let schema = client.run("query-qmp-schema", &json!({}));
    let list = schema.as_array().expect("a list").clone();
    let count = list.len();
    let named = list.into_iter().map(|entity| {
        let name = entity["name"].as_str().expect("a name").to_owned();
        (name, entity)
    });
    let named: BTreeMap<_, _> = named.collect();
    assert_eq!(named.len(), count, "each name once");
    named
}

/// Returns the names of the types that an entity refers to.
fn references(entity: &Value) -> Vec<String> {
    let direct = ["arg-type", "ret-type", "element-type"]
        .iter()
        .filter_map(|key| entity[*key].as_str());
    let listed = ["members", "variants"]
        .iter()
        .filter_map(|key| entity[*key].as_array())
        .flatten()
        .filter_map(|member| member["type"].as_str());
    direct.chain(listed).map(str::to_owned).collect()
}

/// Makes the `n`th value of a type. With `all`, the value has the optional members, too.
fn sample(types: &BTreeMap<String, Value>, name: &str, all: bool, n: usize) -> Value {
    let entity = &types[name];
    let text = |of: &Value| of.as_str().expect("text").to_owned();
    let nth = |list: &Value| {
        let list = list.as_array().expect("a list");
        list[n % list.len()].clone()
    };
    match entity["meta-type"].as_str().expect("a kind") {
        "builtin" => match entity["json-type"].as_str().expect("a form") {
            "string" => json!("a"),
            "boolean" => json!(true),
            "int" | "number" => json!(1),
            _ => Value::Null,
        },
        "enum" => nth(&entity["values"]),
        "array" => json!([sample(types, &text(&entity["element-type"]), all, n)]),
        // `n + 1` selects another member, so that a node is not its own child.
        "alternate" => sample(types, &text(&nth(&entity["members"])["type"]), false, n + 1),
        "object" => object(types, entity, all, n),
        other => panic!("{other} is no type"),
    }
}

fn object(types: &BTreeMap<String, Value>, entity: &Value, all: bool, n: usize) -> Value {
    let members = entity["members"].as_array().expect("members");
    let wanted = members
        .iter()
        .filter(|member| all || member.get("default").is_none());
    let mut object: Map<String, Value> = wanted
        .map(|member| {
            let text = |key: &str| member[key].as_str().expect("text").to_owned();
            (text("name"), sample(types, &text("type"), all, n))
        })
        .collect();
    if let Some(tag) = entity["tag"].as_str() {
        let cases = entity["variants"].as_array().expect("a list").iter();
        let case = cases.into_iter().find(|case| case["case"] == object[tag]);
        let of = case.and_then(|case| case["type"].as_str());
        let of = of.expect("every value of the tag has a case");
        if let Value::Object(further) = sample(types, of, all, n) {
            object.extend(further);
        }
    }
    Value::Object(object)
}

/// Checks that a value is of this type. `place` is its place in the answer.
fn check_value(types: &BTreeMap<String, Value>, name: &str, value: &Value, place: &str) {
    let entity = &types[name];
    let text = |of: &Value| of.as_str().expect("text").to_owned();
    let is = match entity["meta-type"].as_str().expect("a kind") {
        "builtin" => has_form(value, &text(&entity["json-type"])),
        "enum" => entity["values"].as_array().expect("a list").contains(value),
        "array" => value.as_array().is_some_and(|elements| {
            let element = text(&entity["element-type"]);
            let all = elements.iter().enumerate();
            all.for_each(|(n, value)| check_value(types, &element, value, &format!("{place}[{n}]")));
            true
        }),
        "object" => value.as_object().is_some_and(|object| {
            check_members(types, entity, object, place);
            true
        }),
        other => panic!("{place} is of kind {other}"),
    };
    assert!(is, "{place} is not {name}: {value}");
}

fn has_form(value: &Value, form: &str) -> bool {
    match form {
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "int" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        "null" => value.is_null(),
        _ => true,
    }
}

fn check_members(types: &BTreeMap<String, Value>, entity: &Value, object: &Map<String, Value>, place: &str) {
    let mut members = entity["members"].as_array().expect("members").clone();
    if let Some(tag) = entity["tag"].as_str() {
        let mut cases = entity["variants"].as_array().expect("a list").iter();
        let case = cases.find(|case| case["case"] == object[tag]);
        let of = case.and_then(|case| case["type"].as_str());
        let of = &types[of.expect("every value of the tag has a case")];
        members.extend(of["members"].as_array().expect("members").clone());
    }
    for (name, value) in object {
        let place = format!("{place}.{name}");
        let member = members.iter().find(|member| member["name"] == *name);
        let member = member.unwrap_or_else(|| panic!("{place} is not in the schema"));
        check_value(types, member["type"].as_str().expect("a type"), value, &place);
    }
    for member in members.iter().filter(|member| member.get("default").is_none()) {
        let name = member["name"].as_str().expect("a name");
        assert!(object.contains_key(name), "{place}.{name} is missing");
    }
}

/// Runs every command except those in `except`. The arguments are made from the schema alone, so their types must be
/// right. Answers and events must have the members that the schema says.
pub(crate) fn take_what_the_schema_says(client: &mut Client, except: &[&str]) {
    let entities = entities(client);
    for (name, entity) in entities
        .iter()
        .filter(|(_, entity)| entity["meta-type"] == "command")
    {
        if except.contains(&name.as_str()) {
            continue;
        }
        let of = entity["arg-type"].as_str().expect("a type");
        for (all, n) in [false, true]
            .into_iter()
            .flat_map(|all| (0..6).map(move |n| (all, n)))
        {
            let arguments = sample(&entities, of, all, n);
            let mut answer = client.ask(&json!({"execute": name, "arguments": arguments}));
            while let Some(event) = answer["event"].as_str() {
                let of = entities[event]["arg-type"].as_str().expect("a type");
                check_value(&entities, of, answer.get("data").unwrap_or(&json!({})), event);
                answer = client.next();
            }
            if let Some(value) = answer.get("return") {
                check_value(
                    &entities,
                    entity["ret-type"].as_str().expect("a type"),
                    value,
                    name,
                );
            }
            let desc = answer["error"]["desc"].as_str().unwrap_or_default();
            for wrong in ["Invalid", "missing", "unexpected", "does not accept"] {
                assert!(!desc.contains(wrong), "{name} {arguments}: {desc}");
            }
        }
    }
}

#[test]
fn the_schema_is_complete() {
    let server = Server::start();
    check(&mut server.connect());
}

/// Checks that every type in use is described and every command is listed.
pub(crate) fn check(client: &mut Client) {
    let entities = entities(client);
    for entity in entities.values() {
        for name in references(entity) {
            assert!(entities.contains_key(&name), "{name}, which {entity} mentions");
        }
    }
    let listed = client.run("query-commands", &json!({}));
    let mut listed: Vec<_> = listed
        .as_array()
        .expect("a list")
        .iter()
        .map(|c| c["name"].clone())
        .collect();
    listed.sort_by_key(ToString::to_string);
    let described = entities
        .values()
        .filter(|entity| entity["meta-type"] == "command");
    assert_eq!(
        listed,
        described.map(|entity| entity["name"].clone()).collect::<Vec<_>>()
    );
}

#[test]
fn commands_take_what_the_schema_says() {
    let server = Server::start();
    take_what_the_schema_says(&mut server.connect(), &["qmp_capabilities", "x-later"]);
}

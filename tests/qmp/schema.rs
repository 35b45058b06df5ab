//! `query-qmp-schema` tells the truth.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::client::Client;
use crate::server::Server;

/// The entities of a schema by name.
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

/// Every name of a type that an entity refers to.
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

/// Makes a value of a type. With `all`, optional members are there too.
fn sample(types: &BTreeMap<String, Value>, name: &str, all: bool) -> Value {
    let entity = &types[name];
    match entity["meta-type"].as_str().expect("a kind") {
        "builtin" => match entity["json-type"].as_str().expect("a form") {
            "string" => json!("a"),
            "boolean" => json!(true),
            "int" | "number" => json!(1),
            _ => Value::Null,
        },
        "enum" => entity["values"][0].clone(),
        "array" => json!([sample(
            types,
            entity["element-type"].as_str().expect("a type"),
            all
        )]),
        "alternate" => sample(types, entity["members"][0]["type"].as_str().expect("a type"), all),
        "object" => object(types, entity, all),
        other => panic!("{other} is no type"),
    }
}

fn object(types: &BTreeMap<String, Value>, entity: &Value, all: bool) -> Value {
    let members = entity["members"].as_array().expect("members");
    let wanted = members
        .iter()
        .filter(|member| all || member.get("default").is_none());
    let mut object: Map<String, Value> = wanted
        .map(|member| {
            let text = |key: &str| member[key].as_str().expect("text").to_owned();
            (text("name"), sample(types, &text("type"), all))
        })
        .collect();
    if let Some(tag) = entity["tag"].as_str() {
        let case = entity["variants"]
            .as_array()
            .expect("a list")
            .iter()
            .find(|case| case["case"] == object[tag]);
        let of = case
            .and_then(|case| case["type"].as_str())
            .expect("every value of the tag has a case");
        if let Value::Object(further) = sample(types, of, all) {
            object.extend(further);
        }
    }
    Value::Object(object)
}

#[test]
fn the_schema_is_complete() {
    let server = Server::start();
    let mut client = server.connect();
    let entities = entities(&mut client);
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

/// Arguments made from the schema alone are never of the wrong type.
#[test]
fn commands_take_what_the_schema_says() {
    let server = Server::start();
    let mut client = server.connect();
    let entities = entities(&mut client);
    for (name, entity) in entities
        .iter()
        .filter(|(_, entity)| entity["meta-type"] == "command")
    {
        let arguments = entity["arg-type"].as_str().expect("a type");
        if ["qmp_capabilities", "x-later"].contains(&name.as_str()) {
            continue;
        }
        for all in [false, true] {
            let arguments = sample(&entities, arguments, all);
            let answer = client.ask(&json!({"execute": name, "arguments": arguments}));
            let desc = answer["error"]["desc"].as_str().unwrap_or_default();
            for wrong in ["Invalid", "missing", "unexpected", "does not accept"] {
                assert!(!desc.contains(wrong), "{name} {arguments}: {desc}");
            }
        }
    }
}

//! The types of arguments and results, in QAPI's terms. Arguments are checked against the same tables that
//! `query-qmp-schema` shows, so the two cannot differ.

use std::collections::BTreeSet;

use serde_json::{Value, json};

/// A type.
#[derive(Clone, Copy, Debug)]
pub enum Type {
    /// Text.
    Str,
    /// True or false.
    Bool,
    /// A signed number of 64 bits.
    Int,
    /// An unsigned number of 64 bits.
    U64,
    /// An unsigned number of 32 bits.
    U32,
    /// An unsigned number of 16 bits.
    U16,
    /// A floating-point number.
    Number,
    /// The value `null`.
    Null,
    /// Any JSON value.
    Any,
    /// A list of values of one type.
    Array(&'static Type),
    /// One of several words.
    Enum(&'static Enum),
    /// Named members.
    Object(&'static Object),
    /// One of several types, distinguished by their JSON form.
    Alternate(&'static Alternate),
}

/// An enumeration.
#[derive(Debug)]
pub struct Enum {
    /// The name of the type.
    pub name: &'static str,
    /// The words.
    pub values: &'static [&'static str],
}

/// A choice between types of different JSON forms.
#[derive(Debug)]
pub struct Alternate {
    /// The name of the type.
    pub name: &'static str,
    /// The types.
    pub cases: &'static [Type],
}

/// A type with named members.
#[derive(Debug)]
pub struct Object {
    /// The name of the type.
    pub name: &'static str,
    /// The members that are always allowed.
    pub members: &'static [Member],
    /// The members that depend on another member's value.
    pub variants: Option<Variants>,
}

/// A member of an object.
#[derive(Debug)]
pub struct Member {
    /// The name in JSON.
    pub name: &'static str,
    /// The type of the value.
    pub value: Type,
    /// True if the member may be left out.
    pub optional: bool,
}

/// Members that depend on the value of one other member.
#[derive(Debug)]
pub struct Variants {
    /// The deciding member, whose type is an enum.
    pub tag: &'static str,
    /// The values, each with an object of further members. A value that is not listed adds no members.
    pub cases: &'static [(&'static str, &'static Object)],
}

/// Makes a required member.
pub const fn required(name: &'static str, value: Type) -> Member {
    Member {
        name,
        value,
        optional: false,
    }
}

/// Makes an optional member.
pub const fn optional(name: &'static str, value: Type) -> Member {
    Member {
        name,
        value,
        optional: true,
    }
}

impl Object {
    /// An object without members.
    pub const EMPTY: &'static Self = &Self::new("q_empty", &[]);

    /// Makes a type without variants.
    pub const fn new(name: &'static str, members: &'static [Member]) -> Self {
        Self {
            name,
            members,
            variants: None,
        }
    }

    /// Makes a type whose further members depend on the member `tag`.
    pub const fn union(
        name: &'static str,
        members: &'static [Member],
        tag: &'static str,
        cases: &'static [(&'static str, &'static Object)],
    ) -> Self {
        Self {
            name,
            members,
            variants: Some(Variants { tag, cases }),
        }
    }
}

impl Type {
    /// Returns the name that other parts of the schema use.
    pub(super) fn name(&self) -> String {
        match self {
            Self::Str => "str".into(),
            Self::Bool => "bool".into(),
            Self::Int | Self::U64 | Self::U32 | Self::U16 => "int".into(),
            Self::Number => "number".into(),
            Self::Null => "null".into(),
            Self::Any => "any".into(),
            Self::Array(element) => format!("[{}]", element.name()),
            Self::Enum(of) => of.name.into(),
            Self::Object(of) => of.name.into(),
            Self::Alternate(of) => of.name.into(),
        }
    }

    /// Returns the JSON form of a builtin type.
    fn json_form(&self) -> &'static str {
        match self {
            Self::Str => "string",
            Self::Bool => "boolean",
            Self::Int | Self::U64 | Self::U32 | Self::U16 => "int",
            Self::Number => "number",
            Self::Null => "null",
            _ => "value",
        }
    }
}

/// Collects the descriptions of types, each once.
#[derive(Debug, Default)]
pub(super) struct Collector {
    known: BTreeSet<String>,
    found: Vec<Value>,
}

impl Collector {
    /// Adds a command or an event, and the types that it uses.
    pub(super) fn add(&mut self, mut entity: Value, references: &[(&str, Type)]) {
        for (key, of) in references {
            entity[*key] = of.name().into();
        }
        self.found.push(entity);
        for (_, of) in references {
            self.describe(of);
        }
    }

    pub(super) fn into_value(self) -> Value {
        self.found.into()
    }

    fn describe(&mut self, of: &Type) {
        let name = of.name();
        if !self.known.insert(name.clone()) {
            return;
        }
        match of {
            Type::Array(element) => {
                let element_name = element.name();
                self.found
                    .push(json!({"name": name, "meta-type": "array", "element-type": element_name}));
                self.describe(element);
            }
            Type::Enum(of) => {
                let members: Vec<_> = of.values.iter().map(|value| json!({"name": value})).collect();
                self.found.push(json!({
                    "name": name, "meta-type": "enum", "members": members, "values": of.values
                }));
            }
            Type::Alternate(of) => {
                let members: Vec<_> = of.cases.iter().map(|case| json!({"type": case.name()})).collect();
                self.found
                    .push(json!({"name": name, "meta-type": "alternate", "members": members}));
                of.cases.iter().for_each(|case| self.describe(case));
            }
            Type::Object(of) => self.describe_object(of),
            _ => self
                .found
                .push(json!({"name": name, "meta-type": "builtin", "json-type": of.json_form()})),
        }
    }

    fn describe_object(&mut self, of: &'static Object) {
        let member = |member: &Member| {
            let mut description = json!({"name": member.name, "type": member.value.name()});
            if member.optional {
                description["default"] = Value::Null;
            }
            description
        };
        let members: Vec<_> = of.members.iter().map(member).collect();
        let mut description = json!({"name": of.name, "meta-type": "object", "members": members});
        if let Some(variants) = &of.variants {
            let case = |(case, of): &(&str, &Object)| json!({"case": case, "type": of.name});
            let listed = variants.cases.iter().map(case);
            // Every value of the tag is listed, even values that add no members.
            let others = tag_values(of, variants.tag)
                .filter(|value| variants.cases.iter().all(|(case, _)| case != value));
            let others = others.map(|value| json!({"case": value, "type": Object::EMPTY.name}));
            description["tag"] = variants.tag.into();
            description["variants"] = listed.chain(others).collect();
        }
        self.found.push(description);
        of.members.iter().for_each(|member| self.describe(&member.value));
        if let Some(variants) = &of.variants {
            self.describe(&Type::Object(Object::EMPTY));
            variants
                .cases
                .iter()
                .for_each(|(_, of)| self.describe(&Type::Object(of)));
        }
    }
}

/// Returns the possible values of the member `tag`.
fn tag_values(of: &Object, tag: &str) -> impl Iterator<Item = &'static str> {
    let member = of.members.iter().find(|member| member.name == tag);
    let values = match member.map(|member| member.value) {
        Some(Type::Enum(of)) => of.values,
        _ => &[],
    };
    values.iter().copied()
}

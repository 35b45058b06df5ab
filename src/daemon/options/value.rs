//! Reads options from JSON and from the command line into the same types.
//!
//! Both kinds of input become a JSON value first. Values from text are strings, so they are converted to the type that
//! is expected. Values from JSON must already have that type. Errors name the parameter, in QEMU's words.

use serde::Deserialize;
use serde::de::value::{SeqDeserializer, StringDeserializer};
use serde::de::{self, DeserializeOwned, DeserializeSeed, Deserializer, IntoDeserializer, Visitor};
use serde_json::{Map, Value};

use super::object::{gather_limits, refuse_psk};
use super::value_error::ValueError;

/// The source of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Values have their JSON types.
    Json,
    /// Numbers and switches are strings.
    Text,
}

/// Reads options of type `T`.
///
/// # Errors
/// A parameter is missing, unknown, or has a wrong value.
pub fn read<T: DeserializeOwned>(mut value: Value, origin: Origin) -> Result<T, ValueError> {
    if let Value::Object(options) = &mut value {
        gather_limits(options);
        refuse_psk(options)?;
    }
    T::deserialize(Reader { value, origin })
}

/// Reads a number of bytes with an optional unit: K, M, G or T.
pub(crate) fn bytes(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match text[digits.len()..].to_ascii_uppercase().as_str() {
        "" => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        _ => return None,
    };
    let number: u64 = digits.parse().ok()?;
    number.checked_mul(1 << shift)
}

struct Reader {
    value: Value,
    origin: Origin,
}

impl Reader {
    fn wrong<T>(expected: &str) -> Result<T, ValueError> {
        Err(ValueError::Type {
            path: String::new(),
            expected: expected.to_owned(),
        })
    }

    fn seq<'de, V: Visitor<'de>>(
        list: Vec<Value>,
        origin: Origin,
        visitor: V,
    ) -> Result<V::Value, ValueError> {
        visitor.visit_seq(SeqDeserializer::new(
            list.into_iter().map(|value| Self { value, origin }),
        ))
    }

    /// Parses a string as a number if the value comes from text.
    fn number(&self) -> Option<Value> {
        match (&self.value, self.origin) {
            (Value::String(word), Origin::Text) => {
                let digits = word.strip_prefix('-').unwrap_or(word);
                let plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
                let size = || bytes(word);
                match plain {
                    true => serde_json::from_str(word).ok(),
                    false => size().map(Value::from),
                }
            }
            (Value::Number(number), _) => Some(Value::Number(number.clone())),
            _ => None,
        }
    }
}

/// A number of any integer type.
macro_rules! integers {
    ($($method:ident: $type:ty, $visit:ident;)*) => {
        $(fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ValueError> {
            let number = self.number().and_then(|number| <$type>::deserialize(number).ok());
            match number {
                Some(number) => visitor.$visit(number),
                None => Self::wrong(concat!("a number (", stringify!($type), ")")),
            }
        })*
    };
}

impl<'de> Deserializer<'de> for Reader {
    type Error = ValueError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ValueError> {
        let origin = self.origin;
        match self.value {
            Value::Null => visitor.visit_unit(),
            Value::Bool(value) => visitor.visit_bool(value),
            Value::Number(number) => match (number.as_u64(), number.as_i64()) {
                (Some(number), _) => visitor.visit_u64(number),
                (_, Some(number)) => visitor.visit_i64(number),
                _ => Self::wrong("a whole number"),
            },
            Value::String(text) => visitor.visit_string(text),
            Value::Array(list) => Self::seq(list, origin, visitor),
            Value::Object(map) => visitor.visit_map(Fields::new(map, origin)),
        }
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ValueError> {
        match (&self.value, self.origin) {
            (Value::Bool(value), _) => visitor.visit_bool(*value),
            (Value::String(word), Origin::Text) => match word.as_str() {
                "on" | "yes" | "true" | "y" => visitor.visit_bool(true),
                "off" | "no" | "false" | "n" => visitor.visit_bool(false),
                _ => Self::wrong("'on' or 'off'"),
            },
            _ => Self::wrong("boolean"),
        }
    }

    integers! {
        deserialize_u8: u8, visit_u8;
        deserialize_u16: u16, visit_u16;
        deserialize_u32: u32, visit_u32;
        deserialize_u64: u64, visit_u64;
        deserialize_i32: i32, visit_i32;
        deserialize_i64: i64, visit_i64;
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ValueError> {
        match self.value {
            Value::String(text) => visitor.visit_string(text),
            _ => Self::wrong("string"),
        }
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ValueError> {
        self.deserialize_string(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ValueError> {
        visitor.visit_some(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, ValueError> {
        match self.value {
            Value::String(word) => {
                let word: StringDeserializer<ValueError> = word.into_deserializer();
                visitor.visit_enum(word)
            }
            _ => Self::wrong("string"),
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, ValueError> {
        match self.value {
            Value::Object(map) => visitor.visit_map(Fields::new(map, self.origin)),
            _ => Self::wrong("object"),
        }
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ValueError> {
        match self.value {
            Value::Array(list) => Self::seq(list, self.origin, visitor),
            _ => Self::wrong("array"),
        }
    }

    serde::forward_to_deserialize_any! {
        i8 i16 i128 u128 f32 f64 char bytes byte_buf unit unit_struct newtype_struct tuple tuple_struct map identifier
        ignored_any
    }
}

impl<'de> IntoDeserializer<'de, ValueError> for Reader {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

/// The members of an object. Errors in a member are prefixed with its name.
struct Fields {
    fields: serde_json::map::IntoIter,
    next: Option<(String, Value)>,
    origin: Origin,
}

impl Fields {
    fn new(map: Map<String, Value>, origin: Origin) -> Self {
        Self {
            fields: map.into_iter(),
            next: None,
            origin,
        }
    }
}

impl<'de> de::MapAccess<'de> for Fields {
    type Error = ValueError;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, ValueError> {
        self.next = self.fields.next();
        let Some((name, _)) = &self.next else {
            return Ok(None);
        };
        let name: StringDeserializer<ValueError> = name.clone().into_deserializer();
        seed.deserialize(name).map(Some)
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, ValueError> {
        let Some((name, value)) = self.next.take() else {
            return Err(de::Error::custom("a value without a name"));
        };
        let reader = Reader {
            value,
            origin: self.origin,
        };
        seed.deserialize(reader).map_err(|error| error.within(&name))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::daemon::options::{BlockdevOptions, BlockdevRef, Driver, ExportOptions, ObjectOptions};

    fn export(
        iothread: impl Into<Value>,
        queues: impl Into<Value>,
        writable: impl Into<Value>,
        origin: Origin,
    ) -> Result<ExportOptions, ValueError> {
        let value = json!({
            "type": "vhost-user-blk", "id": "e", "node-name": "n", "addr": {"type": "unix", "path": "s"},
            "iothread": iothread.into(), "num-queues": queues.into(), "writable": writable.into()
        });
        read(value, origin)
    }

    #[test]
    fn words_of_text_become_what_the_type_asks_for() {
        let options = export(json!("io0"), json!("4"), json!("on"), Origin::Text).unwrap();
        assert_eq!((options.num_queues, options.writable), (Some(4), true));
        assert_eq!(options.iothread.0, ["io0"]);
        let options = export(json!(["a", "b"]), json!("4"), json!("off"), Origin::Text).unwrap();
        assert_eq!(options.iothread.0, ["a", "b"]);
        let nested = json!({
            "driver": "raw", "node-name": "r",
            "file": {"driver": "null-co", "size": "1M", "cache": {"direct": "on"}}
        });
        let options: BlockdevOptions = read(nested, Origin::Text).unwrap();
        let Some(BlockdevRef::New(file)) = options.file.as_deref() else {
            panic!("{options:?}");
        };
        assert_eq!(
            (file.driver, file.size, file.cache.direct),
            (Driver::NullCo, Some(1 << 20), Some(true))
        );
    }

    #[test]
    fn json_is_taken_literally() {
        assert!(export(json!("io0"), json!(4), json!(true), Origin::Json).is_ok());
        let wrong = |queues: Value, writable: Value| {
            export(json!("io0"), queues, writable, Origin::Json)
                .unwrap_err()
                .to_string()
        };
        assert!(wrong(json!("4"), json!(true)).starts_with("Parameter 'num-queues' expects"));
        assert!(wrong(json!(-1), json!(true)).starts_with("Parameter 'num-queues' expects"));
        assert_eq!(
            wrong(json!(4), json!("on")),
            "Parameter 'writable' expects boolean"
        );
        let iothread = export(json!(7), json!(4), json!(true), Origin::Json).unwrap_err();
        assert!(
            iothread.to_string().starts_with("Parameter 'iothread' expects"),
            "{iothread}"
        );
    }

    #[test]
    fn errors_name_the_whole_path() {
        let object = |value| read::<ObjectOptions>(value, Origin::Json).unwrap_err();
        let unexpected = object(json!({"qom-type": "throttle-group", "id": "t", "limits": {"iops": 1}}));
        assert_eq!(unexpected, ValueError::Unexpected("limits.iops".to_owned()));
        assert_eq!(
            object(json!({"qom-type": "iothread"})),
            ValueError::Missing("id".to_owned())
        );
        assert_eq!(
            object(json!({"qom-type": "rng", "id": "r"})).to_string(),
            "Parameter 'qom-type' does not accept value 'rng'"
        );
    }

    #[test]
    fn bytes_have_units() {
        assert_eq!(
            (bytes("4k"), bytes("1"), bytes("2T")),
            (Some(4096), Some(1), Some(2 << 40))
        );
        for bad in ["", "K", "-1", "1Ki", "99999999T"] {
            assert_eq!(bytes(bad), None, "{bad}");
        }
    }
}

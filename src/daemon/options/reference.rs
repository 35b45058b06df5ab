//! References from the options of a node to other nodes.

use std::fmt;

use serde::de::value::MapAccessDeserializer;
use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use super::blockdev::BlockdevOptions;

/// A reference to the node below: the name of an existing node, or the options of a new one.
#[derive(Clone, Debug, Serialize)]
#[serde(untagged)]
pub enum BlockdevRef {
    /// The name of a node.
    Name(String),
    /// The options of a new node.
    New(Box<BlockdevOptions>),
}

impl<'de> Deserialize<'de> for BlockdevRef {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct NameOrOptions;
        impl<'de> Visitor<'de> for NameOrOptions {
            type Value = BlockdevRef;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the name of a node or its options")
            }

            fn visit_str<E: de::Error>(self, name: &str) -> Result<BlockdevRef, E> {
                Ok(BlockdevRef::Name(name.to_owned()))
            }

            fn visit_map<A: de::MapAccess<'de>>(self, options: A) -> Result<BlockdevRef, A::Error> {
                let options = BlockdevOptions::deserialize(MapAccessDeserializer::new(options))?;
                Ok(BlockdevRef::New(Box::new(options)))
            }
        }
        deserializer.deserialize_any(NameOrOptions)
    }
}

/// A reference to a backing file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum BackingRef {
    /// There is none: what the image does not have reads as zeroes.
    None,
    /// The name of a node.
    Name(String),
}

impl<'de> Deserialize<'de> for BackingRef {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct NameOrNull;
        impl Visitor<'_> for NameOrNull {
            type Value = BackingRef;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the name of a node or null")
            }

            // Text has no null.
            fn visit_str<E: de::Error>(self, name: &str) -> Result<BackingRef, E> {
                Ok(match name {
                    "" => BackingRef::None,
                    name => BackingRef::Name(name.to_owned()),
                })
            }

            fn visit_unit<E: de::Error>(self) -> Result<BackingRef, E> {
                Ok(BackingRef::None)
            }
        }
        deserializer.deserialize_any(NameOrNull)
    }
}

/// Reads `backing`. `null` is a value here, not a missing option.
pub(super) fn backing<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<BackingRef>, D::Error> {
    BackingRef::deserialize(deserializer).map(Some)
}

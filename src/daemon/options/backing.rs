//! The reference from an image to its backing file.

use std::fmt;

use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

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

//! Errors in parameters.

use std::fmt;

use serde::de;

/// A parameter is wrong.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum ValueError {
    #[error("Parameter '{0}' is missing")]
    Missing(String),
    #[error("Parameter '{0}' is unexpected")]
    Unexpected(String),
    #[error("Parameter '{path}' does not accept value '{value}'")]
    Variant { path: String, value: String },
    #[error("Parameter '{path}' expects {expected}")]
    Type { path: String, expected: String },
    #[error("Parameter '{path}': {reason}")]
    Other { path: String, reason: String },
}

impl ValueError {
    /// Returns the path of the parameter, such as `cache.direct`.
    pub fn path(&self) -> &str {
        match self {
            Self::Missing(path) | Self::Unexpected(path) => path,
            Self::Variant { path, .. } | Self::Type { path, .. } | Self::Other { path, .. } => path,
        }
    }

    /// Prefixes the path with the name of the surrounding parameter.
    pub(super) fn within(self, name: &str) -> Self {
        let join = |path: String| match path.is_empty() {
            true => name.to_owned(),
            false => format!("{name}.{path}"),
        };
        match self {
            Self::Missing(path) => Self::Missing(join(path)),
            Self::Unexpected(path) => Self::Unexpected(join(path)),
            Self::Variant { path, value } => Self::Variant {
                path: join(path),
                value,
            },
            Self::Type { path, expected } => Self::Type {
                path: join(path),
                expected,
            },
            Self::Other { path, reason } => Self::Other {
                path: join(path),
                reason,
            },
        }
    }
}

impl de::Error for ValueError {
    fn custom<T: fmt::Display>(reason: T) -> Self {
        Self::Other {
            path: String::new(),
            reason: reason.to_string(),
        }
    }

    fn invalid_type(_: de::Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        Self::Type {
            path: String::new(),
            expected: expected.to_string(),
        }
    }

    fn invalid_value(unexpected: de::Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        Self::invalid_type(unexpected, expected)
    }

    fn unknown_variant(value: &str, _: &'static [&'static str]) -> Self {
        Self::Variant {
            path: String::new(),
            value: value.to_owned(),
        }
    }

    fn unknown_field(field: &str, _: &'static [&'static str]) -> Self {
        Self::Unexpected(field.to_owned())
    }

    fn missing_field(field: &'static str) -> Self {
        Self::Missing(field.to_owned())
    }
}

//! Errors of commands, as clients see them.

use std::fmt;

/// The class of an error. All classes but the first exist only for clients that test for them, as in QEMU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorClass {
    /// Any error without a class of its own.
    GenericError,
    /// The command does not exist, or the connection is in the wrong mode for it.
    CommandNotFound,
    /// The named object does not exist.
    DeviceNotFound,
    /// The object exists, but is not in use.
    DeviceNotActive,
}

impl fmt::Display for ErrorClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::GenericError => "GenericError",
            Self::CommandNotFound => "CommandNotFound",
            Self::DeviceNotFound => "DeviceNotFound",
            Self::DeviceNotActive => "DeviceNotActive",
        })
    }
}

/// The reason why a command was refused or failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{desc}")]
pub struct QmpError {
    /// The class, for programs.
    pub class: ErrorClass,
    /// The description, for people.
    pub desc: String,
}

impl QmpError {
    /// Makes an error with any class.
    pub fn new(class: ErrorClass, desc: impl Into<String>) -> Self {
        let desc = desc.into();
        Self { class, desc }
    }

    /// Makes an error with the generic class.
    pub fn generic(desc: impl Into<String>) -> Self {
        Self::new(ErrorClass::GenericError, desc)
    }

    pub(super) fn missing(parameter: &str) -> Self {
        Self::generic(format!("Parameter '{parameter}' is missing"))
    }

    pub(super) fn unexpected(parameter: &str) -> Self {
        Self::generic(format!("Parameter '{parameter}' is unexpected"))
    }

    pub(super) fn wrong_type(parameter: &str, expected: &str) -> Self {
        Self::generic(format!(
            "Invalid parameter type for '{parameter}', expected: {expected}"
        ))
    }

    pub(super) fn expects(parameter: &str, expected: &str) -> Self {
        Self::generic(format!("Parameter '{parameter}' expects {expected}"))
    }

    pub(super) fn unknown_value(parameter: &str, value: &str) -> Self {
        Self::generic(format!("Parameter '{parameter}' does not accept value '{value}'"))
    }
}

/// The outcome of a command: the value of `return`, or the error.
pub type Outcome = Result<serde_json::Value, QmpError>;

//! Converts JSON to arguments, and results and errors to answers.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::daemon::options::{Origin, read};
use crate::daemon::registry::OperationError;
use crate::error_chain::chain;
use crate::qmp::{Outcome, QmpError};

/// The arguments of a command that takes none.
#[derive(Debug, Deserialize)]
pub(super) struct Nothing {}

impl From<OperationError> for QmpError {
    fn from(error: OperationError) -> Self {
        Self::generic(chain(&error))
    }
}

pub(super) fn typed<T: DeserializeOwned>(arguments: Map<String, Value>) -> Result<T, QmpError> {
    read(arguments.into(), Origin::Json).map_err(|error| QmpError::generic(error.to_string()))
}

pub(super) fn to_value(value: &impl Serialize) -> Outcome {
    serde_json::to_value(value).map_err(|error| QmpError::generic(error.to_string()))
}

//! Converts hyperparameters to JSON values and back, for the builders that the derive generates.

use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Map, Value};

use crate::{
    Error, Result,
    state::{from_value, to_value},
};

/// Converts the JSON value of the hyperparameter `name` to the type of its field.
///
/// # Errors
/// When the value cannot be converted to this type.
pub fn get<T: DeserializeOwned>(name: &str, value: &Value) -> Result<T> {
    from_value(value)
        .map_err(|error| Error::config(format!("hyperparameter `{name}` = {value}: {error}")))
}

/// Reads the hyperparameter `name`, which has no default value.
///
/// # Errors
/// When the hyperparameter is missing, or its value cannot be converted to the type `T`.
pub fn required<T: DeserializeOwned>(name: &str, values: &Map<String, Value>) -> Result<T> {
    let value = values.get(name);
    let missing = || Error::config(format!("the hyperparameter `{name}` is missing"));
    get(name, value.ok_or_else(missing)?)
}

/// Converts a hyperparameter to JSON. A value that is NaN or infinite becomes a text. If the value
/// is a list or struct, elements that JSON cannot represent become null.
pub fn put<T: Serialize>(value: &T) -> Value {
    to_value(value).unwrap_or(Value::Null)
}

/// Returns the error for a `name` that is not a hyperparameter of the model.
pub fn unknown(name: &str, known: &[&str]) -> Error {
    match known {
        [] => Error::config(format!("unknown hyperparameter `{name}`: the model has none")),
        known => Error::config(format!(
            "unknown hyperparameter `{name}`: expected one of {}",
            known.join(", ")
        )),
    }
}

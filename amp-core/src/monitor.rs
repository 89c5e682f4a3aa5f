//! Compares logged values that a callback or schedule monitors.

use serde::{Deserialize, Serialize};

use crate::Error;

/// Whether a monitored value is better when it is smaller or when it is larger.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// A smaller value is better.
    Min,
    /// A larger value is better.
    Max,
}

impl Mode {
    /// Returns whether `new` is better than `old` by more than `min_delta`.
    pub fn better(self, new: f64, old: f64, min_delta: f64) -> bool {
        match self {
            Self::Min => new < old - min_delta,
            Self::Max => new > old + min_delta,
        }
    }
}

/// Builds the error for a callback or schedule that monitors a value which the model does not log
/// at the end of an epoch.
pub(crate) fn is_not_logged<'a>(monitor: &str, logged: impl Iterator<Item = &'a str>) -> Error {
    let names: Vec<&str> = logged.collect();
    let names = if names.is_empty() { "nothing".to_owned() } else { names.join(", ") };
    Error::config(format!(
        "cannot monitor `{monitor}`, because the model does not log it at the end of an epoch; \
         at that time the model logs {names}"
    ))
}

//! The length of a run.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The length of a run: a number of epochs or of optimizer steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Length {
    /// A number of passes over the training set.
    Epochs(i64),
    /// A number of applied optimizer steps.
    Steps(u64),
}

impl Length {
    /// Returns whether this length is shorter than `other`. Returns `false` if one length is in
    /// epochs and the other is in steps, because they cannot be compared.
    pub fn is_below(self, other: Self) -> bool {
        match (self, other) {
            (Self::Epochs(own), Self::Epochs(other)) => own < other,
            (Self::Steps(own), Self::Steps(other)) => own < other,
            _ => false,
        }
    }
}

impl fmt::Display for Length {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (count, unit) = match *self {
            Self::Epochs(epochs) => (epochs.unsigned_abs(), "epoch"),
            Self::Steps(steps) => (steps, "step"),
        };
        write!(f, "{count} {unit}{}", if count == 1 { "" } else { "s" })
    }
}

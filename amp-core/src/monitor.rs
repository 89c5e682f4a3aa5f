//! The direction in which a monitored value improves.

use serde::{Deserialize, Serialize};

/// Whether a monitored value is better when smaller or larger.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Smaller is better.
    Min,
    /// Larger is better.
    Max,
}

impl Mode {
    /// Whether `new` is better than `old` by more than `min_delta`.
    pub fn better(self, new: f64, old: f64, min_delta: f64) -> bool {
        match self {
            Self::Min => new < old - min_delta,
            Self::Max => new > old + min_delta,
        }
    }
}

//! How much time the training loop takes in addition to the tensor operations.

use serde::{Deserialize, Serialize};

/// How much time this trainer's loop takes in addition to the tensor operations of a step. This
/// time is measured by the function that is passed to
/// [`Registry::loop_overheads`](crate::Registry::loop_overheads).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Overhead {
    /// The name of the model.
    pub model: String,
    /// The microseconds per step that the loop takes in addition to the tensor operations: the
    /// values of several measurements, in ascending order.
    pub microseconds: Vec<f64>,
    /// The microseconds per step that the tensor operations alone take.
    pub bare_microseconds: f64,
}

impl Overhead {
    /// Returns the median of `microseconds`.
    pub fn median(&self) -> f64 {
        self.microseconds.get(self.microseconds.len() / 2).copied().unwrap_or(f64::NAN)
    }
}

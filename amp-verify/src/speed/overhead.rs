//! The time of a training loop in addition to its tensor operations.

use serde::{Deserialize, Serialize};

/// The time of the training loop beyond its tensor operations, as measured by
/// [`Registry::loop_overheads`](crate::Registry::loop_overheads).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Overhead {
    /// The model.
    pub model: String,
    /// Microseconds per step beyond the tensor operations, for each block of steps, in ascending
    /// order.
    pub microseconds: Vec<f64>,
    /// Microseconds per step of the tensor operations alone.
    pub bare_microseconds: f64,
}

impl Overhead {
    /// The median over the blocks.
    pub fn median(&self) -> f64 {
        self.microseconds.get(self.microseconds.len() / 2).copied().unwrap_or(f64::NAN)
    }
}

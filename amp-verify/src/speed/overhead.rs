//! The cost of a training loop in addition to its tensor work.

use serde::{Deserialize, Serialize};

/// The loop's cost beyond its tensor work, as
/// [`Registry::loop_overheads`](crate::Registry::loop_overheads) measures it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Overhead {
    /// The model.
    pub model: String,
    /// Microseconds per step beyond the bare work, in each block, in ascending order.
    pub microseconds: Vec<f64>,
    /// Microseconds per step of the bare work.
    pub bare_microseconds: f64,
}

impl Overhead {
    /// The median over the blocks.
    pub fn median(&self) -> f64 {
        self.microseconds.get(self.microseconds.len() / 2).copied().unwrap_or(f64::NAN)
    }
}

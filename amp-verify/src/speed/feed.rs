//! Measures how much slower training is with a large data set in host memory, from which batches
//! are copied to the device during training, than with the same data set in device memory.

use amp_core::precision::Precision;
use serde::{Deserialize, Serialize};

use super::{
    measurement::Engine,
    statistics::{Spread, paired_ratio},
};

/// The speed of training with the data in host memory, and the speed with the data in the device's
/// memory.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Feed {
    /// The name of the workload.
    pub workload: String,
    /// The precision of the training.
    pub precision: Precision,
    /// The engine that was measured.
    pub engine: Engine,
    /// The size of the data set in bytes.
    pub bytes: u64,
    /// The speed in each round with the data in host memory, in steps per second.
    pub host: Vec<f64>,
    /// The speed in each round with the data in the device's memory, in steps per second.
    pub device: Vec<f64>,
}

impl Feed {
    /// Returns the fraction by which training is slower with the data in host memory than with the
    /// data in the device's memory (the median over the rounds). Returns `None` if there are no
    /// rounds.
    pub fn cost(&self) -> Option<f64> {
        paired_ratio(&self.host, &self.device).map(|ratio| 1.0 - ratio)
    }

    /// Returns the median and the quartiles of the speed in steps per second: first with the data
    /// in host memory, then with the data in the device's memory. Returns `None` if there are no
    /// rounds.
    pub fn rates(&self) -> Option<(Spread, Spread)> {
        Some((Spread::of(&self.host)?, Spread::of(&self.device)?))
    }
}

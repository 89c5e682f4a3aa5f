//! The loss of speed if a large data set is in host memory, and batches are copied to the device
//! during training.

use amp_core::precision::Precision;
use serde::{Deserialize, Serialize};

use super::{
    measurement::Engine,
    statistics::{Spread, paired_ratio},
};

/// The speeds of training with the data in host memory and with the data in the device's memory.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Feed {
    /// The workload.
    pub workload: String,
    /// The precision.
    pub precision: Precision,
    /// The engine.
    pub engine: Engine,
    /// The size of the data set in bytes.
    pub bytes: u64,
    /// Steps per second in each round, with the data on the host.
    pub host: Vec<f64>,
    /// Steps per second in each round, with the data on the device.
    pub device: Vec<f64>,
}

impl Feed {
    /// Returns by which fraction training is slower with the data on the host than with the data on
    /// the device: the median over the rounds.
    pub fn cost(&self) -> Option<f64> {
        paired_ratio(&self.host, &self.device).map(|ratio| 1.0 - ratio)
    }

    /// Returns the steps per second with the data on the host, and those with the data on the
    /// device.
    pub fn rates(&self) -> Option<(Spread, Spread)> {
        Some((Spread::of(&self.host)?, Spread::of(&self.device)?))
    }
}

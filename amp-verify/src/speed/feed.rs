//! The cost of feeding a large data set from the host.

use amp_core::precision::Precision;
use serde::{Deserialize, Serialize};

use super::{
    measurement::Engine,
    statistics::{Spread, paired_ratio},
};

/// The cost of feeding.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Feed {
    /// The workload.
    pub workload: String,
    /// How.
    pub precision: Precision,
    /// The engine.
    pub engine: Engine,
    /// The size of the set.
    pub bytes: u64,
    /// Steps per second in each round, from the host.
    pub host: Vec<f64>,
    /// The same from the device.
    pub device: Vec<f64>,
}

impl Feed {
    /// The share of the device's rate that feeding costs: the median over rounds.
    pub fn cost(&self) -> Option<f64> {
        paired_ratio(&self.host, &self.device).map(|ratio| 1.0 - ratio)
    }

    /// Steps per second, from the host and from the device.
    pub fn rates(&self) -> Option<(Spread, Spread)> {
        Some((Spread::of(&self.host)?, Spread::of(&self.device)?))
    }
}

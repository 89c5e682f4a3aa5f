//! What a set too large for its place costs.

use amp_core::precision::Precision;
use serde::{Deserialize, Serialize};

use super::{
    measurement::Engine,
    statistics::{Spread, paired_ratio},
};

/// What feeding costs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Feed {
    /// What was trained.
    pub workload: String,
    /// How.
    pub precision: Precision,
    /// By whom.
    pub engine: Engine,
    /// Of the set.
    pub bytes: u64,
    /// Steps a second in each round, from the host.
    pub host: Vec<f64>,
    /// The same from the device.
    pub device: Vec<f64>,
}

impl Feed {
    /// The share of the device's rate that feeding costs: the median over rounds.
    pub fn cost(&self) -> Option<f64> {
        paired_ratio(&self.host, &self.device).map(|ratio| 1.0 - ratio)
    }

    /// Steps a second, from the host and from the device.
    pub fn rates(&self) -> Option<(Spread, Spread)> {
        Some((Spread::of(&self.host)?, Spread::of(&self.device)?))
    }
}

//! Targets: bounds that a registry declares for the measurements of a benchmark.

use serde::{Deserialize, Serialize};

/// The bound that a measured value must meet.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Goal {
    /// At least this value.
    AtLeast(f64),
    /// At most this value.
    AtMost(f64),
    /// Less than this value.
    Below(f64),
}

impl Goal {
    /// Returns whether `value` meets the bound. NaN meets no bound.
    pub fn is_met_by(self, value: f64) -> bool {
        match self {
            Self::AtLeast(bound) => value >= bound,
            Self::AtMost(bound) => value <= bound,
            Self::Below(bound) => value < bound,
        }
    }
}

/// The result of comparing a measured value with its target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The value meets the target.
    Met,
    /// The value misses the target.
    Missed,
    /// The value was not measured.
    NotMeasured,
}

impl Outcome {
    /// Returns the text in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Met => "met",
            Self::Missed => "missed",
            Self::NotMeasured => "not measured",
        }
    }
}

/// The unit in which a measured value and its bound are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// A ratio, for example `20×`.
    Times,
    /// A share, for example `65 %`.
    Percent,
    /// A time in microseconds.
    Microseconds,
}

/// A measured value and its bound.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Target {
    /// A description of the measured value.
    pub what: String,
    /// The bound.
    pub goal: Goal,
    /// The unit in which the value and the bound are shown. A percentage is stored as a fraction: 65 %
    /// is 0.65.
    pub unit: Unit,
    /// The measured value; null if it was not measured.
    pub measured: Option<f64>,
    /// The result.
    pub outcome: Outcome,
}

impl Target {
    /// Compares `measured` with the goal.
    pub fn new(what: String, goal: Goal, unit: Unit, measured: Option<f64>) -> Self {
        let outcome = match measured {
            None => Outcome::NotMeasured,
            Some(value) if goal.is_met_by(value) => Outcome::Met,
            Some(_) => Outcome::Missed,
        };
        Self { what, goal, unit, measured, outcome }
    }
}

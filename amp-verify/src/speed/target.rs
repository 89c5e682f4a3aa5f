//! Targets: bounds that a registry declares for the measurements of a benchmark.

use serde::{Deserialize, Serialize};

/// The bound that a measured value must meet.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Goal {
    /// The measured value must be at least this number.
    AtLeast(f64),
    /// The measured value must be at most this number.
    AtMost(f64),
    /// The measured value must be less than this number.
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

/// Whether a measured value meets its target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The measured value meets the target.
    Met,
    /// The measured value misses the target.
    Missed,
    /// There is no measured value.
    NotMeasured,
}

impl Outcome {
    /// Returns the word for this result in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Met => "met",
            Self::Missed => "missed",
            Self::NotMeasured => "not measured",
        }
    }
}

/// The unit in which a measured value and its bound are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// A multiple, printed as `20×`.
    Times,
    /// A fraction, printed as `65 %`.
    Percent,
    /// A time in microseconds.
    Microseconds,
}

/// A bound that a registry declares for a measured value, and the measured value.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Target {
    /// What is measured, in words.
    pub what: String,
    /// The bound that the measured value must meet.
    pub goal: Goal,
    /// The unit in which the value and the bound are printed. If the unit is a percentage, the
    /// value and the bound are stored as fractions: 65 % is stored as 0.65.
    pub unit: Unit,
    /// The measured value; null if nothing was measured.
    pub measured: Option<f64>,
    /// Whether the measured value meets the bound.
    pub outcome: Outcome,
}

impl Target {
    /// Creates a target for a measurement and compares `measured` with the bound `goal`.
    pub fn new(what: String, goal: Goal, unit: Unit, measured: Option<f64>) -> Self {
        let outcome = match measured {
            None => Outcome::NotMeasured,
            Some(value) if goal.is_met_by(value) => Outcome::Met,
            Some(_) => Outcome::Missed,
        };
        Self { what, goal, unit, measured, outcome }
    }
}

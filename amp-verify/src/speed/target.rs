//! A target, and whether it was met.

use serde::{Deserialize, Serialize};

/// A bound on a figure.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Goal {
    /// The figure, or more.
    AtLeast(f64),
    /// The figure, or less.
    AtMost(f64),
    /// Less than the figure.
    Below(f64),
}

impl Goal {
    /// Whether `value` meets it; NaN does not.
    pub fn is_met_by(self, value: f64) -> bool {
        match self {
            Self::AtLeast(bound) => value >= bound,
            Self::AtMost(bound) => value <= bound,
            Self::Below(bound) => value < bound,
        }
    }
}

/// The outcome of a target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The figure is as it should be.
    Met,
    /// The target was not met.
    Missed,
    /// There is no figure.
    NotMeasured,
}

impl Outcome {
    /// The text in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Met => "met",
            Self::Missed => "missed",
            Self::NotMeasured => "not measured",
        }
    }
}

/// How a target's figures are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// A ratio, `20×`.
    Times,
    /// A share, `65 %`.
    Percent,
    /// Microseconds.
    Microseconds,
}

/// A figure with its bound.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Target {
    /// A description of the figure.
    pub what: String,
    /// The bound.
    pub goal: Goal,
    /// How both are shown; a percentage is kept as a share of 1.
    pub unit: Unit,
    /// The figure; null when it was not measured.
    pub measured: Option<f64>,
    /// The outcome.
    pub outcome: Outcome,
}

impl Target {
    /// Judges `measured`.
    pub fn new(what: String, goal: Goal, unit: Unit, measured: Option<f64>) -> Self {
        let outcome = match measured {
            None => Outcome::NotMeasured,
            Some(value) if goal.is_met_by(value) => Outcome::Met,
            Some(_) => Outcome::Missed,
        };
        Self { what, goal, unit, measured, outcome }
    }
}

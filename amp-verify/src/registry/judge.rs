//! The logged value by which a model is judged.

use amp_core::callback::Mode;
use serde::{Deserialize, Serialize};

/// Whether larger or smaller values are better.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// Larger is better, for example an accuracy.
    #[default]
    HigherIsBetter,
    /// Smaller is better, for example a loss.
    LowerIsBetter,
}

impl Direction {
    /// Returns how much worse `own` is than `baseline`, in the unit of the value. The result is
    /// negative if `own` is better.
    pub fn regression(self, baseline: f64, own: f64) -> f64 {
        match self {
            Self::HigherIsBetter => baseline - own,
            Self::LowerIsBetter => own - baseline,
        }
    }

    /// Returns the direction in the form that callbacks use.
    pub fn mode(self) -> Mode {
        match self {
            Self::HigherIsBetter => Mode::Max,
            Self::LowerIsBetter => Mode::Min,
        }
    }

    /// Returns whether larger values are better.
    pub fn is_higher(&self) -> bool {
        *self == Self::HigherIsBetter
    }
}

/// The validation value by which a model is judged: its logged name, and whether larger or smaller
/// values are better.
///
/// # Examples
///
/// ```
/// use amp_verify::registry::{Direction, Judge};
///
/// let error = Judge::lower("val_mae");
/// assert_eq!(error.direction, Direction::LowerIsBetter);
/// // The error rose from 0.30 to 0.35.
/// assert!((error.direction.regression(0.30, 0.35) - 0.05).abs() < 1e-12);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Judge {
    /// The name, for example `val_acc`.
    pub name: &'static str,
    /// Whether larger or smaller is better.
    pub direction: Direction,
}

/// The name of the validation loss.
pub(crate) const LOSS: &str = "val_loss";

impl Judge {
    /// The default judge: the accuracy.
    pub const DEFAULT: Self = Self::higher("val_acc");

    /// Judges by the value `name`, for which higher is better, for example `val_acc`.
    pub const fn higher(name: &'static str) -> Self {
        Self { name, direction: Direction::HigherIsBetter }
    }

    /// Judges by the value `name`, for which lower is better, for example `val_mae`.
    pub const fn lower(name: &'static str) -> Self {
        Self { name, direction: Direction::LowerIsBetter }
    }

    /// Judges by the validation loss.
    pub const fn loss() -> Self {
        Self::lower(LOSS)
    }

    /// Returns the smallest possible difference between two values of the metric, for this number N
    /// of validation examples. A value for which higher is better is taken as a fraction of the
    /// examples, so it changes in steps of 1/N. A value for which lower is better is taken as
    /// continuous, so the result is 0.
    pub fn resolution(self, examples: i64) -> f64 {
        match self.direction {
            Direction::HigherIsBetter => 1.0 / examples.max(1) as f64,
            Direction::LowerIsBetter => 0.0,
        }
    }
}

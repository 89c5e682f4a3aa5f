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
    /// Returns how much worse the value `own` is than the value `baseline`, in the unit of these
    /// values. The result is negative if `own` is better.
    pub fn regression(self, baseline: f64, own: f64) -> f64 {
        match self {
            Self::HigherIsBetter => baseline - own,
            Self::LowerIsBetter => own - baseline,
        }
    }

    /// Returns this direction as the type that callbacks use.
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

/// The validation value by which a model is judged: the name under which the value is logged, and
/// whether larger or smaller values are better.
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
    /// The name under which the value is logged, for example `val_acc`.
    pub name: &'static str,
    /// Whether larger or smaller values are better.
    pub direction: Direction,
}

/// The name under which the validation loss is logged.
pub(crate) const LOSS: &str = "val_loss";

impl Judge {
    /// The value by which a model is judged by default: the accuracy, `val_acc`.
    pub const DEFAULT: Self = Self::higher("val_acc");

    /// Judges a model by the logged value `name`, for example `val_acc`. Larger values are better.
    pub const fn higher(name: &'static str) -> Self {
        Self { name, direction: Direction::HigherIsBetter }
    }

    /// Judges a model by the logged value `name`, for example `val_mae`. Smaller values are better.
    pub const fn lower(name: &'static str) -> Self {
        Self { name, direction: Direction::LowerIsBetter }
    }

    /// Judges a model by its validation loss.
    pub const fn loss() -> Self {
        Self::lower(LOSS)
    }

    /// Returns the smallest possible difference between two values of the metric if there are N =
    /// `examples` validation examples. If higher is better, the metric is assumed to be a fraction
    /// of the examples, which changes in steps of 1/N. If lower is better, the metric is assumed to
    /// be continuous, and the result is 0.
    pub fn resolution(self, examples: i64) -> f64 {
        match self.direction {
            Direction::HigherIsBetter => 1.0 / examples.max(1) as f64,
            Direction::LowerIsBetter => 0.0,
        }
    }
}

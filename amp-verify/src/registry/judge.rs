//! The logged validation value by which a model is judged, that is, by which its runs under
//! different precisions are compared.

use amp_core::callback::Mode;
use serde::{Deserialize, Serialize};

/// Whether larger or smaller values of a metric are better.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// Larger is better. The metric is a fraction of the examples, for example an accuracy.
    #[default]
    HigherIsBetter,
    /// Larger is better. The metric is not a fraction, for example a reward.
    HigherScoreIsBetter,
    /// Smaller is better, for example a loss.
    LowerIsBetter,
}

impl Direction {
    /// Returns how much worse the metric of a run (`own`) is than the metric of the run with which
    /// it is compared (`baseline`), in the unit of the metric. The result is negative if `own` is
    /// better.
    pub fn regression(self, baseline: f64, own: f64) -> f64 {
        match self {
            Self::HigherIsBetter | Self::HigherScoreIsBetter => baseline - own,
            Self::LowerIsBetter => own - baseline,
        }
    }

    /// Returns this direction as the `mode` argument of callbacks such as `EarlyStopping`.
    pub fn mode(self) -> Mode {
        match self {
            Self::HigherIsBetter | Self::HigherScoreIsBetter => Mode::Max,
            Self::LowerIsBetter => Mode::Min,
        }
    }

    /// Returns whether larger values are better.
    pub fn is_higher(&self) -> bool {
        *self != Self::LowerIsBetter
    }

    /// Returns whether the metric is a fraction of the examples. Such a metric is shown in percent.
    pub fn is_share(&self) -> bool {
        *self == Self::HigherIsBetter
    }

    /// Returns an error message if the metric `name` is declared as a fraction, but one of its
    /// `values` is not between 0 and 1. Otherwise returns `None`.
    pub(crate) fn no_share(
        self,
        name: &str,
        values: impl IntoIterator<Item = f64>,
    ) -> Option<String> {
        let mut values = values.into_iter().filter(|_| self.is_share());
        let value = values.find(|value| value.is_finite() && !(0.0..=1.0).contains(value))?;
        Some(format!(
            "`{name}` is {value:.4}, which is no fraction of the examples, but the registry \
             declares it as one: declare it with `.score(\"{name}\")`, so that it is not shown \
             in percent"
        ))
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
    /// Whether larger or smaller numbers are better.
    pub direction: Direction,
}

/// The name under which the validation loss is logged.
pub(crate) const LOSS: &str = "val_loss";

impl Judge {
    /// The value by which a model is judged by default: the accuracy, `val_acc`.
    pub const DEFAULT: Self = Self::higher("val_acc");

    /// Judges a model by the logged value `name`, a fraction, for example `val_acc`. Larger values
    /// are better.
    pub const fn higher(name: &'static str) -> Self {
        Self { name, direction: Direction::HigherIsBetter }
    }

    /// Judges a model by the logged value `name`, which is not a fraction, for example `val_psnr`.
    /// Larger values are better.
    pub const fn score(name: &'static str) -> Self {
        Self { name, direction: Direction::HigherScoreIsBetter }
    }

    /// Judges a model by the logged value `name`, for example `val_mae`. Smaller values are better.
    pub const fn lower(name: &'static str) -> Self {
        Self { name, direction: Direction::LowerIsBetter }
    }

    /// Judges a model by its validation loss.
    pub const fn loss() -> Self {
        Self::lower(LOSS)
    }

    /// Returns the smallest possible difference between two values of the metric, where `examples`
    /// is the number of validation examples. For a fraction of the examples, this is 1/`examples`.
    /// Any other metric is assumed to be continuous, and the result is 0.
    pub fn resolution(self, examples: i64) -> f64 {
        match self.direction.is_share() {
            true => 1.0 / examples.max(1) as f64,
            false => 0.0,
        }
    }
}

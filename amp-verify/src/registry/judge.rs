//! The value that a model is judged by.

use serde::{Deserialize, Serialize};

/// Which way a value improves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// As an accuracy.
    #[default]
    HigherIsBetter,
    /// As a loss.
    LowerIsBetter,
}

impl Direction {
    /// How much worse `own` is than `baseline`, in the value's own unit; negative where it is
    /// better.
    pub fn regression(self, baseline: f64, own: f64) -> f64 {
        match self {
            Self::HigherIsBetter => baseline - own,
            Self::LowerIsBetter => own - baseline,
        }
    }

    /// Whether it is [`HigherIsBetter`](Self::HigherIsBetter).
    pub fn is_higher(&self) -> bool {
        *self == Self::HigherIsBetter
    }
}

/// A validation value by its logged name, and which way it improves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Judge {
    /// The name, as in `val_acc`.
    pub name: &'static str,
    /// Which way it improves.
    pub direction: Direction,
}

/// The name of the validation loss.
pub(crate) const LOSS: &str = "val_loss";

impl Judge {
    /// A value that is better when higher, as `val_acc`.
    pub const fn higher(name: &'static str) -> Self {
        Self { name, direction: Direction::HigherIsBetter }
    }

    /// A value that is better when lower, as `val_mae`.
    pub const fn lower(name: &'static str) -> Self {
        Self { name, direction: Direction::LowerIsBetter }
    }

    /// The validation loss.
    pub const fn loss() -> Self {
        Self::lower(LOSS)
    }

    /// The smallest step of the value over so many validation examples: a share of examples moves in
    /// steps of one, another value is continuous.
    pub fn resolution(self, examples: i64) -> f64 {
        match self.direction {
            Direction::HigherIsBetter => 1.0 / examples.max(1) as f64,
            Direction::LowerIsBetter => 0.0,
        }
    }
}

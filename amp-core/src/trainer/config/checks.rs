//! Which invariants a run is held against.

use serde::{Deserialize, Serialize};

use crate::named::named;

/// How often a run is held against the [invariants](crate::trainer::Invariant) of training.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize,
)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Check {
    /// Never.
    Off,
    /// In the first three steps, the tenth, the hundredth and so on, in validations of the same numbers,
    /// and at the ends of epochs: under 1 % of the time of training.
    #[default]
    Cheap,
    /// In each step and validation, with the examples of the data sets compared. Steps that run as CUDA
    /// graphs are not queued.
    Full,
}

named!(Check, "level of checks", {
    Off => "off",
    Cheap => "cheap",
    Full => "full",
});

/// Which invariants a run is held against. A violated one ends the run with
/// [`Error::Invariant`](crate::Error::Invariant).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ChecksConfig {
    /// How often.
    pub level: Check,
    /// Whether the validation sets may have examples of the training set, as where a model is to learn a
    /// few examples by heart. [`Loops::overfit_batches`](super::Loops::overfit_batches) needs no such
    /// permission.
    pub shared_examples: bool,
}

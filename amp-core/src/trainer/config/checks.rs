//! Which invariants of training are checked, and how often.

use serde::{Deserialize, Serialize};

use crate::named::named;

/// How often the [invariants](crate::trainer::Invariant) of training are checked.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize,
)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Check {
    /// Never.
    Off,
    /// In the first three steps, the tenth, the hundredth and so on; in the validations with these
    /// numbers; and at the ends of epochs. It takes less than 1 % of the training time.
    #[default]
    Cheap,
    /// In each step and validation. The examples of the training and validation sets are compared
    /// too. With CUDA graphs, a step is launched only after the step before it has ended.
    Full,
}

named!(Check, "level of checks", {
    Off => "off",
    Cheap => "cheap",
    Full => "full",
});

/// Which invariants of training are checked. A violation ends the run with
/// [`Error::Invariant`](crate::Error::Invariant).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ChecksConfig {
    /// How often they are checked.
    pub level: Check,
    /// Whether the validation sets may contain training examples, for example because the model
    /// should memorize a few examples. [`Loops::overfit_batches`](super::Loops::overfit_batches)
    /// needs no such permission.
    pub shared_examples: bool,
}

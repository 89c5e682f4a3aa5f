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
    /// Checks no invariant.
    Off,
    /// Checks steps 1, 2, 3, 10, 100, 1000 and so on, and the validations with these numbers. Also
    /// checks at the end of an epoch if at least ten steps have run since the last such check. The
    /// checks take less than 1 % of the training time.
    #[default]
    Cheap,
    /// Checks every step and every validation. Also compares the contents of the training examples
    /// with those of the validation examples, to find examples in both sets. With CUDA graphs, a
    /// step is launched only when the previous step has ended, so that each step can be checked.
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
    /// How often the invariants are checked.
    pub level: Check,
    /// Whether the validation sets may contain training examples, for example because the model
    /// should memorize a few examples. A run with
    /// [`Loops::overfit_batches`](super::Loops::overfit_batches) does not need this option.
    pub shared_examples: bool,
}

//! Why a precision fails.

use amp_core::Error;
use serde::{Deserialize, Serialize};

use crate::text::one_line;

/// Why a precision fails before its metric is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// A loss or a metric is not finite.
    NonFinite,
    /// No step was applied, or so many were skipped that the scale collapsed.
    AllSkipped,
    /// No better than a model that was not trained.
    DidNotLearn,
    /// The dtypes are not those of the precision.
    PrecisionDidNotRun,
    /// Weights, order or data are not those of the baseline.
    NotPaired,
    /// The validation set is in the training set.
    Contaminated,
    /// Gradients, updates or schedule are not those of 32-true as far as the dtype allows.
    NotConformant,
    /// A run that nobody watches ends elsewhere than one that is watched.
    Watching,
    /// In training mode a step's gradient is not 32-true's as far as the dtype allows.
    Gradient,
    /// Weights or averages are not what the optimizer makes of the gradients.
    Update,
    /// Learning rates are not the schedule's.
    Schedule,
    /// The scale does not follow its rule.
    Scale,
    /// A step was skipped or applied wrongly, or a skipped one moved something.
    Skip,
    /// Batch statistics are not 32-true's.
    Buffers,
    /// Validation moves something, or is not repeatable.
    Validation,
    /// A resumed run ends elsewhere.
    Resume,
    /// Dropout does not drop as many elements as it scales for.
    Dropout,
    /// A layer's rounding has a mean, because it truncates, or is larger than its dtype explains.
    Rounding,
    /// Values have more or fewer digits than the dtype that their layer computes in.
    Width,
    /// Steps are not made of the batches that they should be.
    Batches,
    /// A step keeps memory, or takes several times that of 32-true.
    Memory,
    /// A run broke an invariant of training.
    Invariant,
    /// A figure is not the golden's.
    Moved,
    /// The golden is of another kind of machine, or there is none.
    NotComparable,
    /// The run ended with an error.
    Crashed,
}

impl Reason {
    /// All of them.
    pub const ALL: &[Self] = &[
        Self::NonFinite,
        Self::AllSkipped,
        Self::DidNotLearn,
        Self::PrecisionDidNotRun,
        Self::NotPaired,
        Self::Contaminated,
        Self::NotConformant,
        Self::Watching,
        Self::Gradient,
        Self::Update,
        Self::Schedule,
        Self::Scale,
        Self::Skip,
        Self::Buffers,
        Self::Validation,
        Self::Resume,
        Self::Dropout,
        Self::Rounding,
        Self::Width,
        Self::Batches,
        Self::Memory,
        Self::Invariant,
        Self::Moved,
        Self::NotComparable,
        Self::Crashed,
    ];

    /// Its name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::NonFinite => "non_finite",
            Self::AllSkipped => "all_skipped",
            Self::DidNotLearn => "did_not_learn",
            Self::PrecisionDidNotRun => "precision_did_not_run",
            Self::NotPaired => "not_paired",
            Self::Contaminated => "contaminated",
            Self::NotConformant => "not_conformant",
            Self::Watching => "watching",
            Self::Gradient => "gradient",
            Self::Update => "update",
            Self::Schedule => "schedule",
            Self::Scale => "scale",
            Self::Skip => "skip",
            Self::Buffers => "buffers",
            Self::Validation => "validation",
            Self::Resume => "resume",
            Self::Dropout => "dropout",
            Self::Rounding => "rounding",
            Self::Width => "width",
            Self::Batches => "batches",
            Self::Memory => "memory",
            Self::Invariant => "invariant",
            Self::Moved => "moved",
            Self::NotComparable => "not_comparable",
            Self::Crashed => "crashed",
        }
    }

    /// What part of training broke its rule, which no choice of precision mends; none where numbers lose
    /// too much.
    pub fn rule(self) -> Option<&'static str> {
        match self {
            Self::Watching => Some("the path that is trained on"),
            Self::Update => Some("clipping or the optimizer's step"),
            Self::Schedule => Some("the learning rate's schedule"),
            Self::Scale => Some("the loss scale"),
            Self::Skip => Some("skipping of steps"),
            Self::Validation => Some("validation"),
            Self::Resume => Some("saving and resuming"),
            Self::Dropout => Some("dropout"),
            Self::Width => Some("the dtype that a layer computes in"),
            Self::Batches => Some("the batches of a step"),
            Self::Memory => Some("memory"),
            Self::Invariant => Some("an invariant of training"),
            _ => None,
        }
    }
}

/// A failure in one line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Failure {
    /// Its kind.
    pub reason: Reason,
    /// What was seen.
    pub text: String,
    /// The [invariant](amp_core::trainer::Invariant) that was broken, by name.
    #[serde(default)]
    pub invariant: Option<String>,
}

impl Failure {
    /// This kind, with what was seen.
    pub fn new(reason: Reason, text: impl Into<String>) -> Self {
        Self { reason, text: one_line(&text.into()), invariant: None }
    }

    pub(super) fn of(error: &Error) -> Self {
        let reason = match error {
            Error::Precision(_) => Reason::PrecisionDidNotRun,
            Error::NonFinite(_) => Reason::NonFinite,
            Error::Scaler(_) => Reason::AllSkipped,
            Error::Invariant { .. } => Reason::Invariant,
            _ => Reason::Crashed,
        };
        let invariant = match error {
            Error::Invariant { name, .. } => Some((*name).to_owned()),
            _ => None,
        };
        Self { invariant, ..Self::new(reason, error.to_string()) }
    }
}

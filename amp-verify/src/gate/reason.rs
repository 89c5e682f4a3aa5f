//! The reasons for which a precision fails the gate.

use amp_core::Error;
use serde::{Deserialize, Serialize};

use crate::text::one_line;

/// The reason for a failure: the rule of the gate that a run broke. A metric that is too much worse
/// than under 32-true has no variant here, because the statistical test reports it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// A loss or a metric is not finite.
    NonFinite,
    /// No step was applied, or training stopped because the loss scale became too small.
    AllSkipped,
    /// The metric of the trained model is not better by the required amount than that of the
    /// control run, in which no weight changes.
    DidNotLearn,
    /// The dtypes in which the model computed differ from those that the precision prescribes, or
    /// 32-true used TF32 although it was not allowed.
    PrecisionDidNotRun,
    /// Initial weights, order of examples, data or random numbers differ from those of the 32-true
    /// run.
    NotPaired,
    /// Too many examples of the validation set are also training examples.
    Contaminated,
    /// The loss, the gradients or the weights in the first steps, or the validation loss, differ
    /// from those of 32-true by more than the precision's rounding explains.
    NotConformant,
    /// The same run ends with different weights, optimizer state or logged values if the gate
    /// observes its steps.
    Watching,
    /// In training mode a step's gradient or loss differs from that of 32-true with the same
    /// weights by more than the precision's rounding explains.
    Gradient,
    /// Weights or optimizer state differ from what the optimizer's formula gives in float64.
    Update,
    /// The learning rates differ from those that the schedule prescribes, or from those of 32-true.
    Schedule,
    /// The loss scale does not fall after an overflow, or does not grow after enough steps without
    /// overflow, as the loss scaler's settings require.
    Scale,
    /// A step was wrongly skipped or applied, or a skipped step changed something.
    Skip,
    /// The running statistics of batch norms differ from those of 32-true by more than rounding
    /// explains.
    Buffers,
    /// Validation changes a tensor, or two validations give different results.
    Validation,
    /// A run that was saved half way, or resumed, ends with other values than an uninterrupted run.
    Resume,
    /// Dropout at a rate p zeroes a fraction p of the elements and scales the others by 1/(1 − p).
    /// The measured fraction and factor do not belong to the same p.
    Dropout,
    /// A layer's rounding errors exceed the bound for its dtype, or turn too many values into zero
    /// or infinity. Or the mean of the errors is not zero, as with truncation in place of rounding
    /// to nearest.
    Rounding,
    /// The values of a layer have more or fewer significant digits than the layer's dtype.
    Width,
    /// Fused layers give other results than the same layers run one at a time, by more than
    /// rounding explains.
    Fusion,
    /// An epoch does not use all its batches, or its steps do not have the requested number of
    /// batches.
    Batches,
    /// Steps leak memory, or need more than twice the memory of 32-true (64-true: four times).
    Memory,
    /// A run violated an invariant of training.
    Invariant,
    /// A value differs from the golden (the recorded values of an earlier run).
    Moved,
    /// The golden (the recorded values of an earlier run) is from another kind of machine, or is
    /// missing.
    NotComparable,
    /// The run ended with an error.
    Crashed,
}

impl Reason {
    /// All reasons for a failure.
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
        Self::Fusion,
        Self::Batches,
        Self::Memory,
        Self::Invariant,
        Self::Moved,
        Self::NotComparable,
        Self::Crashed,
    ];

    /// Returns the name of this reason for a failure, as in reports.
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
            Self::Fusion => "fusion",
            Self::Batches => "batches",
            Self::Memory => "memory",
            Self::Invariant => "invariant",
            Self::Moved => "moved",
            Self::NotComparable => "not_comparable",
            Self::Crashed => "crashed",
        }
    }

    /// Returns a title for this rule.
    pub fn title(self) -> &'static str {
        match self {
            Self::NonFinite => "Finite numbers",
            Self::AllSkipped => "Applied steps",
            Self::DidNotLearn => "Learning",
            Self::PrecisionDidNotRun => "Dtypes",
            Self::NotPaired => "Same start",
            Self::Contaminated => "Separate validation set",
            Self::NotConformant => "Agreement with 32-true",
            Self::Watching => "Unobserved run",
            Self::Gradient => "Gradients",
            Self::Update => "Weight updates",
            Self::Schedule => "Learning rates",
            Self::Scale => "Loss scale",
            Self::Skip => "Skipped steps",
            Self::Buffers => "Batch statistics",
            Self::Validation => "Validation",
            Self::Resume => "Save and resume",
            Self::Dropout => "Dropout rate",
            Self::Rounding => "Rounding of layers",
            Self::Width => "Digits of values",
            Self::Fusion => "Fused layers",
            Self::Batches => "Batches and steps",
            Self::Memory => "Memory",
            Self::Invariant => "Invariants of training",
            Self::Moved => "Golden",
            Self::NotComparable => "Golden of this machine",
            Self::Crashed => "Run",
        }
    }

    /// Describes in one line how the gate checks this rule, as the HTML report does below the
    /// rule's title.
    pub fn compares(self) -> &'static str {
        match self {
            Self::NonFinite => "loss, metric and weights must be finite",
            Self::AllSkipped => "at least one step must be applied",
            Self::DidNotLearn => "compares the metric with that of the same model without training",
            Self::PrecisionDidNotRun => {
                "compares the dtypes in which layers compute with those that the precision \
                 prescribes"
            }
            Self::NotPaired => {
                "compares initial weights, order of examples, validation set and random numbers \
                 with 32-true's"
            }
            Self::Contaminated => "looks for training examples in the validation set",
            Self::NotConformant => {
                "compares the first steps and the validation loss with those of 32-true"
            }
            Self::Watching => "compares an unobserved run with a run that is observed in each step",
            Self::Gradient => {
                "compares each step's gradient with the gradient under 32-true at the same weights"
            }
            Self::Update => {
                "compares weights and optimizer state with the optimizer's rule in float64"
            }
            Self::Schedule => {
                "compares the learning rates of each step with those that the schedule prescribes"
            }
            Self::Scale => {
                "compares the loss scale after each step with the rule of the loss scaler"
            }
            Self::Skip => {
                "compares the skipped steps with the steps whose gradients overflow, and the \
                 weights before a skipped step with those after it"
            }
            Self::Buffers => "compares the running statistics of batch norms with those of 32-true",
            Self::Validation => {
                "compares two validations of the same weights, and the tensors before validation \
                 with those after it"
            }
            Self::Resume => "compares a saved and resumed run with an uninterrupted run",
            Self::Dropout => {
                "compares the fraction of elements that dropout sets to zero with the factor by \
                 which dropout scales the other elements"
            }
            Self::Rounding => {
                "compares the error that each 16-bit layer itself makes with what rounding explains"
            }
            Self::Width => {
                "compares the significant digits of values and gradients with those of their dtype"
            }
            Self::Fusion => "compares fused layers with the same layers run one at a time",
            Self::Batches => {
                "compares the batches and steps of an epoch with those that the data and options \
                 prescribe"
            }
            Self::Memory => {
                "compares the memory of later steps with that of earlier steps, and the peak \
                 memory with 32-true's"
            }
            Self::Invariant => "checks the invariants of training in each run",
            Self::Moved => {
                "compares the results of the first seed with the golden (the recorded results)"
            }
            Self::NotComparable => {
                "compares this machine with the machine on which the golden was recorded"
            }
            Self::Crashed => "the run must end without an error",
        }
    }

    /// Returns which part of training is wrong, if no choice of precision can repair this failure.
    /// Returns `None` for a failure that too low a precision may cause.
    pub fn rule(self) -> Option<&'static str> {
        match self {
            Self::NotPaired => Some("the start of the run, which must be that of 32-true"),
            Self::Watching => Some("the training path"),
            Self::Update => Some("clipping or the optimizer's step"),
            Self::Schedule => Some("the learning rate's schedule"),
            Self::Scale => Some("the loss scale"),
            Self::Skip => Some("skipping of steps"),
            Self::Validation => Some("validation"),
            Self::Resume => Some("saving and resuming"),
            Self::Dropout => Some("dropout"),
            Self::Width => Some("the dtype in which a layer computes"),
            Self::Fusion => Some("the kernel of fused layers"),
            Self::Batches => Some("the batches of a step"),
            Self::Memory => Some("memory"),
            Self::Invariant => Some("an invariant of training"),
            _ => None,
        }
    }
}

/// A failure that the gate has found: its reason, and a description in one line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Failure {
    /// The rule of the gate that is broken.
    pub reason: Reason,
    /// A description of what was observed.
    pub text: String,
    /// The name of the violated [invariant](amp_core::trainer::Invariant). Null for any other
    /// reason.
    #[serde(default)]
    pub invariant: Option<String>,
}

impl Failure {
    /// Creates a failure with this reason and description.
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

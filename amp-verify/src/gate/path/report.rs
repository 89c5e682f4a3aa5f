//! The report on the training path: the properties of the runs whose steps were checked, and the
//! results of the checks.

use serde::{Deserialize, Serialize};

use crate::gate::{checked::Checked, reason::Reason};

/// The properties of the observed runs, and the results of the checks.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct PathReport {
    /// The number of elements of all trained parameters.
    pub parameters: i64,
    /// The number of examples in a batch.
    pub batch_size: i64,
    /// The number of batches in a step.
    pub batches_per_step: i64,
    /// The number of batches in an epoch.
    pub batches: i64,
    /// The number of batches of the epoch that were checked. It is smaller than `batches` if an
    /// epoch is too long to be checked completely.
    pub followed: i64,
    /// The number of applied steps in the run without an observer.
    pub steps: u64,
    /// The number of steps in `steps` that ran as a CUDA graph.
    pub replayed: u64,
    /// Why the model's own code reads tensors within a step, for example in a hook. Such a model
    /// runs without CUDA graphs, and its gradients are clipped before the optimizer's step, not
    /// within it. Null if its code reads no tensors.
    pub watched_by_itself: Option<String>,
    /// The trainer's notes on the run, for example why there are no CUDA graphs.
    pub notes: Vec<String>,
    /// The result of each check.
    pub checked: Vec<Checked>,
}

/// The rules that the observed steps of a run must keep.
pub(super) const RULES: &[Reason] = &[
    Reason::Watching,
    Reason::Gradient,
    Reason::Update,
    Reason::Schedule,
    Reason::Scale,
    Reason::Skip,
    Reason::Buffers,
    Reason::Validation,
    Reason::Resume,
    Reason::Dropout,
    Reason::Rounding,
    Reason::Width,
    Reason::Fusion,
    Reason::Batches,
    Reason::Memory,
];

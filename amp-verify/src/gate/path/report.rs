//! The report on the checks of the training path, and the rules that belong to it.

use serde::{Deserialize, Serialize};

use crate::gate::{checked::Checked, reason::Reason};

/// The properties of the observed runs, and the results of the checks.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct PathReport {
    /// The number of trained values.
    pub parameters: i64,
    /// The number of examples in a batch.
    pub batch_size: i64,
    /// The number of batches in a step.
    pub batches_per_step: i64,
    /// The number of batches in an epoch.
    pub batches: i64,
    /// The number of batches that were trained on.
    pub followed: i64,
    /// The number of applied steps in the unobserved epoch.
    pub steps: u64,
    /// The number of these steps that ran as a CUDA graph.
    pub replayed: u64,
    /// The reason why the model observes its own steps, which prevents CUDA graphs and clipping
    /// within the step; null if it does not.
    pub watched_by_itself: Option<String>,
    /// The trainer's notes on the run, for example why there are no graphs.
    pub notes: Vec<String>,
    /// The results of the checks.
    pub checked: Vec<Checked>,
}

/// The rules of the training path.
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

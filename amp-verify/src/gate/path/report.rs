//! What the path was, and the rules that are judged on it.

use serde::{Deserialize, Serialize};

use crate::gate::{checked::Checked, reason::Reason};

/// What was looked at on the path that a model is trained on.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct PathReport {
    /// Trained numbers.
    pub parameters: i64,
    /// Examples in a batch.
    pub batch_size: i64,
    /// Batches in a step.
    pub batches_per_step: i64,
    /// Batches of an epoch.
    pub batches: i64,
    /// Batches that were trained on.
    pub followed: i64,
    /// Steps of the unwatched epoch that were applied.
    pub steps: u64,
    /// Of those, the ones that ran as a CUDA graph.
    pub replayed: u64,
    /// Why the model looks into its own steps, which keeps them off CUDA graphs and clipping within the
    /// step; null where it does not.
    pub watched_by_itself: Option<String>,
    /// What the trainer said of the run: why there are no graphs, and the like.
    pub notes: Vec<String>,
    /// The rules.
    pub checked: Vec<Checked>,
}

/// The rules that this judges.
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

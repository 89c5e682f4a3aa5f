//! What was checked and what was not.

use serde::{Deserialize, Serialize};

use crate::gate::reason::{Failure, Reason};

/// The result of one check of a rule.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Checked {
    /// The rule, as the reason that its violation gives.
    pub rule: Reason,
    /// What was checked, or why it could not be checked.
    pub about: String,
    /// Whether it was checked.
    pub done: bool,
    /// The measured figure; null if bits are compared, or if the figure is not finite.
    pub figure: Option<f64>,
    /// The bound; null if there is no figure or no bound.
    pub bound: Option<f64>,
}

/// The checks of the path on which a model is trained.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Seen {
    /// The number of trained values.
    pub parameters: i64,
    /// Examples in a batch.
    pub batch_size: i64,
    /// Batches in a step.
    pub batches_per_step: i64,
    /// Batches per epoch.
    pub batches: i64,
    /// The number of batches that were trained on.
    pub followed: i64,
    /// Applied steps of the unobserved epoch.
    pub steps: u64,
    /// Those of them that ran as a CUDA graph.
    pub replayed: u64,
    /// Why the model reads its own steps, which prevents CUDA graphs and clipping within the step; null
    /// if it does not.
    pub watched_by_itself: Option<String>,
    /// Notes of the trainer about the run, for example why there are no graphs.
    pub notes: Vec<String>,
    /// The rules.
    pub checked: Vec<Checked>,
}

/// The results so far.
#[derive(Default)]
pub(super) struct Findings {
    pub(super) failures: Vec<Failure>,
    pub(super) examined: Seen,
}

impl Findings {
    /// Adds a failure, once for each rule.
    pub(super) fn fail(&mut self, reason: Reason, text: impl Into<String>) {
        if self.failures.iter().all(|failure| failure.reason != reason) {
            self.failures.push(Failure::new(reason, text));
        }
    }

    /// A rule that was checked and holds.
    pub(super) fn held(&mut self, rule: Reason, about: String) {
        let checked = Checked { rule, about, done: true, figure: None, bound: None };
        self.examined.checked.push(checked);
    }

    /// A figure; it fails if it exceeds the bound.
    pub(super) fn measured(&mut self, rule: Reason, about: String, figure: f64, bound: f64) {
        // NaN is within no bound.
        if figure.is_nan() || figure > bound {
            self.fail(rule, format!("{about}: {figure:.2e}, beyond {bound:.1e}"));
        }
        let finite = |value: f64| Some(value).filter(|value| value.is_finite());
        let (figure, bound) = (finite(figure), finite(bound));
        self.examined.checked.push(Checked { rule, about, done: true, figure, bound });
    }

    pub(super) fn left_out(&mut self, rule: Reason, why: &str) {
        let about = why.to_owned();
        let checked = Checked { rule, about, done: false, figure: None, bound: None };
        self.examined.checked.push(checked);
    }

    /// A result without any check.
    pub(super) fn not_checked(&mut self, why: &str) {
        for rule in [
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
            Reason::Batches,
            Reason::Memory,
        ] {
            self.left_out(rule, why);
        }
    }
}

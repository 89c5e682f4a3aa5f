//! What was checked, and what was not.

use serde::{Deserialize, Serialize};

use crate::gate::reason::{Failure, Reason};

/// One thing that was, or was not, held against its rule.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Checked {
    /// The rule, by the reason for which a precision fails that breaks it.
    pub rule: Reason,
    /// What was looked at, or why nothing was.
    pub about: String,
    /// Whether it was looked at.
    pub done: bool,
    /// What was measured; null where bits are compared, or it is not finite.
    pub figure: Option<f64>,
    /// The most that it may be; null where there is no figure or no bound.
    pub bound: Option<f64>,
}

/// What was looked at on the path that a model is trained on.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Seen {
    /// Trained numbers.
    pub parameters: i64,
    /// Examples in a batch.
    pub batch_size: i64,
    /// Batches in a step.
    pub batches_per_step: i64,
    /// Batches of an epoch, and how many of them were trained on.
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

/// What was found so far.
#[derive(Default)]
pub(super) struct Findings {
    pub(super) failures: Vec<Failure>,
    pub(super) examined: Seen,
}

impl Findings {
    /// Says what is wrong, once for each rule.
    pub(super) fn fail(&mut self, reason: Reason, text: impl Into<String>) {
        if self.failures.iter().all(|failure| failure.reason != reason) {
            self.failures.push(Failure::new(reason, text));
        }
    }

    /// A rule whose breach would have been said.
    pub(super) fn held(&mut self, rule: Reason, about: String) {
        let checked = Checked { rule, about, done: true, figure: None, bound: None };
        self.examined.checked.push(checked);
    }

    /// A figure; beyond the bound it fails.
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

    /// Nothing at all.
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

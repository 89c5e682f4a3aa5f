//! Goldens: recorded results of training a model under several precisions, and the rules for
//! comparing new results with them.

mod anchor;
mod comparable;
mod compare;
mod folder;
mod isolate;
mod kernels;
mod record_or_compare;
mod spread;
mod target;

pub use anchor::{Anchor, Anchored, Value};
pub use comparable::{incomparable, machine};
pub use compare::{Agreement, Moved, Tolerances, refuses_not_a_number, table};
pub use isolate::{Site, Training, Turn};
pub use record_or_compare::{Taken, file_name};
pub use spread::{Samples, Spread};
pub use target::{Check, Target};

use std::collections::{BTreeMap, BTreeSet};

use amp_core::{Error, Result, hardware::Fingerprint};
use serde::{Deserialize, Serialize};

use crate::{
    comparison::{Comparison, Run},
    registry::Direction,
    verdict::{Design, standard_deviation},
};

/// The recorded results of training a model under several precisions. A test compares the results
/// of later runs with them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Golden {
    /// The name under which the model is registered.
    pub model: String,
    /// The name of the data set.
    pub data: String,
    /// The seeds of the training runs. The values in `runs` are those of the first seed. Only
    /// [`Figures::paired`] is computed from all seeds.
    pub seeds: Vec<u64>,
    /// The description of the machine on which the results were recorded. The results cannot be
    /// compared with results of another kind of machine.
    pub fingerprint: Option<Fingerprint>,
    /// The model's margin: the gate fails a precision whose metric is worse than that of 32-true by
    /// this much or more.
    pub margin: f64,
    /// Whether larger or smaller values of the metric are better.
    #[serde(default, skip_serializing_if = "Direction::is_share")]
    pub direction: Direction,
    /// The accepted difference between peak memory and the recorded peak memory, relative to the
    /// latter.
    pub memory_share: f64,
    /// The number N of validation examples: an accuracy is a multiple of 1/N.
    pub examples: i64,
    /// The number of epochs of each training run.
    pub epochs: i64,
    /// The number of examples per batch.
    pub batch_size: i64,
    /// The values of hyperparameters, by name.
    pub hyperparameters: amp_core::Hyperparameters,
    /// The results under each precision, by the precision's name.
    pub runs: BTreeMap<String, Figures>,
}

/// The results under one precision.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Figures {
    /// The validation metric; null if it is not finite.
    pub accuracy: Option<f64>,
    /// The metric minus the metric of 32-true; null for 32-true itself.
    pub accuracy_delta: Option<f64>,
    /// The validation loss; null if it is not finite.
    pub loss: Option<f64>,
    /// The number of skipped optimizer steps.
    pub skipped_steps: u64,
    /// The loss scale at the end of the run; null if the precision has no loss scale.
    pub final_scale: Option<f64>,
    /// The largest number of bytes that tensors occupied at one time.
    pub peak_memory_bytes: u64,
    /// The dtypes of the matrix products in the first step.
    pub matmul: BTreeSet<String>,
    /// The dtype of the loss.
    pub loss_dtype: String,
    /// The dtypes of the weights.
    pub weights: BTreeSet<String>,
    /// Statistics of the differences from 32-true over the seeds; null for 32-true itself, and if
    /// there is only one seed.
    pub paired: Option<Paired>,
}

/// Statistics of the differences between a precision and 32-true over several seeds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Paired {
    /// The number of seeds.
    pub n: usize,
    /// The mean over the seeds of the regression: by how much the metric is worse under the
    /// precision than under 32-true. The regression is negative if the precision is better.
    pub mean: f64,
    /// The standard deviation of the regression over the seeds. It is never below the standard
    /// deviation of the rounding of an accuracy to multiples of 1/N for N validation examples.
    pub s: f64,
    /// The standard deviation, over the seeds, of the difference between the validation loss under
    /// the precision and under 32-true.
    pub loss_s: f64,
    /// The probability that a precision without regression passes the gate with this number of seeds.
    pub power: f64,
}

impl Golden {
    /// Creates a golden (the results to record). `comparisons` has one comparison of the model's
    /// precisions for each seed. A precision fails the gate if its metric is worse than 32-true's
    /// by `margin` or more.
    ///
    /// # Errors
    /// When `comparisons` is empty.
    pub fn over_seeds(comparisons: &[Comparison], margin: f64, examples: i64) -> Result<Self> {
        let Some(first) = comparisons.first() else {
            return Err(Error::config("a golden needs at least one seed"));
        };
        let subject = &first.subject;
        let figures = |(at, run): (usize, &Run)| {
            let paired = paired(comparisons, at, margin, examples);
            (run.precision.name().to_owned(), Figures { paired, ..Figures::from(run) })
        };
        Ok(Self {
            model: subject.run.model.clone(),
            data: subject.run.data.clone(),
            seeds: comparisons.iter().map(|comparison| comparison.subject.run.seed).collect(),
            fingerprint: Some(subject.run.fingerprint.clone()),
            margin,
            direction: first.direction,
            memory_share: compare::MEMORY_SHARE,
            examples,
            epochs: subject.max_epochs,
            batch_size: first.batch_size,
            hyperparameters: subject.run.hyperparameters.clone(),
            runs: first.runs.iter().enumerate().map(figures).collect(),
        })
    }
}

/// Computes statistics over the seeds of the differences between a precision and the baseline.
/// `comparisons` has one comparison for each seed, in which the precision's run has the index `at`
/// and the baseline's the index 0. Returns `None` if `at` is 0, or if there are fewer than two
/// seeds.
fn paired(comparisons: &[Comparison], at: usize, margin: f64, examples: i64) -> Option<Paired> {
    if at == 0 || comparisons.len() < 2 {
        return None;
    }
    let deltas = comparisons.iter().map(|comparison| comparison.runs[at].delta.as_ref());
    let direction = comparisons[0].direction;
    // The difference of the metrics is passed as the precision's metric, so 32-true's is 0.
    let worse = |delta: f64| direction.regression(0.0, delta);
    let worse: Vec<f64> =
        deltas.clone().map(|delta| delta?.accuracy.map(worse)).collect::<Option<_>>()?;
    let loss: Vec<f64> = deltas.map(|delta| delta?.loss).collect::<Option<_>>()?;
    let (alpha, n) = (0.05, worse.len());
    let resolution = if direction.is_share() { 1.0 / examples as f64 } else { 0.0 };
    let design = Design { margin, alpha, first: n, most: n, resolution, equivalence: false };
    let found = design.judge(&worse);
    let loss_s = standard_deviation(&loss);
    Some(Paired { n, mean: found.mean, s: found.s_used, loss_s, power: found.power })
}

/// Parses recorded results (a golden) from JSON, or from the text of an insta snapshot, which has a
/// header before the JSON.
///
/// # Errors
/// When the text is neither of the two.
pub fn parse(text: &str) -> Result<Golden> {
    let body = match text.strip_prefix("---\n") {
        Some(rest) => rest.split_once("---\n").map_or("", |(_, body)| body),
        None => text,
    };
    serde_json::from_str(body).map_err(|error| Error::config(format!("golden: {error}")))
}

impl From<&Run> for Figures {
    fn from(run: &Run) -> Self {
        Self {
            accuracy: run.accuracy,
            accuracy_delta: run.delta.as_ref().and_then(|delta| delta.accuracy),
            loss: run.loss,
            skipped_steps: run.skipped_steps,
            final_scale: run.final_scale,
            peak_memory_bytes: run.peak_memory_bytes,
            matmul: run.observed.matmul.clone(),
            loss_dtype: run.observed.loss.clone(),
            weights: run.observed.parameters.clone(),
            paired: None,
        }
    }
}

//! Runs beside their baseline.

use amp_core::{
    event::{FitStart, Skipped},
    precision::Precision,
    probe::Observed,
    record::RunRecord,
};
use serde::{Deserialize, Serialize};

/// A case's runs, each with its deltas.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// The form of this object; a change of meaning changes it.
    pub schema: String,
    /// What ran: model, data, machine, hyperparameters. Its precision is the baseline's.
    #[serde(flatten)]
    pub subject: FitStart,
    /// Examples in a batch.
    pub batch_size: i64,
    /// The validation metric reported as accuracy.
    pub metric: String,
    /// The baseline first.
    pub runs: Vec<Run>,
}

/// One precision's figures.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// The precision.
    pub precision: Precision,
    /// The last epoch's validation metric; null when it is not a number.
    pub accuracy: Option<f64>,
    /// The last epoch's validation loss; null when it is not finite.
    pub loss: Option<f64>,
    /// Optimizer steps applied.
    pub applied_steps: u64,
    /// Optimizer steps skipped on overflow.
    pub skipped_steps: u64,
    /// The first parameter blamed for a skipped step.
    pub first_culprit: Option<String>,
    /// Where the first skipped step stopped being finite.
    pub first_cause: Option<String>,
    /// The loss scale at the end; null where the precision has none.
    pub final_scale: Option<f64>,
    /// The most tensor bytes at once.
    pub peak_memory_bytes: u64,
    /// Seconds of training, without validation.
    pub train_seconds: f64,
    /// The dtypes that were seen.
    pub observed: Observed,
    /// What the user should know.
    pub notes: Vec<String>,
    /// This run less the baseline; null for the baseline itself.
    pub delta: Option<Delta>,
}

/// A run against the baseline.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Delta {
    /// Accuracy less the baseline's.
    pub accuracy: Option<f64>,
    /// Loss less the baseline's.
    pub loss: Option<f64>,
    /// Skipped steps less the baseline's.
    pub skipped_steps: i64,
    /// Peak memory over the baseline's.
    pub peak_memory_ratio: f64,
    /// Training time over the baseline's.
    pub train_seconds_ratio: f64,
}

impl Comparison {
    /// Compares records of one case; the first is the baseline.
    ///
    /// # Panics
    /// When there is no record.
    pub fn new(records: Vec<RunRecord>, metric: &str, batch_size: i64) -> Self {
        let subject = records.first().expect("a comparison has a baseline").start.clone();
        let mut runs: Vec<Run> =
            records.into_iter().map(|record| Run::new(record, metric)).collect();
        let baseline = runs[0].clone();
        for run in &mut runs[1..] {
            run.delta = Some(Delta::new(run, &baseline));
        }
        Self { schema: "amp-verify/1".into(), subject, batch_size, metric: metric.into(), runs }
    }
}

impl Run {
    fn new(record: RunRecord, metric: &str) -> Self {
        let finite = |name: &str| record.last(name).filter(|value| value.is_finite());
        Self {
            precision: record.start.precision,
            accuracy: finite(metric),
            loss: finite("val_loss"),
            applied_steps: record.end.global_step,
            skipped_steps: record.end.skipped,
            first_culprit: record.skips.first().and_then(|skip| skip.culprit.clone()),
            first_cause: record.skips.first().map(Skipped::cause),
            final_scale: record.end.scale,
            peak_memory_bytes: record.memory.unwrap_or_default().peak_allocated,
            train_seconds: record.epochs.iter().map(|epoch| epoch.train_seconds).sum(),
            observed: record.observed,
            notes: record.notes,
            delta: None,
        }
    }
}

impl Delta {
    fn new(run: &Run, baseline: &Run) -> Self {
        let difference = |a: Option<f64>, b: Option<f64>| Some(a? - b?);
        Self {
            accuracy: difference(run.accuracy, baseline.accuracy),
            loss: difference(run.loss, baseline.loss),
            skipped_steps: run.skipped_steps.cast_signed() - baseline.skipped_steps.cast_signed(),
            peak_memory_ratio: run.peak_memory_bytes as f64 / baseline.peak_memory_bytes as f64,
            train_seconds_ratio: run.train_seconds / baseline.train_seconds,
        }
    }
}

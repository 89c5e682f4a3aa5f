//! Compares training runs under several precisions with the 32-true baseline.

use amp_core::{
    Error, Result,
    event::{FitStart, Skipped},
    precision::Precision,
    probe::{Drawn, Observed},
    record::RunRecord,
};
use serde::{Deserialize, Serialize};

use crate::{
    draws,
    registry::{Direction, Judge},
    verdict::{mean, standard_deviation, t_quantile},
};

/// The training runs of one model on the same data under several precisions, with the differences
/// of each run from the baseline, the 32-true run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// The version of this format. The version changes if a field gets another meaning.
    pub schema: String,
    /// The model, data, machine and hyperparameters of all runs. Its precision is the baseline's.
    #[serde(flatten)]
    pub subject: FitStart,
    /// The number of examples per batch.
    pub batch_size: i64,
    /// The name of the validation metric. The fields named `accuracy` contain its values.
    pub metric: String,
    /// Whether larger or smaller values of the metric are better.
    #[serde(default)]
    pub direction: Direction,
    /// The seeds of the runs. The values in [`Run`] are those of the first seed.
    /// [`Run::over_seeds`] has the values of all seeds.
    pub seeds: Vec<u64>,
    /// The runs. The first one is the baseline.
    pub runs: Vec<Run>,
    /// The precisions under which a run failed. They have no entry in `runs`.
    #[serde(default)]
    pub failed: Vec<FailedRun>,
}

/// A precision that has no results, because a run under it ended with an error.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailedRun {
    /// The precision of the run.
    pub precision: Precision,
    /// The seed of the run.
    pub seed: u64,
    /// The error with which the run ended.
    pub reason: String,
}

/// Checks that no precision failed.
///
/// # Errors
/// When a precision failed. The error names the precisions.
pub(crate) fn failed_under(failed: &[FailedRun]) -> Result<()> {
    if failed.is_empty() {
        return Ok(());
    }
    let names: Vec<&str> = failed.iter().map(|run| run.precision.name()).collect();
    let text = format!("no results under {}: the report gives the reason", names.join(", "));
    Err(Error::Precision(text))
}

/// The results of the run under one precision.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// The precision of the run.
    pub precision: Precision,
    /// The metric in the last validation of the run; null if it is not finite.
    pub accuracy: Option<f64>,
    /// The loss in the last validation; null if it is not finite.
    pub loss: Option<f64>,
    /// The names of the values that were not finite in the last validation.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_finite: Vec<String>,
    /// The number of optimizer steps that were applied.
    pub applied_steps: u64,
    /// The number of optimizer steps that were skipped.
    pub skipped_steps: u64,
    /// The first parameter with a NaN or an infinity in its gradient in the first skipped step.
    /// Null if no step was skipped, or if this step was skipped for another reason.
    pub first_culprit: Option<String>,
    /// The module, the loss or the gradient in which the first NaN or infinity of the first skipped
    /// step arose. Null if no step was skipped.
    pub first_cause: Option<String>,
    /// The loss scale at the end of training; null if the precision has no loss scale.
    pub final_scale: Option<f64>,
    /// The largest number of bytes that tensors occupied at one time.
    pub peak_memory_bytes: u64,
    /// The time spent on training, in seconds, without the time of validation.
    pub train_seconds: f64,
    /// The dtypes of matrix products, loss and weights, as observed in the first step.
    pub observed: Observed,
    /// Notes for the user, for example about an option that had no effect.
    pub notes: Vec<String>,
    /// The differences from the baseline; null for the baseline itself.
    pub delta: Option<Delta>,
    /// The results of all seeds under this precision; null if there is only one seed.
    pub over_seeds: Option<OverSeeds>,
}

/// The results of all seeds under one precision.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OverSeeds {
    /// The validation metric of each seed.
    pub accuracy: Sample,
    /// The validation loss of each seed.
    pub loss: Sample,
    /// For each seed, the metric minus the baseline's metric; null for the baseline itself.
    pub accuracy_delta: Option<Sample>,
    /// For each seed, the loss minus the baseline's loss; null for the baseline itself.
    pub loss_delta: Option<Sample>,
    /// The number of applied optimizer steps, summed over all seeds.
    pub applied_steps: u64,
    /// The number of skipped optimizer steps, summed over all seeds.
    pub skipped_steps: u64,
}

/// The values of one quantity, for example of the validation loss, one for each seed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// The value of each seed, in the order of the seeds; null if it is not finite.
    pub values: Vec<Option<f64>>,
    /// The 95 % confidence interval of the mean; null if a value is not finite.
    pub interval: Option<Interval>,
}

/// Student's 95 % confidence interval of a mean: mean ± t(0.975, n − 1)·s/√n, where s is the
/// standard deviation of the n values. An accuracy over N validation examples is a multiple of 1/N.
/// The values of a few seeds may therefore be equal by chance, and the interval would be too
/// narrow. To prevent this, s is at least the standard deviation that rounding to multiples of 1/N
/// causes: (1/N)/√12 for a metric, and (1/N)/√6 for the difference of two metrics.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// The mean of the values.
    pub mean: f64,
    /// Half of the width of the interval: the interval is `mean` ± `half_width`.
    pub half_width: f64,
}

impl Sample {
    /// Computes the confidence interval of `values`. Takes `least` for the standard deviation if
    /// the standard deviation of the values is smaller.
    pub fn new(values: Vec<Option<f64>>, least: f64) -> Self {
        let numbers: Option<Vec<f64>> = values.iter().copied().collect();
        let interval = numbers.filter(|numbers| numbers.len() > 1).map(|numbers| {
            let n = numbers.len() as f64;
            let s = standard_deviation(&numbers).max(least);
            let half_width = t_quantile(0.975, n - 1.0) * s / n.sqrt();
            Interval { mean: mean(&numbers), half_width }
        });
        Self { values, interval }
    }
}

/// The differences of a run from the baseline.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Delta {
    /// The metric minus the metric of the baseline; null if one of the two is not finite.
    pub accuracy: Option<f64>,
    /// The validation loss minus the loss of the baseline; null if one of the two is not finite.
    pub loss: Option<f64>,
    /// The number of skipped steps minus the number of skipped steps of the baseline.
    pub skipped_steps: i64,
    /// The peak memory divided by the peak memory of the baseline.
    pub peak_memory_ratio: f64,
    /// The training time divided by the training time of the baseline.
    pub train_seconds_ratio: f64,
}

impl Comparison {
    /// Compares the training runs of one model under several precisions. `records` has one record
    /// for each precision; the first is the record of the baseline.
    ///
    /// # Panics
    /// When there is no record.
    pub fn new(records: Vec<RunRecord>, judge: Judge, batch_size: i64) -> Self {
        let subject = records.first().expect("a comparison has a baseline").start.clone();
        let mut runs: Vec<Run> =
            records.into_iter().map(|record| Run::new(record, judge.name)).collect();
        let values = runs.iter().filter_map(|run| run.accuracy);
        let no_share = judge.direction.no_share(judge.name, values);
        runs[0].notes.extend(no_share);
        let baseline = runs[0].clone();
        for run in &mut runs[1..] {
            run.delta = Some(Delta::new(run, &baseline));
            run.notes.extend(run.draws_otherwise(&baseline));
        }
        Self {
            schema: "amp-verify/2".into(),
            seeds: vec![subject.run.seed],
            subject,
            batch_size,
            metric: judge.name.into(),
            direction: judge.direction,
            runs,
            failed: Vec::new(),
        }
    }

    /// Returns the notes of all runs, each once, and before each note the precisions whose runs have
    /// it.
    pub(crate) fn notes(&self) -> Vec<String> {
        let mut notes: Vec<(&str, Vec<&str>)> = Vec::new();
        for run in &self.runs {
            for note in &run.notes {
                match notes.iter_mut().find(|(text, _)| text == note) {
                    Some((_, precisions)) => precisions.push(run.precision.name()),
                    None => notes.push((note, vec![run.precision.name()])),
                }
            }
        }
        let whose = |precisions: &[&str]| match precisions.len() > 1 {
            true if precisions.len() == self.runs.len() => "all precisions".to_owned(),
            _ => precisions.join(", "),
        };
        notes.iter().map(|(text, precisions)| format!("{}: {text}", whose(precisions))).collect()
    }

    /// Returns an error if a run failed, or if a validation value of some run is not finite.
    ///
    /// # Errors
    /// When a run failed: the error names the precisions. When a value is not finite: the error names
    /// the value and the precision.
    pub fn is_sound(&self) -> Result<()> {
        failed_under(&self.failed)?;
        let bad = self.runs.iter().filter_map(|run| {
            let seeds = run.over_seeds.as_ref();
            let lost = |of: fn(&OverSeeds) -> &Sample| {
                seeds.is_some_and(|seeds| of(seeds).values.contains(&None))
            };
            let mut names = run.not_finite.clone();
            for (name, lost) in
                [("val_loss", lost(|s| &s.loss)), (&self.metric, lost(|s| &s.accuracy))]
            {
                if lost && !names.iter().any(|own| own == name) {
                    names.push(name.to_owned());
                }
            }
            (!names.is_empty()).then(|| format!("{} under {}", names.join(", "), run.precision))
        });
        let bad: Vec<String> = bad.collect();
        match bad.is_empty() {
            true => Ok(()),
            false => Err(Error::NonFinite(format!("not finite: {}", bad.join("; ")))),
        }
    }

    /// Adds the results of further seeds. Each comparison in `others` compares runs of the same
    /// model on the same data with another seed. `step` is the smallest possible difference between
    /// two values of the metric (1/N for an accuracy over N examples). A precision under which the
    /// run of some seed failed has no results.
    #[must_use]
    pub fn with_seeds(mut self, others: &[Self], step: f64) -> Self {
        if others.is_empty() {
            return self;
        }
        self.failed.extend(others.iter().flat_map(|other| other.failed.iter().cloned()));
        let failed = &self.failed;
        self.runs.retain(|run| !failed.iter().any(|other| other.precision == run.precision));
        let all: Vec<&Self> = std::iter::once(&self).chain(others).collect();
        let seeds = all.iter().map(|comparison| comparison.subject.run.seed).collect();
        let over_seeds: Vec<OverSeeds> =
            self.runs.iter().map(|run| OverSeeds::of(&all, run.precision, step)).collect();
        for (run, figures) in self.runs.iter_mut().zip(over_seeds) {
            run.over_seeds = Some(figures);
        }
        self.seeds = seeds;
        self
    }
}

impl OverSeeds {
    /// Collects the results of all seeds for one precision. `all` has one comparison for each seed,
    /// each with a run under this precision.
    fn of(all: &[&Comparison], precision: Precision, step: f64) -> Self {
        let is_own = |run: &&Run| run.precision == precision;
        let runs = || all.iter().filter_map(|comparison| comparison.runs.iter().find(is_own));
        let is_baseline = runs().any(|run| run.delta.is_none());
        let delta = |of: fn(&Delta) -> Option<f64>, least: f64| {
            let values = runs().map(|run| run.delta.as_ref().and_then(of)).collect();
            (!is_baseline).then(|| Sample::new(values, least))
        };
        let (one, two) = (step / 12.0_f64.sqrt(), step / 6.0_f64.sqrt());
        Self {
            accuracy: Sample::new(runs().map(|run| run.accuracy).collect(), one),
            loss: Sample::new(runs().map(|run| run.loss).collect(), 0.0),
            accuracy_delta: delta(|delta| delta.accuracy, two),
            loss_delta: delta(|delta| delta.loss, 0.0),
            applied_steps: runs().map(|run| run.applied_steps).sum(),
            skipped_steps: runs().map(|run| run.skipped_steps).sum(),
        }
    }
}

impl Run {
    fn new(record: RunRecord, metric: &str) -> Self {
        let finite = |name: &str| record.last(name).filter(|value| value.is_finite());
        Self {
            precision: record.start.run.precision,
            accuracy: finite(metric),
            loss: finite("val_loss"),
            not_finite: record.not_finite().into_iter().map(|own| own.name.clone()).collect(),
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
            over_seeds: None,
        }
    }

    /// Returns a note on the random numbers that this run drew in another dtype than the baseline.
    /// Returns `None` if there are no such numbers, or if this run drew 16-bit numbers, which
    /// another note reports.
    fn draws_otherwise(&self, baseline: &Self) -> Option<String> {
        if self.observed.draws.iter().any(Drawn::is_narrow) {
            return None;
        }
        let (own, base) = (&self.observed.draws, &baseline.observed.draws);
        draws::difference(own, baseline.precision, base)
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

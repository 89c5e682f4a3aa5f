//! The gate's report.

use amp_core::{Hyperparameters, hardware::Fingerprint, precision::Precision};
use serde::{Deserialize, Serialize};

use super::{
    args::Tier,
    checked::Checked,
    finding::Finding,
    job::Task,
    path::PathReport,
    reason::{Failure, Reason},
};
use crate::{
    changes::Changes,
    length::Length,
    registry::Direction,
    verdict::{Judgement, Verdict},
};

/// The status of one model under one precision, or of a whole report. The variants are ordered from
/// best to worst. A report has the worst status of all models and precisions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// The precision is worse than 32-true by less than the margin, and no check failed.
    Pass,
    /// The seeds are too few to decide.
    Inconclusive,
    /// The golden (the recorded values of an earlier run) is from another kind of machine, or
    /// missing.
    NotComparable,
    /// The precision is worse than 32-true by more than the margin (with `--equivalence`, also if
    /// it is better by more than the margin), or a check failed.
    Regression,
}

impl Status {
    /// Returns the exit code of the process.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Pass => 0,
            Self::Regression => 1,
            Self::Inconclusive => 3,
            Self::NotComparable => 4,
        }
    }

    /// Returns the name of the status in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pass => "PASS",
            Self::Inconclusive => "INCONCLUSIVE",
            Self::NotComparable => "NOT COMPARABLE",
            Self::Regression => "FAIL",
        }
    }
}

/// The gate's report.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The version of this format. The version changes if a field gets another meaning.
    pub schema: String,
    /// The overall status: the worst status of any model and precision.
    pub status: Status,
    /// The tier in which the gate ran.
    pub tier: Tier,
    /// The description of the machine. Null if no control run finished.
    pub fingerprint: Option<Fingerprint>,
    /// The significance level α: the accepted probability that a precision passes although it is
    /// worse than 32-true by the margin.
    pub alpha: f64,
    /// The time limit for the checks of rules and the full training runs, in seconds. Null if there
    /// is no limit.
    #[serde(default)]
    pub time_limit_seconds: Option<f64>,
    /// The results, one entry for each model.
    pub models: Vec<ModelReport>,
    /// What the nightly tier would run in addition: further precisions, longer runs, more seeds.
    pub left_out: Vec<String>,
    /// The number of failing combinations of model and precision that were not diagnosed.
    pub undiagnosed: usize,
    /// The number of jobs (training runs and checks) that were run.
    pub executed: usize,
    /// The number of jobs whose outcome was cached.
    pub cached: usize,
    /// How long each job took, the longest first. For a cached job, this is the time of its
    /// original run.
    #[serde(default)]
    pub jobs: Vec<JobTime>,
    /// How long the gate took, in seconds.
    pub seconds: f64,
}

/// The time and the memory of a job of the gate.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JobTime {
    /// The name of the model.
    pub model: String,
    /// The precision of the run.
    pub precision: Precision,
    /// What the job does: train, or check the model.
    pub task: Task,
    /// The seed of the run.
    pub seed: u64,
    /// How long the job took, in seconds.
    pub seconds: f64,
    /// The largest number of bytes that tensors occupied at one time. 0 if the job failed.
    pub peak_memory_bytes: u64,
}

/// The results of one model under all precisions.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelReport {
    /// The name under which the model is registered.
    pub model: String,
    /// The name of the metric by which the model is judged.
    pub metric: String,
    /// Whether larger or smaller values of the metric are better.
    pub direction: Direction,
    /// The length of each training run.
    pub length: Length,
    /// The changes to the registered model that the options ask for.
    pub changes: Changes,
    /// The values of all hyperparameters of the model. Empty if the control run failed.
    pub hyperparameters: Hyperparameters,
    /// The margin: a precision that is worse than 32-true by this much or more is a regression.
    pub margin: f64,
    /// By how much the metric of a trained model must be better than the metric of the control run,
    /// in which no weight changes.
    pub learns_by: f64,
    /// The metric of the control run, in which no weight changes. Null if the control run failed.
    pub control: Option<f64>,
    /// The results under each precision, in JSON called `cells`.
    #[serde(rename = "cells")]
    pub results: Vec<PrecisionResult>,
}

/// The results of one model under one precision: a row of the gate's table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PrecisionResult {
    /// The precision that was judged.
    pub precision: Precision,
    /// The verdict on this precision.
    pub status: Status,
    /// The result of the statistical test. Null if a run failed, or if fewer than two seeds were
    /// run.
    pub judgement: Option<Judgement>,
    /// Why the precision failed, in the order in which the failures were found.
    pub failures: Vec<Failure>,
    /// The seeds of the full training runs.
    pub seeds: Vec<u64>,
    /// The metric of the 32-true run with each seed.
    pub baseline: Vec<Option<f64>>,
    /// The metric of the precision's run with each seed.
    pub metric: Vec<Option<f64>>,
    /// The checks of the full training runs, except the statistical test. Null if there were no
    /// such runs or one of them failed.
    pub runs: Option<Vec<Checked>>,
    /// The comparison of the first steps with 32-true. Null if this job failed.
    pub conformance: Option<Vec<Checked>>,
    /// The checks of the steps of an observed run. Null if this job failed.
    pub path: Option<PathReport>,
    /// The largest number of bytes that tensors occupied at one time in a full run, over all seeds
    /// and including 32-true. Null if no run ended.
    #[serde(default)]
    pub peak_memory_bytes: Option<u64>,
    /// The largest number of bytes that tensors occupied at one time in the short runs whose steps
    /// the gate observes. This includes tensors that the gate keeps for its checks.
    #[serde(default)]
    pub watched_peak_memory_bytes: Option<u64>,
    /// Whether the time limit prevented training runs with further seeds.
    #[serde(default)]
    pub cut_short: bool,
    /// Whether the time limit was reached before all rules of the gate were judged.
    #[serde(default)]
    pub rules_cut_short: bool,
    /// The number of skipped steps, over all seeds.
    pub skipped_steps: u64,
    /// The diagnosis of the failure. Null if nothing failed, or if no diagnosis was made.
    pub finding: Option<Finding>,
}

impl ModelReport {
    /// Returns a warning for the report if the registry declares the metric as a fraction, but a
    /// measured value is not between 0 and 1.
    pub fn no_share(&self) -> Option<String> {
        let of = |result: &PrecisionResult| [result.baseline.clone(), result.metric.clone()];
        let values = self.results.iter().flat_map(of).flatten().flatten();
        self.direction.no_share(&self.metric, values.chain(self.control))
    }
}

impl PrecisionResult {
    /// Sets the status to what follows from the failures and the statistical test.
    pub(super) fn settle(mut self) -> Self {
        let moved = |failure: &Failure| failure.reason != Reason::NotComparable;
        self.status = if self.failures.iter().any(moved) {
            Status::Regression
        } else if !self.failures.is_empty() {
            Status::NotComparable
        } else {
            match self.judgement.as_ref().map(|judgement| judgement.verdict) {
                Some(Verdict::Pass) => Status::Pass,
                Some(Verdict::Fail) => Status::Regression,
                Some(Verdict::Inconclusive) | None => Status::Inconclusive,
            }
        };
        self
    }

    /// Returns the main reason for the status of this model and precision, in one line. The line is
    /// empty if the status needs no reason.
    pub fn note(&self) -> String {
        match (&self.failures.first(), &self.judgement) {
            (Some(failure), _) => failure.text.clone(),
            (None, Some(judgement)) if judgement.improved => {
                "better than 32-true by more than the margin".into()
            }
            (None, Some(judgement)) if judgement.verdict == Verdict::Fail => {
                format!("worse than 32-true by more than {}", judgement.margin)
            }
            (None, _) if self.rules_cut_short => {
                "the time limit was reached before all rules were judged".into()
            }
            (None, _) if self.cut_short => match self.seeds.len() {
                0 => "the time limit was reached before the first seed".into(),
                1 => {
                    "1 seed, too few for a test: the time limit was reached before the next".into()
                }
                seeds => format!("{seeds} seeds: the time limit was reached before the next"),
            },
            _ => String::new(),
        }
    }
}

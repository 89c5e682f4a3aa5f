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

/// The status of one precision of a model, or of the whole report. The order is from best to worst,
/// and the overall status is the worst.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// The precision is not worse than 32-true by the margin.
    Pass,
    /// The seeds do not decide.
    Inconclusive,
    /// The golden is from another kind of machine, or missing.
    NotComparable,
    /// The precision is worse by more than the margin, or a check failed.
    Regression,
}

impl Status {
    /// Returns the process's exit code.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Pass => 0,
            Self::Regression => 1,
            Self::Inconclusive => 3,
            Self::NotComparable => 4,
        }
    }

    /// Returns the name in reports.
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
    /// The version of this format; a changed meaning of a field changes it.
    pub schema: String,
    /// The overall status, which is the worst status of a cell.
    pub status: Status,
    /// The tier.
    pub tier: Tier,
    /// The machine; null if no run ended.
    pub fingerprint: Option<Fingerprint>,
    /// The probability that a regression as large as a margin passes.
    pub alpha: f64,
    /// The time limit for seeds in seconds; null without a limit.
    #[serde(default)]
    pub time_limit_seconds: Option<f64>,
    /// The models.
    pub models: Vec<ModelReport>,
    /// The checks that only the nightly tier makes.
    pub left_out: Vec<String>,
    /// The number of failing cells that were not diagnosed.
    pub undiagnosed: usize,
    /// The number of jobs that ran.
    pub executed: usize,
    /// The number of jobs whose outcome was cached.
    pub cached: usize,
    /// The times of the jobs, the longest first. A cached job has the time of its original run.
    #[serde(default)]
    pub jobs: Vec<JobTime>,
    /// Duration in seconds.
    pub seconds: f64,
}

/// The time and the memory of a job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JobTime {
    /// The model.
    pub model: String,
    /// The precision.
    pub precision: Precision,
    /// The task of the job.
    pub task: Task,
    /// The seed.
    pub seed: u64,
    /// Its duration in seconds.
    pub seconds: f64,
    /// The peak of tensor bytes; 0 if it failed.
    pub peak_memory_bytes: u64,
}

/// The results of one model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelReport {
    /// The model's name.
    pub model: String,
    /// The metric's name.
    pub metric: String,
    /// Whether larger or smaller values are better.
    pub direction: Direction,
    /// The length of each run.
    pub length: Length,
    /// The changes to the registered model.
    pub changes: Changes,
    /// All hyperparameters of the model; empty if the control run failed.
    pub hyperparameters: Hyperparameters,
    /// δ.
    pub margin: f64,
    /// The smallest accepted improvement of the metric over the control run.
    pub learns_by: f64,
    /// The metric of the control run without training; null if that run failed.
    pub control: Option<f64>,
    /// The precisions.
    pub cells: Vec<Cell>,
}

/// The results of one precision of a model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Cell {
    /// The precision.
    pub precision: Precision,
    /// The status.
    pub status: Status,
    /// The statistics; null if a run failed.
    pub judgement: Option<Judgement>,
    /// The failures, in the order in which they were found.
    pub failures: Vec<Failure>,
    /// The seeds that ran.
    pub seeds: Vec<u64>,
    /// The baseline's metric for each seed.
    pub baseline: Vec<Option<f64>>,
    /// The precision's metric for each seed.
    pub metric: Vec<Option<f64>>,
    /// The checks of full runs before the statistics; null if one of the runs failed.
    pub runs: Option<Vec<Checked>>,
    /// The comparison of the first steps with 32-true; null if that job failed.
    pub conformance: Option<Vec<Checked>>,
    /// The checks of the training path; null if that job failed.
    pub path: Option<PathReport>,
    /// The peak of tensor bytes of full runs over all seeds, including 32-true; null if no run
    /// ended.
    #[serde(default)]
    pub peak_memory_bytes: Option<u64>,
    /// The peak of tensor bytes of observed runs, including everything that the gate keeps.
    #[serde(default)]
    pub watched_peak_memory_bytes: Option<u64>,
    /// Whether the time limit prevented further seeds.
    #[serde(default)]
    pub cut_short: bool,
    /// Skipped steps, over all seeds.
    pub skipped_steps: u64,
    /// The diagnosis of a failure; null if there is none, or if the failure's text is complete.
    pub finding: Option<Finding>,
}

impl Cell {
    /// Sets the status from failures and statistics.
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

    /// Returns the most important line about the cell.
    pub fn note(&self) -> String {
        match (&self.failures.first(), &self.judgement) {
            (Some(failure), _) => failure.text.clone(),
            (None, Some(judgement)) if judgement.improved => {
                "better than 32-true by more than the margin".into()
            }
            (None, Some(judgement)) if judgement.verdict == Verdict::Fail => {
                format!("worse than 32-true by more than {}", judgement.margin)
            }
            (None, _) if self.cut_short => match self.seeds.len() {
                0 => "the time limit was reached before the first seed".into(),
                1 => "1 seed, which shows no spread: the time limit was reached before the next"
                    .into(),
                seeds => format!("{seeds} seeds: the time limit was reached before the next"),
            },
            _ => String::new(),
        }
    }
}

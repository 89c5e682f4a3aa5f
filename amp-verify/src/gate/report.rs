//! The gate's report.

use amp_core::{hardware::Fingerprint, precision::Precision};
use serde::{Deserialize, Serialize};

use super::{
    args::Tier,
    checked::Checked,
    finding::Finding,
    path::Examined,
    reason::{Failure, Reason},
};
use crate::{
    registry::Direction,
    verdict::{Judgement, Verdict},
};

/// The status of one precision of a model, or of the whole report. Later variants outweigh earlier ones:
/// the overall status is the worst.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// Not worse than 32-true by the margin.
    Pass,
    /// The seeds do not decide.
    Inconclusive,
    /// There is no golden of a machine like this one.
    NotComparable,
    /// Worse by more than the margin, or a check failed.
    Regression,
}

impl Status {
    /// The process's exit code.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Pass => 0,
            Self::Regression => 1,
            Self::Inconclusive => 3,
            Self::NotComparable => 4,
        }
    }

    /// The printed form.
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
    /// The version of this format; it changes with the meaning of a field.
    pub schema: String,
    /// The overall status: the worst.
    pub status: Status,
    /// The tier.
    pub tier: Tier,
    /// The machine; null if no run ended.
    pub fingerprint: Option<Fingerprint>,
    /// The probability with which a regression as large as a margin may pass.
    pub alpha: f64,
    /// The models.
    pub models: Vec<ModelReport>,
    /// What the nightly tier would check in addition.
    pub left_out: Vec<String>,
    /// The number of failing cells that were not diagnosed.
    pub undiagnosed: usize,
    /// The number of jobs that ran.
    pub executed: usize,
    /// The number of jobs whose outcome was cached.
    pub cached: usize,
    /// Duration in seconds.
    pub seconds: f64,
}

/// One model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelReport {
    /// Its name.
    pub model: String,
    /// The metric's name.
    pub metric: String,
    /// Whether larger or smaller values are better.
    pub direction: Direction,
    /// Epochs.
    pub epochs: i64,
    /// δ.
    pub margin: f64,
    /// The amount by which the metric must exceed that of the control run.
    pub learns_by: f64,
    /// The metric without training; null if that run failed.
    pub control: Option<f64>,
    /// The precisions.
    pub cells: Vec<Cell>,
}

/// One precision of a model.
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
    /// The seeds.
    pub seeds: Vec<u64>,
    /// The baseline's metric for each seed.
    pub baseline: Vec<Option<f64>>,
    /// The precision's metric for each seed.
    pub metric: Vec<Option<f64>>,
    /// What whole runs are held against before any statistics; null where one of them failed.
    pub runs: Option<Vec<Checked>>,
    /// The figures of the first steps beside 32-true ones, with their bounds; null where that job failed.
    pub conformance: Option<Vec<Checked>>,
    /// The rules of the trained path; null if that job failed.
    pub path: Option<Examined>,
    /// Skipped steps, over all seeds.
    pub skipped_steps: u64,
    /// The diagnosis of a failure; null if there is none, or if the failure's text is complete.
    pub finding: Option<Finding>,
}

impl Cell {
    /// The status that follows from failures and statistics.
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

    /// The first thing to report about it.
    pub fn note(&self) -> String {
        match (&self.failures.first(), &self.judgement) {
            (Some(failure), _) => failure.text.clone(),
            (None, Some(judgement)) if judgement.improved => {
                "better than 32-true by more than the margin".into()
            }
            (None, Some(judgement)) if judgement.verdict == Verdict::Fail => {
                format!("worse than 32-true by more than {}", judgement.margin)
            }
            _ => String::new(),
        }
    }
}

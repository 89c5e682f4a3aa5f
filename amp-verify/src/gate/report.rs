//! What the gate found.

use amp_core::{hardware::Fingerprint, precision::Precision};
use serde::{Deserialize, Serialize};

use super::{
    args::Tier,
    finding::Finding,
    path::{Checked, Examined},
    reason::{Failure, Reason},
};
use crate::{
    registry::Direction,
    verdict::{Judgement, Verdict},
};

/// What is said of one precision of a model, and of the whole. In order of weight: the worst is
/// the whole's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// Not worse than 32-true by the margin.
    Pass,
    /// The seeds do not tell.
    Inconclusive,
    /// There is no golden of a machine like this one.
    NotComparable,
    /// Worse, or broken.
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

    /// As it is printed.
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
    /// The form of this object; a change of meaning changes it.
    pub schema: String,
    /// The worst of all.
    pub status: Status,
    /// How much was run.
    pub tier: Tier,
    /// The machine; null when no run came to an end.
    pub fingerprint: Option<Fingerprint>,
    /// The risk that a regression of a margin passes.
    pub alpha: f64,
    /// The models.
    pub models: Vec<ModelReport>,
    /// What this tier leaves to the nightly one.
    pub left_out: Vec<String>,
    /// Failing cells beyond those that were diagnosed.
    pub undiagnosed: usize,
    /// Jobs that ran.
    pub executed: usize,
    /// Jobs whose outcome was known from before.
    pub cached: usize,
    /// Seconds in all.
    pub seconds: f64,
}

/// One model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelReport {
    /// Its name.
    pub model: String,
    /// The metric's name.
    pub metric: String,
    /// Which way it improves.
    pub direction: Direction,
    /// Epochs.
    pub epochs: i64,
    /// δ.
    pub margin: f64,
    /// What the metric must exceed the control by.
    pub learns_by: f64,
    /// The metric without training; null when that run failed.
    pub control: Option<f64>,
    /// The precisions.
    pub cells: Vec<Cell>,
}

/// One precision of a model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Cell {
    /// The precision.
    pub precision: Precision,
    /// What is said of it.
    pub status: Status,
    /// The statistics; null when a run failed.
    pub judgement: Option<Judgement>,
    /// What went wrong, the first first.
    pub failures: Vec<Failure>,
    /// The seeds.
    pub seeds: Vec<u64>,
    /// The baseline's metric for each seed.
    pub baseline: Vec<Option<f64>>,
    /// The precision's metric for each seed.
    pub metric: Vec<Option<f64>>,
    /// The figures of the first steps beside 32-true ones, with their bounds; null where that job failed.
    pub conformance: Option<Vec<Checked>>,
    /// What was looked at on the path that is trained on; null where that job failed.
    pub path: Option<Examined>,
    /// Steps skipped, over all seeds.
    pub skipped_steps: u64,
    /// What a failure is due to; null where there is none, or its text says it all.
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

    /// The first thing to say of it.
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

//! The checks of `diagnose`. A check measures how good a precision is if certain modules stay in
//! FP32. `diagnose` repeats it with different modules, to find those that must stay in FP32.

use std::rc::Rc;

use amp_core::{Error, Result, event::Event, precision::Precision, record::RunRecord};
use serde::{Deserialize, Serialize};

use super::Overrides;
use crate::{
    case::Case,
    layers::{Flow, Kind, Options, Subject, measure},
    runner::{self, Extras},
};

/// The result of a check: the measured value, and the largest value that the check accepts.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// The measured value; null if it is not finite. A value that is not finite fails the check.
    pub figure: Option<f64>,
    /// The largest value that the check accepts.
    pub limit: f64,
}

impl Outcome {
    /// Returns whether the measured value is finite and at most the limit.
    pub fn passes(self) -> bool {
        self.figure.is_some_and(|figure| figure <= self.limit)
    }

    /// Creates the result of a check from the measured value `figure` and its limit. If the value
    /// is not finite, stores null.
    pub fn new(figure: f64, limit: f64) -> Self {
        Self { figure: figure.is_finite().then_some(figure), limit }
    }
}

/// Measures whether enough modules of the model stay in FP32.
pub trait Check {
    /// Returns a description of the measured value, for reports.
    fn describe(&self) -> String;

    /// Runs the check with the modules' precisions in `overrides`.
    ///
    /// # Errors
    /// When the value cannot be measured.
    fn run(&mut self, overrides: &Overrides) -> Result<Outcome>;
}

/// Measures how much worse the validation metric is under a precision than under 32-true. Compares
/// runs with the same seed and takes the mean over the seeds.
pub struct MetricLoss<'a> {
    case: &'a Case,
    precision: Precision,
    limit: f64,
    /// The metric under 32-true, for each seed.
    baseline: Vec<f64>,
}

impl<'a> MetricLoss<'a> {
    /// Trains the model under 32-true with several seeds, to get the metrics with which the check
    /// compares a precision. The first seed is the seed in `case`.
    ///
    /// # Errors
    /// When training fails, or 32-true's metric is not finite.
    pub fn new(case: &'a Case, precision: Precision, limit: f64, seeds: u64) -> Result<Self> {
        let metric = |seed: u64| -> Result<f64> {
            let record =
                train(&with(case, seed, &case.trainer.numerics.overrides), Precision::F32True)?;
            let name = case.model.judge.name;
            if let Some(bad) = record.not_finite().first() {
                return Err(Error::NonFinite(format!(
                    "{} is not finite under 32-true with seed {seed}, so no precision can be \
                     compared with it",
                    bad.name
                )));
            }
            record.last(name).ok_or_else(|| Error::config(format!("{name} is not logged")))
        };
        let baseline =
            (0..seeds).map(|at| metric(case.trainer.seed + at)).collect::<Result<_>>()?;
        Ok(Self { case, precision, limit, baseline })
    }
}

impl Check for MetricLoss<'_> {
    fn describe(&self) -> String {
        format!(
            "how much worse {} is than under 32-true, mean over {} seeds",
            self.case.model.judge.name,
            self.baseline.len()
        )
    }

    fn run(&mut self, overrides: &Overrides) -> Result<Outcome> {
        let mut lost = 0.0;
        for (seed, baseline) in (self.case.trainer.seed..).zip(&self.baseline) {
            let metric = match train(&with(self.case, seed, overrides), self.precision) {
                Ok(record) if !record.not_finite().is_empty() => f64::NAN,
                Ok(record) => record.last(self.case.model.judge.name).unwrap_or(f64::NAN),
                // If one run ended because values were not finite, the check fails, whatever the
                // results with other seeds are.
                Err(Error::NonFinite(_) | Error::Scaler(_)) => f64::NAN,
                Err(error) => return Err(error),
            };
            lost += self.case.model.judge.direction.regression(*baseline, metric);
        }
        Ok(Outcome::new(lost / self.baseline.len() as f64, self.limit))
    }
}

/// Measures the relative error that each layer makes by itself in one step. Each layer runs on
/// exact inputs, so that errors of earlier layers do not count. The result is the largest error of
/// all layers.
pub struct LayerError<'a> {
    /// The model and the batch with which the errors are measured. Each run of the check replaces
    /// its `overrides`.
    pub subject: Subject<'a>,
    /// The options with which the errors are measured.
    pub options: Options,
    /// The largest relative error that the check accepts.
    pub limit: f64,
}

impl Check for LayerError<'_> {
    fn describe(&self) -> String {
        "the largest relative error that a layer makes by itself".into()
    }

    fn run(&mut self, overrides: &Overrides) -> Result<Outcome> {
        self.subject.overrides = Rc::new(overrides.clone());
        let report = measure(&self.subject, self.options)?;
        let flows =
            report.layers.iter().flat_map(|l| Kind::ALL.into_iter().filter_map(|k| l.flow(k)));
        let largest = flows.map(Flow::relative_local_error).fold(0.0, f64::max);
        Ok(Outcome::new(largest, self.limit))
    }
}

/// Returns a copy of `case` with the seed `seed` and the modules' precisions in `overrides`.
pub(super) fn with(case: &Case, seed: u64, overrides: &Overrides) -> Case {
    let mut case = case.clone();
    case.trainer.seed = seed;
    case.trainer.numerics.overrides = overrides.clone().into();
    case
}

pub(super) fn train(case: &Case, precision: Precision) -> Result<RunRecord> {
    let mut ignore = |_: &Event| -> Result<()> { Ok(()) };
    runner::run(case, precision, Extras::default(), &mut ignore)
}

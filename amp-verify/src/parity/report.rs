//! The results of the models and of their PyTorch versions, and the decision whether a model and
//! its PyTorch version agree.

use std::collections::BTreeMap;

use amp_core::{hardware::Fingerprint, precision::Precision};
use serde::{Deserialize, Serialize};

use super::{
    bound::differences,
    skips::{Again, Skips},
};
use crate::{
    registry::Judge,
    verdict::{Design, Judgement, Verdict},
};

/// The version of the format of [`Report`].
pub const SCHEMA: &str = "amp-parity/1";
/// If the metrics of the model and of its PyTorch version differ by the margin or more, the status
/// is `Agree` with at most this probability.
const ALPHA: f64 = 0.05;

/// Comparing two losses is informative only if the bound of their difference is at most this
/// fraction of the loss: 0.1 %. Otherwise rounding alone may hide a mistake.
const TELLING: f64 = 1e-3;

/// Whether a model and its PyTorch version agree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// The model and its PyTorch version agree.
    Agree,
    /// There are too few seeds for a decision.
    Inconclusive,
    /// The model and its PyTorch version disagree.
    Disagree,
}

/// A value of the model, and the same value of its PyTorch version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pair<T> {
    /// The value of the model in Rust.
    pub ours: T,
    /// The value of the PyTorch version.
    pub theirs: T,
}

/// The results of the model and its PyTorch version for one seed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Seed {
    /// The seed of the two runs.
    pub seed: u64,
    /// The metric at the end of training; null if it is not finite.
    pub metric: Pair<Option<f64>>,
    /// The indices of the skipped optimizer steps, from 0.
    pub skipped: Pair<Vec<u64>>,
    /// The loss scale at the end of training; null if the loss is not scaled.
    pub scale: Pair<Option<f64>>,
    /// The results of training the model in Rust again, to find out why it and its PyTorch version
    /// skip different steps. Null if they skip the same steps.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub again: Option<Again>,
}

/// The comparison of the losses of the first batches in Rust and in PyTorch, for the first seed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct First {
    /// The largest relative difference between the two losses of a batch. Null if there is a batch
    /// in which one of the two losses is finite and the other is not.
    pub largest: Option<f64>,
    /// The index, from 0, of the batch whose two losses differ most. If there are bounds, of the
    /// batch whose difference is the largest multiple of its bound.
    pub batch: usize,
    /// The relative difference of the losses of the batch with index `batch`, and the bound of this
    /// difference. Null if there are no bounds, as under 16-bit precisions.
    pub bound: Option<(f64, f64)>,
    /// The number of batches, counted from the first one, before a bound exceeds 0.1 %. Rounding
    /// alone may change the losses of later batches by more, so comparing them says little. Null if
    /// there are no bounds.
    #[serde(default)]
    pub told: Option<usize>,
    /// The losses that were compared, of the model and of its PyTorch version.
    pub losses: Pair<Vec<f64>>,
}

/// The comparison of one model with its PyTorch version under one precision.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// The name of the model.
    pub model: String,
    /// The precision of the runs.
    pub precision: Precision,
    /// Whether the model and its PyTorch version agree.
    pub status: Status,
    /// The reasons why the model and its PyTorch version disagree. Empty if they do not.
    pub failures: Vec<String>,
    /// The differences between the model and its PyTorch version that are accepted, and why.
    #[serde(default)]
    pub notes: Vec<String>,
    /// The comparison of the losses of the first batches; null if the PyTorch version failed.
    pub first: Option<First>,
    /// The name of the metric that is compared.
    pub metric: String,
    /// The results for each seed.
    pub seeds: Vec<Seed>,
    /// The statistical test of the difference between the two metrics; null if a metric is not
    /// finite.
    pub judgement: Option<Judgement>,
    /// The largest number of bytes that tensors occupied at one time, for the first seed. On a CPU,
    /// the PyTorch version is measured only in its third step, with PyTorch's profiler.
    pub peak_memory_bytes: Option<Pair<Option<u64>>>,
    /// The numbers of lines of code. In Rust, these are the lines of the model's struct, and of
    /// everything in the same source to which the struct refers.
    pub lines: Pair<usize>,
}

/// The results of a call of `parity`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The version of this format: [`SCHEMA`].
    pub schema: String,
    /// The description of the machine on which the models were trained.
    pub fingerprint: Fingerprint,
    /// The versions of Python and torch that trained the PyTorch versions.
    pub versions: BTreeMap<String, String>,
    /// The results: one row for each model and precision.
    pub rows: Vec<Row>,
}

impl Report {
    /// Returns the worst status of all rows.
    pub fn status(&self) -> Status {
        self.rows.iter().map(|row| row.status).max().unwrap_or(Status::Agree)
    }
}

impl First {
    /// Compares the losses of the model in Rust with those of its PyTorch version. If `bounds` is
    /// given, compares each difference with its bound.
    pub(super) fn new(losses: Pair<Vec<f64>>, bounds: Option<&[f64]>) -> Self {
        let off = differences(&losses.ours, &losses.theirs);
        let largest = off.iter().copied().fold(0.0, f64::max);
        let share = |at: &usize| match bounds {
            Some(bounds) => off[*at] / bounds[*at],
            None => off[*at],
        };
        let batch = (0..off.len()).max_by(|a, b| share(a).total_cmp(&share(b))).unwrap_or_default();
        let bound = bounds.and_then(|bounds| Some((*off.get(batch)?, *bounds.get(batch)?)));
        let told =
            bounds.map(|bounds| bounds.iter().take_while(|bound| **bound <= TELLING).count());
        Self { largest: Some(largest).filter(|off| off.is_finite()), batch, bound, told, losses }
    }

    fn failure(&self) -> Option<String> {
        let Pair { ours, theirs } = &self.losses;
        if ours.len() != theirs.len() {
            return Some(format!(
                "the Rust model has {} losses, but the PyTorch version has {}",
                ours.len(),
                theirs.len()
            ));
        }
        let (off, most) = self.bound.filter(|(off, most)| off > most)?;
        let (at, own, other) = (self.batch, ours[self.batch], theirs[self.batch]);
        Some(format!(
            "the loss of batch {at} is {own:.9} in Rust and {other:.9} in PyTorch: they differ by \
             {off:.1e}, but rounding in f32 explains at most {most:.1e}"
        ))
    }
}

impl Row {
    /// Creates a row without results for one model and precision.
    pub(super) fn new(model: &str, precision: Precision, judge: Judge, lines: Pair<usize>) -> Self {
        Self {
            model: model.to_owned(),
            precision,
            status: Status::Agree,
            failures: Vec::new(),
            notes: Vec::new(),
            first: None,
            metric: judge.name.to_owned(),
            seeds: Vec::new(),
            judgement: None,
            peak_memory_bytes: None,
            lines,
        }
    }

    /// Decides from the losses of the first batches, the skipped steps and the metrics whether the
    /// model and its PyTorch version agree, and sets the row's status. The metrics agree if an
    /// equivalence test (two one-sided t-tests) shows that their mean difference over the seeds is
    /// between −`margin` and `margin`.
    pub(super) fn judge(&mut self, judge: Judge, margin: f64, examples: i64, losses: u64) {
        self.failures.extend(self.first.as_ref().and_then(First::failure));
        for seed in &self.seeds {
            match seed.skips(losses) {
                Skips::Same => {}
                Skips::Rounding(text) => self.notes.push(text),
                Skips::Differ(text) => self.failures.push(text),
            }
        }
        let difference = |seed: &Seed| {
            let Pair { ours, theirs } = seed.metric;
            Some(judge.direction.regression(theirs?, ours?))
        };
        let differences: Option<Vec<f64>> = self.seeds.iter().map(difference).collect();
        let count = self.seeds.len();
        let design = Design {
            margin,
            alpha: ALPHA,
            first: count,
            most: count,
            resolution: judge.resolution(examples),
            equivalence: true,
        };
        self.judgement = differences.map(|differences| design.judge(&differences));
        match &self.judgement {
            Some(judged) if judged.verdict == Verdict::Fail => self.failures.push(format!(
                "{} differs from PyTorch's by {:+.4} over {count} seeds, with the interval {:+.4} … {:+.4}; at \
                 most {margin} is accepted",
                self.metric, -judged.mean, -judged.upper, -judged.lower
            )),
            Some(_) => {}
            None if self.failures.is_empty() => {
                self.failures.push(format!("{} is not finite in Rust or in PyTorch", self.metric));
            }
            None => {}
        }
        let is_open =
            self.judgement.as_ref().is_none_or(|judged| judged.verdict == Verdict::Inconclusive);
        self.status = match (self.failures.is_empty(), is_open) {
            (false, _) => Status::Disagree,
            (true, true) => Status::Inconclusive,
            (true, false) => Status::Agree,
        };
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    const JUDGE: Judge = Judge::higher("val_acc");

    fn seed(ours: f64, theirs: f64) -> Seed {
        Seed {
            seed: 42,
            metric: Pair { ours: Some(ours), theirs: Some(theirs) },
            skipped: Pair { ours: vec![0, 1], theirs: vec![0, 1] },
            scale: Pair { ours: Some(1024.0), theirs: Some(1024.0) },
            again: None,
        }
    }

    fn judged(seeds: Vec<Seed>, first: Option<First>) -> Row {
        let lines = Pair { ours: 2, theirs: 1 };
        let mut row = Row { seeds, first, ..Row::new("Net", Precision::F16Mixed, JUDGE, lines) };
        row.judge(JUDGE, 0.02, 1000, 100);
        row
    }

    /// Checks that the metrics of the model and of its PyTorch version agree if the confidence
    /// interval of their mean difference over three seeds is within ±0.02. The interval is m ±
    /// 2.92·s/√3, with the mean m and the standard deviation s of the differences. 2.92 is the 95 %
    /// quantile of the t distribution, so that each end is exceeded with a probability of 5 %.
    #[rstest]
    #[case::alike([0.9, 0.9, 0.9], Status::Agree, "")]
    #[case::near([0.895, 0.9, 0.905], Status::Agree, "")]
    #[case::scattered([0.88, 0.9, 0.92], Status::Inconclusive, "")]
    #[case::worse([0.85, 0.851, 0.849], Status::Disagree, "val_acc differs from PyTorch's by -0.0500 over 3")]
    #[case::better([0.95, 0.951, 0.949], Status::Disagree, "val_acc differs from PyTorch's by +0.0500 over 3")]
    fn metrics_agree_within_the_margin(
        #[case] ours: [f64; 3],
        #[case] status: Status,
        #[case] said: &str,
    ) {
        let row = judged(ours.into_iter().map(|ours| seed(ours, 0.9)).collect(), None);
        assert_eq!(row.status, status, "{:?}", row.failures);
        let text = row.failures.first().map_or("", String::as_str);
        assert!(text.starts_with(said) && said.is_empty() == text.is_empty(), "{text}");
    }

    #[rstest]
    #[case::another_step(vec![0, 2], 1024.0, "skips the steps [0, 2] of the first 100, PyTorch [0, 1]")]
    #[case::later(vec![0, 1, 120], 512.0, "")]
    #[case::another_scale(vec![0, 1], 256.0, "ends with loss scale")]
    fn first_skips_are_the_same_and_scales_near(
        #[case] skipped: Vec<u64>,
        #[case] scale: f64,
        #[case] said: &str,
    ) {
        let mut seeds = vec![seed(0.9, 0.9), seed(0.9, 0.9)];
        seeds[1].skipped.ours = skipped;
        seeds[1].scale.ours = Some(scale);
        let row = judged(seeds, None);
        let text = row.failures.join("");
        assert!(text.contains(said) && said.is_empty() == text.is_empty(), "{text}");
        assert_eq!(row.status == Status::Disagree, !said.is_empty());
    }

    #[rstest]
    #[case::within([2.0, 1.0], Some(0.001), Status::Agree)]
    #[case::beyond([2.0, 1.004], Some(0.001), Status::Disagree)]
    #[case::without_a_bound([2.0, 1.004], None, Status::Agree)]
    #[case::not_finite([f64::NAN, 1.0], Some(0.001), Status::Disagree)]
    fn first_losses_are_held_to_their_bounds(
        #[case] theirs: [f64; 2],
        #[case] bound: Option<f64>,
        #[case] status: Status,
    ) {
        let bounds = bound.map(|bound| [bound; 2]);
        let losses = Pair { ours: vec![2.0, 1.0], theirs: theirs.to_vec() };
        let first = First::new(losses, bounds.as_ref().map(|bounds| &bounds[..]));
        let row = judged(vec![seed(0.9, 0.9), seed(0.9, 0.9)], Some(first));
        assert_eq!(row.status, status, "{:?}", row.failures);
    }

    /// Checks that `told` is the number of batches before a bound exceeds 0.1 %.
    #[test]
    fn losses_with_a_small_bound_are_counted() {
        let losses = Pair { ours: vec![2.0; 4], theirs: vec![2.0; 4] };
        let told = |bounds: Option<&[f64]>| First::new(losses.clone(), bounds).told;
        assert_eq!(told(Some(&[1e-6, 1e-3, 2e-3, 3.0])), Some(2));
        assert_eq!(told(Some(&[1e-6; 4])), Some(4));
        assert_eq!(told(None), None);
    }

    /// Checks that fewer losses from the PyTorch version than from the model in Rust count as a
    /// failure.
    #[test]
    fn both_sides_need_the_same_number_of_losses() {
        let losses = Pair { ours: vec![2.0, 1.0], theirs: vec![2.0] };
        let row = judged(vec![seed(0.9, 0.9)], Some(First::new(losses, None)));
        assert_eq!(row.failures, ["the Rust model has 2 losses, but the PyTorch version has 1"]);
    }
}

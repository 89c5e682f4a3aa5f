//! What the two sides gave, and whether they agree.

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

/// The form of a [`Report`].
pub const SCHEMA: &str = "amp-parity/1";
/// The risk that a twin whose metric is further off than δ passes.
const ALPHA: f64 = 0.05;

/// The largest bound of a loss that tells something.
const TELLING: f64 = 1e-3;

/// What is concluded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// The two sides do the same.
    Agree,
    /// The seeds do not tell.
    Inconclusive,
    /// They do not.
    Disagree,
}

/// A number of each side.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pair<T> {
    /// Ours.
    pub ours: T,
    /// The twin's.
    pub theirs: T,
}

/// What a seed gave, on each side.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Seed {
    /// The seed.
    pub seed: u64,
    /// The metric at the end; null where it is not finite.
    pub metric: Pair<Option<f64>>,
    /// The optimizer steps that were skipped, from 0.
    pub skipped: Pair<Vec<u64>>,
    /// The loss scale at the end.
    pub scale: Pair<Option<f64>>,
    /// What it gave when it was run again, because other steps are skipped on the two sides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub again: Option<Again>,
}

/// The first losses of the first seed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct First {
    /// Their largest relative difference; null where one side alone is not finite.
    pub largest: Option<f64>,
    /// The batch of the loss that is furthest beyond its bound, or nearest to it, from 0.
    pub batch: usize,
    /// How far it is off, and how far it may be off; none where no bound holds, as under 16 bits.
    pub bound: Option<(f64, f64)>,
    /// How many of the first losses have a bound of at most 0.1 %; none where no bound holds. Behind them rounding alone
    /// moves training further, so that the losses tell little.
    #[serde(default)]
    pub told: Option<usize>,
    /// The losses.
    pub losses: Pair<Vec<f64>>,
}

/// A model under a precision.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// The model.
    pub model: String,
    /// The precision.
    pub precision: Precision,
    /// What is concluded.
    pub status: Status,
    /// Why they disagree.
    pub failures: Vec<String>,
    /// What differs, and why the two sides agree all the same.
    #[serde(default)]
    pub notes: Vec<String>,
    /// The first losses.
    pub first: Option<First>,
    /// The name of the metric.
    pub metric: String,
    /// What the seeds gave.
    pub seeds: Vec<Seed>,
    /// How the metrics were judged.
    pub judgement: Option<Judgement>,
    /// The most tensor bytes at once, of the first seed. A twin's on a CPU are those of its third step.
    pub peak_memory_bytes: Option<Pair<Option<u64>>>,
    /// Lines with code, of the model alone: of its struct and what it refers to in its source, and of the twin.
    pub lines: Pair<usize>,
}

/// All rows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// [`SCHEMA`].
    pub schema: String,
    /// The machine.
    pub fingerprint: Fingerprint,
    /// Of Python and torch.
    pub versions: BTreeMap<String, String>,
    /// Models by precisions.
    pub rows: Vec<Row>,
}

impl Report {
    /// The worst status of a row.
    pub fn status(&self) -> Status {
        self.rows.iter().map(|row| row.status).max().unwrap_or(Status::Agree)
    }
}

impl First {
    /// Of these courses, each loss within its bound where there are bounds.
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
            return Some(format!("{} losses, the twin's {}", ours.len(), theirs.len()));
        }
        let (off, most) = self.bound.filter(|(off, most)| off > most)?;
        let (at, own, other) = (self.batch, ours[self.batch], theirs[self.batch]);
        Some(format!(
            "the loss of batch {at} is {own:.9}, the twin's {other:.9}: {off:.1e} apart, where f32 allows \
             {most:.1e}"
        ))
    }
}

impl Row {
    /// A model under a precision, before it is trained.
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

    /// Judges what was found: first losses, skipped steps, and the metrics within `margin` of each other both
    /// ways (two one-sided tests).
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
                "{} is {:+.4} from the twin's over {count} seeds, between {:+.4} and {:+.4}, where {margin} \
                 is allowed",
                self.metric, -judged.mean, -judged.upper, -judged.lower
            )),
            Some(_) => {}
            None if self.failures.is_empty() => {
                self.failures.push(format!("{} is not finite on one side", self.metric));
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

    /// With three differences of mean m and deviation s, m ± 2.92 s / √3 must be within 0.02.
    #[rstest]
    #[case::alike([0.9, 0.9, 0.9], Status::Agree, "")]
    #[case::near([0.895, 0.9, 0.905], Status::Agree, "")]
    #[case::scattered([0.88, 0.9, 0.92], Status::Inconclusive, "")]
    #[case::worse([0.85, 0.851, 0.849], Status::Disagree, "val_acc is -0.0500 from the twin's over 3")]
    #[case::better([0.95, 0.951, 0.949], Status::Disagree, "val_acc is +0.0500 from the twin's over 3")]
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
    #[case::another_step(vec![0, 2], 1024.0, "skips the steps [0, 2] of the first 100, the twin [0, 1]")]
    #[case::later(vec![0, 1, 120], 512.0, "")]
    #[case::another_scale(vec![0, 1], 256.0, "ends with the scale")]
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

    /// Bounds grow; the losses with small ones are counted.
    #[test]
    fn losses_with_a_small_bound_are_counted() {
        let losses = Pair { ours: vec![2.0; 4], theirs: vec![2.0; 4] };
        let told = |bounds: Option<&[f64]>| First::new(losses.clone(), bounds).told;
        assert_eq!(told(Some(&[1e-6, 1e-3, 2e-3, 3.0])), Some(2));
        assert_eq!(told(Some(&[1e-6; 4])), Some(4));
        assert_eq!(told(None), None);
    }

    /// A twin that trains for fewer batches agrees in nothing.
    #[test]
    fn both_sides_need_the_same_number_of_losses() {
        let losses = Pair { ours: vec![2.0, 1.0], theirs: vec![2.0] };
        let row = judged(vec![seed(0.9, 0.9)], Some(First::new(losses, None)));
        assert_eq!(row.failures, ["2 losses, the twin's 1"]);
    }
}

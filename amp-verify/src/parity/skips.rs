//! Which optimizer steps are skipped, and why other steps are on the two sides.
//!
//! Where they differ, the seed is run again by libtorch's kernels, which round where PyTorch rounds, and each
//! step's scale and largest gradient are noted. The two sides do the same where the second run skips what the twin
//! skips, or where rounding alone decides about the first step that they treat otherwise.

use serde::{Deserialize, Serialize};

use super::{Pair, Seed};

/// The largest number of f16.
pub(super) const LARGEST: f64 = 65504.0;
/// How far two largest gradients may always be apart: two roundings of f16.
const LEAST: f64 = 1.0 / 1024.0;

/// One attempt at an optimizer step; of a model that optimizes manually, the steps on one batch.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Attempt {
    /// From 0.
    pub step: u64,
    /// The loss scale.
    pub scale: f64,
    /// The largest magnitude in the scaled gradients of parameters, over f16's largest number, 65504; null where
    /// one is not finite.
    pub largest: Option<f64>,
    /// Whether the step was skipped.
    pub skipped: bool,
}

/// A seed whose skipped steps differ, run again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Again {
    /// The steps that ours skips by libtorch's kernels, from 0.
    pub skipped: Vec<u64>,
    /// The loss scale at the end of that run.
    pub scale: Option<f64>,
    /// The first attempts by this library's kernels, and the twin's.
    pub attempts: Pair<Vec<Attempt>>,
    /// The first attempts by libtorch's kernels.
    pub libtorch: Vec<Attempt>,
}

/// What the skipped steps of a seed say.
#[derive(Debug, PartialEq)]
pub(super) enum Skips {
    /// The same steps are skipped.
    Same,
    /// Others are, because the sides round in other places.
    Rounding(String),
    /// Others are.
    Differ(String),
}

/// The first of these steps.
fn first(skipped: &[u64], count: u64) -> Vec<u64> {
    skipped.iter().copied().filter(|step| *step < count).collect()
}

/// Whether the scales at the end are near: a later step that is near to overflowing may go either way, which moves
/// the scale once.
fn are_near(own: Option<f64>, other: Option<f64>) -> bool {
    match (own, other) {
        (None, None) => true,
        (Some(own), Some(other)) => own / other <= 2.0 && other / own <= 2.0,
        _ => false,
    }
}

impl Seed {
    /// Whether the first `count` steps are skipped alike, and the scales at the end are near.
    pub(super) fn has_equal_skips(&self, count: u64) -> bool {
        let Pair { ours, theirs } = &self.skipped;
        first(ours, count) == first(theirs, count) && are_near(self.scale.ours, self.scale.theirs)
    }

    /// Judges the skipped ones of the first `count` steps, and the scale at the end.
    pub(super) fn skips(&self, count: u64) -> Skips {
        if self.has_equal_skips(count) {
            return Skips::Same;
        }
        let [own, other] = [&self.skipped.ours, &self.skipped.theirs].map(|all| first(all, count));
        let seed = self.seed;
        let what = match own == other {
            true => format!(
                "seed {seed}: ends with the scale {:?}, the twin with {:?}",
                self.scale.ours, self.scale.theirs
            ),
            false => format!(
                "seed {seed}: skips the steps {own:?} of the first {count}, the twin {other:?}"
            ),
        };
        let Some(again) = &self.again else { return Skips::Differ(what) };
        let seen = again.seen();
        let plain = first(&again.skipped, count);
        if plain == other && are_near(again.scale, self.scale.theirs) {
            return Skips::Rounding(format!(
                "{what}; by libtorch's kernels ours skips {plain:?}, as the twin does{seen}"
            ));
        }
        let are_near = |scale| are_near(scale, self.scale.theirs);
        let theirs = &again.attempts.theirs;
        let beyond =
            || undecided(&again.attempts.ours, theirs).filter(|_| are_near(self.scale.ours));
        let by_libtorch = || {
            let text = undecided(&again.libtorch, theirs).filter(|_| are_near(again.scale))?;
            Some(format!("by libtorch's kernels {text}"))
        };
        match beyond().or_else(by_libtorch) {
            Some(text) => Skips::Rounding(format!("{what}; {text}{seen}")),
            None => Skips::Differ(format!(
                "{what}, and by libtorch's kernels ours skips {plain:?} and ends with {:?}{seen}",
                again.scale
            )),
        }
    }
}

impl Again {
    /// The first step that is skipped on one side alone, of this library's kernels.
    fn seen(&self) -> String {
        let Pair { ours, theirs } = &self.attempts;
        let Some((own, other)) = parting(ours, theirs) else { return String::new() };
        let size = |attempt: &Attempt| match attempt.largest {
            Some(largest) => format!("{largest:.4} of f16's largest number"),
            None => "not finite".to_owned(),
        };
        format!(
            "; step {}, scale {}: the largest gradient is {}, the twin's {}",
            own.step,
            own.scale,
            size(own),
            size(other)
        )
    }
}

/// That rounding decides which side skips the first step that one side alone skips: the side that applies it has a
/// gradient beyond f16's largest number, or as near to it as the sides' largest gradients were to each other before.
fn undecided(own: &[Attempt], theirs: &[Attempt]) -> Option<String> {
    let (ours, other) = parting(own, theirs)?;
    let applied = if ours.skipped { other } else { ours };
    let before = own.iter().zip(theirs).take_while(|(own, _)| own.step < applied.step);
    let apart = before.filter_map(|(own, other)| {
        let (own, other) = (own.largest?, other.largest?);
        Some((own - other).abs() / own.max(other))
    });
    let apart = apart.fold(LEAST, f64::max);
    let largest = applied.largest?;
    (largest * (1.0 + apart) >= 1.0).then(|| {
        format!(
            "the first step that one side alone skips is {}, and the side that applies it has a largest gradient of \
             {largest:.4} of f16's largest number, where the two sides' are up to {apart:.1e} apart before: rounding \
             decides",
            applied.step
        )
    })
}

/// The first attempts of which one is skipped.
fn parting<'a>(own: &'a [Attempt], other: &'a [Attempt]) -> Option<(&'a Attempt, &'a Attempt)> {
    own.iter().zip(other).find(|(own, other)| own.skipped != other.skipped)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    /// Attempts with these largest gradients; those that are not finite are skipped and halve the scale.
    fn attempts(largest: &[Option<f64>]) -> Vec<Attempt> {
        let mut scale = 65536.0;
        let attempt = |(step, largest): (u64, &Option<f64>)| {
            let attempt = Attempt { step, scale, largest: *largest, skipped: largest.is_none() };
            scale = if largest.is_none() { scale / 2.0 } else { scale };
            attempt
        };
        (0..).zip(largest).map(attempt).collect()
    }

    fn skipped(attempts: &[Attempt]) -> Vec<u64> {
        attempts.iter().filter(|attempt| attempt.skipped).map(|attempt| attempt.step).collect()
    }

    fn seed(own: &[Option<f64>], libtorch: &[Option<f64>], theirs: &[Option<f64>]) -> Seed {
        let [own, libtorch, theirs] = [own, libtorch, theirs].map(attempts);
        let end = |attempts: &[Attempt]| {
            Some(65536.0 * 0.5_f64.powi(skipped(attempts).len().try_into().expect("few")))
        };
        Seed {
            seed: 42,
            metric: Pair { ours: Some(0.9), theirs: Some(0.9) },
            skipped: Pair { ours: skipped(&own), theirs: skipped(&theirs) },
            scale: Pair { ours: end(&own), theirs: end(&theirs) },
            again: Some(Again {
                skipped: skipped(&libtorch),
                scale: end(&libtorch),
                attempts: Pair { ours: own, theirs },
                libtorch,
            }),
        }
    }

    /// Which of the three it is, and what is said.
    #[rstest]
    #[case::same(&[None, Some(0.7)], &[], &[None, Some(0.7)], "same", "")]
    #[case::wide(
        &[Some(1.4), Some(1.3)], &[None, Some(0.65)], &[None, Some(0.65)], "rounding",
        "skips the steps [] of the first 100, the twin [0]; by libtorch's kernels ours skips [0], as the twin does; \
         step 0, scale 65536: the largest gradient is 1.4000 of f16's largest number, the twin's not finite"
    )]
    #[case::undecided(
        &[Some(0.5), Some(0.3)], &[Some(0.5), Some(0.9995)], &[Some(0.5), None], "rounding",
        "by libtorch's kernels the first step that one side alone skips is 1, and the side that applies it has a \
         largest gradient of 0.9995"
    )]
    #[case::as_far_apart_as_before(
        &[Some(0.5), Some(0.985)], &[Some(0.5), Some(0.985)], &[Some(0.51), None], "rounding",
        "where the two sides' are up to 2.0e-2 apart before"
    )]
    #[case::too_small(
        &[Some(0.5), Some(0.97)], &[Some(0.5), Some(0.97)], &[Some(0.5), None], "differ",
        "and by libtorch's kernels ours skips [] and ends with Some(65536.0)"
    )]
    #[case::beyond_f16(
        &[Some(0.5), Some(1.08)], &[Some(0.4), Some(0.3)], &[Some(0.5), None], "rounding",
        "skips the steps [] of the first 100, the twin [1]; the first step that one side alone skips is 1, and the \
         side that applies it has a largest gradient of 1.0800"
    )]
    #[case::skips_more(
        &[None, None], &[None, None], &[None, Some(0.5)], "differ",
        "skips the steps [0, 1] of the first 100, the twin [0], and by libtorch's kernels ours skips [0, 1]"
    )]
    fn skips_are_judged_by_a_run_with_the_twins_roundings(
        #[case] own: &[Option<f64>],
        #[case] libtorch: &[Option<f64>],
        #[case] theirs: &[Option<f64>],
        #[case] expected: &str,
        #[case] said: &str,
    ) {
        let (found, text) = match seed(own, libtorch, theirs).skips(100) {
            Skips::Same => ("same", String::new()),
            Skips::Rounding(text) => ("rounding", text),
            Skips::Differ(text) => ("differ", text),
        };
        assert_eq!(found, expected, "{text}");
        assert!(text.contains(said), "{text}");
    }

    /// Without a second run nothing is explained.
    #[test]
    fn other_skips_need_an_explanation() {
        let mut seed = seed(&[Some(1.4)], &[None], &[None]);
        seed.again = None;
        assert!(matches!(seed.skips(100), Skips::Differ(_)));
    }

    /// A second run that skips the same of the first steps, and ends with another scale, explains nothing.
    #[test]
    fn the_second_run_must_end_near_the_twins_scale() {
        let mut seed = seed(&[Some(0.4)], &[None], &[None]);
        seed.again.as_mut().expect("a second run").scale = Some(1024.0);
        assert!(matches!(seed.skips(100), Skips::Differ(_)));
    }
}

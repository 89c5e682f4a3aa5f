//! Compares which optimizer steps the model and its PyTorch version skip. If they skip different
//! steps, looks for the reason.
//!
//! If the skipped steps differ, the model in Rust is trained again with libtorch's kernels, which
//! round where PyTorch rounds. The loss scale and the largest gradient of each step are recorded.
//! The difference is accepted if, with libtorch's kernels, the model skips the same steps as the
//! PyTorch version. It is also accepted if, in the first step that only one side (Rust or PyTorch)
//! skips, the largest gradient is so close to overflow that rounding alone may make it overflow.
//! How much rounding changes a gradient is measured with "perturbed runs": [runs](super::ours)
//! whose initial weights are perturbed at random by up to one unit roundoff.

use serde::{Deserialize, Serialize};

use super::{Pair, Seed, bound, ours::Traced};

/// The largest finite f16 number.
pub(super) const LARGEST: f64 = 65504.0;
/// Rounding is assumed to change the largest gradient and the loss of a step by at least this
/// fraction, two unit roundoffs of f16, even if the perturbed runs show less.
const LEAST: f64 = 1.0 / 1024.0;

/// One attempt at an optimizer step. For a model that optimizes manually, all steps on one batch
/// count as one attempt.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Attempt {
    /// The index of this attempt at an optimizer step, from 0.
    pub step: u64,
    /// The loss scale in this attempt at an optimizer step.
    pub scale: f64,
    /// The largest absolute value in the scaled gradients of all parameters, as a fraction of the
    /// largest f16 number (65504). Null if a gradient is not finite.
    pub largest: Option<f64>,
    /// Whether this attempt at an optimizer step was skipped.
    pub skipped: bool,
}

/// The results of training the model in Rust again, for a seed with which it and its PyTorch
/// version skip different steps.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Again {
    /// The indices, from 0, of the steps that the model in Rust skips with libtorch's kernels.
    pub skipped: Vec<u64>,
    /// The loss scale of the model in Rust at the end of the run with libtorch's kernels.
    pub scale: Option<f64>,
    /// The first attempts at optimizer steps, of the model in Rust with this library's kernels and
    /// of the PyTorch version.
    pub attempts: Pair<Vec<Attempt>>,
    /// The first attempts at optimizer steps of the model in Rust with libtorch's kernels.
    pub libtorch: Vec<Attempt>,
    /// How much rounding alone changes the first steps of the model in Rust.
    #[serde(default)]
    pub rounding: Rounding,
}

/// How much rounding alone changes the first steps of the model in Rust. This is measured with
/// "perturbed runs", whose initial weights are perturbed by up to one 16-bit unit roundoff.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Rounding {
    /// For each step, by which fraction rounding may change the largest gradient: four times the
    /// largest relative difference between a perturbed run and the unperturbed run up to this step,
    /// but at least 1/1024. Both gradients are converted to the same loss scale first.
    pub largest: Vec<f64>,
    /// The steps that some runs in Rust (perturbed or not) skip and others apply.
    pub either: Vec<u64>,
    /// The first step in which the losses in Rust and in PyTorch differ by more than rounding alone
    /// explains. Rounding explains four times the largest difference between a perturbed run and
    /// the unperturbed run in Rust, but at least 1/1024 of the loss. Null if there is no such step.
    pub parted: Option<u64>,
}

impl Rounding {
    /// Computes how much rounding changes the first steps. `own` has the attempts of the
    /// unperturbed run. `losses` has the losses of this run and of the PyTorch version. `moved` has
    /// the perturbed runs. Gradients are accumulated over `window` batches for each optimizer step.
    pub(super) fn of(own: &[Attempt], losses: Pair<&[f64]>, moved: &[Traced], window: u64) -> Self {
        // Returns the largest gradient of an attempt, converted to `scale`, the loss scale of the
        // unperturbed run. A perturbed run has another loss scale after a step that only one of the
        // two runs skipped.
        let size = |attempt: &Attempt, scale: f64| {
            attempt.largest.map_or(f64::NAN, |largest| largest * scale / attempt.scale)
        };
        let sizes: Vec<f64> = own.iter().map(|attempt| size(attempt, attempt.scale)).collect();
        let others: Vec<Vec<f64>> = moved
            .iter()
            .map(|run| {
                run.attempts.iter().zip(own).map(|(other, own)| size(other, own.scale)).collect()
            })
            .collect();
        let of = |run: &Traced, step: usize| run.attempts.get(step).map(|attempt| attempt.skipped);
        let either = |step: &usize| {
            let own = own[*step].skipped;
            moved.iter().any(|run| of(run, *step).is_some_and(|skipped| skipped != own))
        };
        let courses: Vec<Vec<f64>> = moved.iter().map(|run| run.losses.clone()).collect();
        let apart = bound::differences(losses.ours, losses.theirs);
        let bounds = bound::bounds(losses.ours, &courses);
        // Perturbed runs end early, so later losses have no bound and are not compared.
        let told = courses.iter().map(Vec::len).min().unwrap_or(0);
        let parted = (0..apart.len().min(told)).find(|at| apart[*at] > bounds[*at].max(LEAST));
        Self {
            largest: bound::bounds(&sizes, &others).into_iter().map(|b| b.max(LEAST)).collect(),
            either: (0..own.len()).filter(either).map(|step| step as u64).collect(),
            parted: parted.map(|batch| batch as u64 / window),
        }
    }
}

/// The result of comparing the skipped steps and the final loss scales of both sides for a seed.
#[derive(Debug, PartialEq)]
pub(super) enum Skips {
    /// Both skip the same steps, and their loss scales differ at most by the factor 2.
    Same,
    /// Steps or loss scales differ because of rounding. The text explains the difference.
    Rounding(String),
    /// Steps or loss scales differ, which rounding does not explain. The text names them.
    Differ(String),
}

/// Returns those of the skipped optimizer steps whose index is below `count`.
fn first(skipped: &[u64], count: u64) -> Vec<u64> {
    skipped.iter().copied().filter(|step| *step < count).collect()
}

/// Returns whether the final loss scales of two runs differ at most by the factor 2. This factor is
/// accepted, because rounding alone may make one of the last steps overflow in only one run, which
/// halves that run's loss scale.
fn are_near(own: Option<f64>, other: Option<f64>) -> bool {
    match (own, other) {
        (None, None) => true,
        (Some(own), Some(other)) => own / other <= 2.0 && other / own <= 2.0,
        _ => false,
    }
}

impl Seed {
    /// Returns whether the two sides skip the same of the first `count` steps, and their final loss
    /// scales differ [at most by the factor 2](are_near).
    pub(super) fn has_equal_skips(&self, count: u64) -> bool {
        let Pair { ours, theirs } = &self.skipped;
        first(ours, count) == first(theirs, count) && are_near(self.scale.ours, self.scale.theirs)
    }

    /// Compares the skipped steps among the first `count` steps, and the final loss scales.
    pub(super) fn skips(&self, count: u64) -> Skips {
        if self.has_equal_skips(count) {
            return Skips::Same;
        }
        let [own, other] = [&self.skipped.ours, &self.skipped.theirs].map(|all| first(all, count));
        let seed = self.seed;
        let [scale, to] = [self.scale.ours, self.scale.theirs].map(|scale| scale.unwrap_or(1.0));
        let what = match own == other {
            true => format!("seed {seed}: Rust ends with loss scale {scale}, PyTorch with {to}"),
            false => format!(
                "seed {seed}: Rust skips the steps {own:?} of the first {count}, PyTorch {other:?}"
            ),
        };
        let Some(again) = &self.again else { return Skips::Differ(what) };
        let seen = again.seen();
        let plain = first(&again.skipped, count);
        if plain == other && are_near(again.scale, self.scale.theirs) {
            return Skips::Rounding(format!(
                "{what}; with libtorch's kernels, Rust skips {plain:?}, as PyTorch does{seen}"
            ));
        }
        let are_near = |scale| are_near(scale, self.scale.theirs);
        let theirs = &again.attempts.theirs;
        let rounding = &again.rounding;
        let beyond = || {
            undecided(&again.attempts.ours, theirs, rounding).filter(|_| are_near(self.scale.ours))
        };
        let by_libtorch = || {
            let text =
                undecided(&again.libtorch, theirs, rounding).filter(|_| are_near(again.scale))?;
            Some(format!("with libtorch's kernels {text}"))
        };
        match beyond().or_else(by_libtorch) {
            Some(text) => Skips::Rounding(format!("{what}; {text}{seen}")),
            None => Skips::Differ(format!(
                "{what}, and with libtorch's kernels, Rust skips {plain:?}, with the scale {} at the end{seen}",
                again.scale.unwrap_or(1.0)
            )),
        }
    }
}

impl Again {
    /// Describes the first step that only the model in Rust (with this library's kernels) or only
    /// its PyTorch version skips: the loss scale and the largest gradients.
    fn seen(&self) -> String {
        let Pair { ours, theirs } = &self.attempts;
        let Some((own, other)) = parting(ours, theirs) else { return String::new() };
        let size = |attempt: &Attempt| match attempt.largest {
            Some(largest) => format!("{largest:.4} of f16's largest number"),
            None => "not finite".to_owned(),
        };
        format!(
            "; step {}, loss scale {}: the largest gradient is {}, PyTorch's {}",
            own.step,
            own.scale,
            size(own),
            size(other)
        )
    }
}

/// Decides whether rounding explains the first step that only one side skips. Returns the
/// explanation, or `None` if rounding does not explain the step.
///
/// Rounding explains the step only if the losses of the two sides differ in no earlier step by more
/// than rounding explains. In addition, the step must be near to overflow. It is if some of our
/// runs skip it and others apply it. It also is if rounding could raise the largest gradient, on
/// the side that applies the step, to the largest f16 number.
fn undecided(own: &[Attempt], theirs: &[Attempt], rounding: &Rounding) -> Option<String> {
    let (ours, other) = parting(own, theirs)?;
    let applied = if ours.skipped { other } else { ours };
    let step = applied.step;
    if rounding.parted.is_some_and(|parted| parted < step) {
        return None;
    }
    if rounding.either.contains(&step) {
        return Some(format!(
            "only one side skips step {step}. Of our runs with slightly perturbed weights, some skip it and others \
             apply it, so rounding explains the difference"
        ));
    }
    let at = usize::try_from(step).ok()?;
    let apart = rounding.largest.get(at).copied().unwrap_or(LEAST);
    let largest = applied.largest?;
    (largest * (1.0 + apart) >= 1.0).then(|| {
        format!(
            "only one side skips step {step}. On the other side, the step's largest gradient is {largest:.4} of f16's \
             largest number, and rounding may change it by up to {apart:.1e}, which explains the difference"
        )
    })
}

/// Returns two runs' attempts at the first optimizer step that only one of the runs skips.
fn parting<'a>(own: &'a [Attempt], other: &'a [Attempt]) -> Option<(&'a Attempt, &'a Attempt)> {
    own.iter().zip(other).find(|(own, other)| own.skipped != other.skipped)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    /// Creates one attempt for each largest gradient. `None` stands for gradients that are not
    /// finite: the step is skipped, and the next attempt has half the loss scale.
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
                rounding: Rounding::default(),
            }),
        }
    }

    /// Compares the skips among the first 100 steps. Returns the name of the [`Skips`] variant and
    /// its text.
    fn told(seed: &Seed) -> (&'static str, String) {
        match seed.skips(100) {
            Skips::Same => ("same", String::new()),
            Skips::Rounding(text) => ("rounding", text),
            Skips::Differ(text) => ("differ", text),
        }
    }

    /// Checks both cases in which rounding explains a difference: with libtorch's kernels, Rust
    /// skips the same steps as PyTorch, or a gradient is close to the largest f16 number. The first
    /// three columns have the largest gradient of each step: in Rust, in Rust with libtorch's
    /// kernels, and in PyTorch. Then follow the expected result and a part of its text.
    #[rstest]
    #[case::same(&[None, Some(0.7)], &[], &[None, Some(0.7)], "same", "")]
    #[case::wide(
        &[Some(1.4), Some(1.3)], &[None, Some(0.65)], &[None, Some(0.65)], "rounding",
        "skips the steps [] of the first 100, PyTorch [0]; with libtorch's kernels, Rust skips [0], as PyTorch does; \
         step 0, loss scale 65536: the largest gradient is 1.4000 of f16's largest number, PyTorch's not finite"
    )]
    #[case::undecided(
        &[Some(0.5), Some(0.3)], &[Some(0.5), Some(0.9995)], &[Some(0.5), None], "rounding",
        "with libtorch's kernels only one side skips step 1. On the other side, the step's largest gradient is 0.9995"
    )]
    #[case::too_small(
        &[Some(0.5), Some(0.97)], &[Some(0.5), Some(0.97)], &[Some(0.5), None], "differ",
        "and with libtorch's kernels, Rust skips [], with the scale 65536 at the end"
    )]
    #[case::apart_before(
        &[Some(0.5), Some(0.97)], &[Some(0.5), Some(0.97)], &[Some(0.9), None], "differ",
        "and with libtorch's kernels, Rust skips [], with the scale 65536 at the end"
    )]
    #[case::beyond_f16(
        &[Some(0.5), Some(1.08)], &[Some(0.4), Some(0.3)], &[Some(0.5), None], "rounding",
        "skips the steps [] of the first 100, PyTorch [1]; only one side skips step 1. On the other \
         side, the step's largest gradient is 1.0800"
    )]
    #[case::skips_more(
        &[None, None], &[None, None], &[None, Some(0.5)], "differ",
        "skips the steps [0, 1] of the first 100, PyTorch [0], and with libtorch's kernels, Rust skips [0, 1]"
    )]
    fn skips_are_judged_by_a_run_with_the_twins_roundings(
        #[case] own: &[Option<f64>],
        #[case] libtorch: &[Option<f64>],
        #[case] theirs: &[Option<f64>],
        #[case] expected: &str,
        #[case] said: &str,
    ) {
        let (found, text) = told(&seed(own, libtorch, theirs));
        assert_eq!(found, expected, "{text}");
        assert!(text.contains(said), "{text}");
    }

    /// Checks that the perturbed runs (`largest`, `either` and `parted` of [`Rounding`]) decide
    /// whether rounding explains a difference. Only the PyTorch version skips step 1. In Rust, the
    /// largest gradient of this step is 0.97 times the largest f16 number.
    #[rstest]
    #[case::moves_far(vec![1e-3, 0.05], vec![], None, "rounding", "rounding may change it by up to 5.0e-2")]
    #[case::moves_little(vec![0.05, 0.02], vec![], None, "differ", "")]
    #[case::either(vec![1e-3, 1e-3], vec![1], None, "rounding", "Of our runs with slightly")]
    #[case::another_step(vec![1e-3, 1e-3], vec![0], None, "differ", "")]
    #[case::parts_there(vec![1e-3, 0.05], vec![], Some(1), "rounding", "rounding may change it")]
    #[case::parted_before(vec![1e-3, 0.05], vec![1], Some(0), "differ", "")]
    fn what_rounding_does_is_measured(
        #[case] largest: Vec<f64>,
        #[case] either: Vec<u64>,
        #[case] parted: Option<u64>,
        #[case] expected: &str,
        #[case] said: &str,
    ) {
        let mut seed = seed(&[Some(0.5), Some(0.97)], &[Some(0.5), Some(0.97)], &[Some(0.5), None]);
        let again = seed.again.as_mut().expect("a second run");
        again.rounding = Rounding { largest, either, parted };
        let (found, text) = told(&seed);
        assert_eq!(found, expected, "{text}");
        assert!(text.contains(said), "{text}");
    }

    /// Checks that rounding may change gradients by the fraction 4 · 0.1 from step 2 on if, at the
    /// same loss scale, a perturbed run's gradient in step 2 is 1.1 times the unperturbed run's.
    #[test]
    fn moved_runs_say_what_rounding_does() {
        let own = attempts(&[Some(0.5), Some(0.5), Some(0.5), Some(0.5)]);
        let other = attempts(&[Some(0.5), None, Some(0.275), Some(0.25)]);
        let losses = vec![2.0, 2.0, 2.0, 2.02];
        let moved = [Traced { attempts: other, losses, skipped: vec![1], scale: None }];
        let theirs = [2.0, 2.001, 2.01, 2.07];
        let found = |theirs: &[f64], window| {
            Rounding::of(&own, Pair { ours: &[2.0; 4], theirs }, &moved, window)
        };
        let Rounding { largest, either, parted } = found(&theirs, 1);
        for (found, expected) in largest.iter().zip([LEAST, LEAST, 0.4, 0.4]) {
            assert!((found - expected).abs() < 1e-12, "{largest:?}");
        }
        assert_eq!((either, parted), (vec![1], Some(2)));
        assert_eq!(found(&theirs, 2).parted, Some(1));
        assert_eq!(found(&[2.0, 2.001, 2.001, 2.07], 1).parted, None);
    }

    /// Checks that rounding explains no difference if the model in Rust was not trained again.
    #[test]
    fn other_skips_need_an_explanation() {
        let mut seed = seed(&[Some(1.4)], &[None], &[None]);
        seed.again = None;
        assert!(matches!(seed.skips(100), Skips::Differ(_)));
    }

    /// Checks that rounding does not explain a difference if, with libtorch's kernels, Rust skips
    /// the same first steps as PyTorch, but the final loss scales differ by more than the factor 2.
    #[test]
    fn the_second_run_must_end_near_the_twins_scale() {
        let mut seed = seed(&[Some(0.4)], &[None], &[None]);
        seed.again.as_mut().expect("a second run").scale = Some(1024.0);
        assert!(matches!(seed.skips(100), Skips::Differ(_)));
    }
}

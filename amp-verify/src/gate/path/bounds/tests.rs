//! Checks the bounds with made-up differences.

use rstest::rstest;

use super::*;
use crate::{
    gate::{
        checked::{Checked, Unit},
        reason::Reason,
    },
    verdict::tolerance_factor,
};

/// Returns a step with two passes with emulated rounding. In both, the gradient's distance from
/// the 32-true gradient is `error`, and every other difference is half of it.
fn step(error: f64, found: Figures) -> Compared {
    let pass = Figures {
        projection: 0.5 * error,
        parameter: 0.5 * error,
        error,
        parameter_error: error,
        loss: 0.5 * error,
    };
    Compared { found, rounded: vec![pass; 2] }
}

fn projection(projection: f64) -> Figures {
    Figures { projection, ..Figures::default() }
}

/// The constant for the rounding that is not emulated, under 16-mixed.
const LEAST: f64 = 24.0 / 16_777_216.0;

/// Checks the bound of step 7, in which rounding changes the gradient a hundred times as much
/// as in the other steps, and the bound of another step.
///
/// The epoch has 32 steps with two emulated passes each. In all 64 passes, the difference
/// divided by e is 0.5. So the bound of step 7, where e is 0.1, is a tenth of L, the tolerance
/// limit of 64 values of 0.5. L is computed with a tenth of the mean as standard deviation,
/// because these values are all equal. The bound of the other steps is P, the tolerance limit
/// of the 64 differences: 0.0005 in 62 passes, and 0.05 in the two passes of step 7.
#[rstest]
#[case::sensitive(7, 0.05 * (1.0 + 0.1 * k()).powf(1.5))]
#[case::calm(0, limit_of_all())]
fn a_step_is_bounded_by_its_own_rounding(#[case] at: usize, #[case] bound: f64) {
    let bound = bound + LEAST;
    for (found, is_within) in [(0.99 * bound, true), (1.01 * bound, false)] {
        let steps = (0..32).map(|place| {
            let error = if place == 7 { 0.1 } else { 0.001 };
            step(error, projection(if place == at { found } else { 0.0 }))
        });
        let steps: Vec<Compared> = steps.collect();
        let judged = Judged::new(&steps, Precision::F16Mixed).projection;
        assert_eq!(judged.0, found);
        assert!((judged.1 / bound - 1.0).abs() < 1e-9, "{judged:?}, not {bound}");
        assert_eq!(judged.0 <= judged.1, is_within);
    }
}

fn k() -> f64 {
    tolerance_factor(1e-5 / 32.0, 0.95, 64)
}

fn limit_of_all() -> f64 {
    let (calm, sensitive) = (0.0005_f64.powf(2.0 / 3.0), 0.05_f64.powf(2.0 / 3.0));
    let mean = (62.0 * calm + 2.0 * sensitive) / 64.0;
    let square = 62.0 * (calm - mean).powi(2) + 2.0 * (sensitive - mean).powi(2);
    (mean + k() * (square / 63.0).sqrt()).powf(1.5)
}

/// Checks that the reported step is the one whose difference is largest relative to its bound.
/// Step 7, which is more sensitive to rounding, has the difference 0.05, within its bound. The
/// difference 0.04 in step 9 is smaller, but exceeds its bound.
#[test]
fn the_step_that_is_furthest_beyond_its_bound_is_judged() {
    let mut steps: Vec<Compared> = (0..32).map(|_| step(0.01, projection(0.001))).collect();
    steps[7] = step(0.05, projection(0.05));
    steps[9] = step(0.01, projection(0.04));
    let (figure, bound) = Judged::new(&steps, Precision::F16Mixed).projection;
    assert_eq!(figure, 0.04);
    assert!(bound < 0.03, "{bound}");
}

/// Checks a step in which rounding changes the gradient in one direction only, by a normally
/// distributed factor, and whose two passes happen to be small. The step exceeds its bound, and
/// is to be repeated. With 16 passes it is within its bound, and other steps keep theirs.
#[test]
fn a_step_with_few_small_draws_is_repeated() {
    let mut steps: Vec<Compared> = (0..32).map(|_| step(0.001, projection(0.0))).collect();
    let draws = [0.2, -0.3, 1.1, -0.6, 0.4, -1.6, 0.9, -0.1, 0.7, -1.2, 0.5, 1.8, -0.8, 0.1];
    let of_draw = |draw: &f64| Figures {
        projection: 0.014 * draw.abs(),
        error: 0.02 * draw.abs(),
        ..Figures::default()
    };
    let found = Figures { projection: 0.04, error: 0.057, ..Figures::default() };
    steps[7] = Compared { found, rounded: draws[..2].iter().map(of_draw).collect() };
    let first = Judged::new(&steps, Precision::F16Mixed);
    assert!(first.projection.0 > first.projection.1, "{:?}", first.projection);
    assert_eq!(first.to_repeat(), BTreeSet::from([7]));

    steps[9] = step(0.001, projection(0.02));
    let other = Judged::new(&steps, Precision::F16Mixed);
    assert_eq!(other.to_repeat(), BTreeSet::from([7, 9]));
    let bound_of_other = |steps: &[Compared]| {
        let all: Vec<(usize, &Compared)> = steps.iter().enumerate().collect();
        bounded(&all, |step| step.projection, |step| step.error, LEAST)[9].bound
    };
    let before = bound_of_other(&steps);
    steps[7].rounded = draws.iter().chain(&[-0.4, 0.3]).map(of_draw).collect();
    assert_eq!(steps[7].rounded.len(), REPEATED);
    let repeated = Judged::new(&steps, Precision::F16Mixed);
    assert_eq!(repeated.to_repeat(), BTreeSet::from([9]), "{:?}", repeated.projection);
    assert!(bound_of_other(&steps) <= before, "{} {before}", bound_of_other(&steps));
}

/// Checks that no step is repeated if many steps exceed their bounds: this is a fault, and the
/// repeated passes would only take time.
#[test]
fn many_steps_beyond_their_bounds_are_not_repeated() {
    let epoch = |wrong: usize| {
        let found = |at| projection(if at < wrong { 0.02 } else { 0.0 });
        let steps: Vec<Compared> = (0..32).map(|at| step(0.001, found(at))).collect();
        Judged::new(&steps, Precision::F16Mixed).to_repeat().len()
    };
    assert_eq!([epoch(0), epoch(4), epoch(5), epoch(32)], [0, 4, 0, 0]);
}

/// Checks that a step in which rounding alone may change the gradient by more than a quarter is
/// not judged, and does not widen the bounds of the other steps. A NaN in such a step is still
/// reported.
#[test]
fn a_step_that_is_mostly_rounding_is_left_out() {
    let calm: Vec<Compared> = (0..32).map(|_| step(0.01, projection(0.001))).collect();
    let judged = Judged::new(&calm, Precision::F16Mixed);
    assert_eq!(judged.over(), "an epoch, 32 steps");
    let mut steps = calm.clone();
    steps.push(step(0.26, projection(5.0)));
    let with_another = Judged::new(&steps, Precision::F16Mixed);
    assert_eq!(with_another.projection, judged.projection);
    assert!(with_another.over().starts_with("an epoch, 33 steps (the gradients of 1 are not"));
    steps[32].found.projection = f64::NAN;
    assert!(Judged::new(&steps, Precision::F16Mixed).projection.0.is_nan());
}

#[test]
fn nan_exceeds_every_bound() {
    let mut steps: Vec<Compared> = (0..32).map(|_| step(0.01, projection(0.9))).collect();
    steps[3].found.projection = f64::NAN;
    let (figure, bound) = Judged::new(&steps, Precision::F16Mixed).projection;
    assert!(figure.is_nan() && bound.is_finite(), "{figure} {bound}");
    // A NaN in a pass with emulated rounding makes the bound NaN. The rule then counts as
    // broken.
    let mut steps: Vec<Compared> = (0..32).map(|_| step(0.01, projection(0.001))).collect();
    steps[3].rounded[0].error = f64::NAN;
    let (figure, bound) = Judged::new(&steps, Precision::F16Mixed).projection;
    let checked = Checked::at_most(Reason::Gradient, "", "", Unit::Share, (figure, bound));
    assert!(checked.is_broken(), "{figure} {bound}");
}

/// Checks that the bound is only the constant for the rounding that is not emulated, if
/// emulated rounding changes nothing. The constant depends on the dtypes of the loss and of the
/// logits. For gradients under 64-true, it allows for ReLU units that rounding switches on or
/// off.
#[rstest]
#[case::f16(Precision::F16Mixed, [24.0 / 16_777_216.0, 4.0 / 2048.0])]
#[case::bf16(Precision::Bf16Mixed, [24.0 / 16_777_216.0, 4.0 / 256.0])]
#[case::f16_true(Precision::F16True, [24.0 / 2048.0, 4.0 / 2048.0])]
#[case::bf16_true(Precision::Bf16True, [24.0 / 256.0, 4.0 / 256.0])]
#[case::f64_true(Precision::F64True, [1e-3, 4.0 / 16_777_216.0])]
fn what_is_not_emulated_is_part_of_a_bound(#[case] precision: Precision, #[case] least: [f64; 2]) {
    let [gradient, loss] = least;
    let steps: Vec<Compared> = (0..32).map(|_| step(0.0, Figures::default())).collect();
    let judged = Judged::new(&steps, precision);
    assert_eq!([judged.projection, judged.parameter], [(0.0, gradient); 2]);
    assert_eq!(judged.loss, (0.0, loss));
}

#[rstest]
#[case::many(64, 2)]
#[case::few(12, 3)]
#[case::two(2, 16)]
#[case::none(0, 32)]
fn short_epochs_repeat_their_steps(#[case] steps: i64, #[case] expected: u64) {
    assert_eq!(passes(steps), expected);
}

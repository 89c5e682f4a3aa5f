//! Bounds for the differences of gradients and losses from 32-true: how large these differences may
//! be through rounding alone. The bounds are computed from passes with emulated rounding, in the
//! same way for every model.
//!
//! The effect of rounding differs between steps. If the gradients of the examples nearly cancel in
//! a step, rounding changes the step's gradient a hundred times as much as in other steps. Let g be
//! the gradient of a pass with emulated rounding, and r the gradient under 32-true. Let e be the
//! root mean square of ‖g − r‖/‖r‖ over the passes of one step. A few passes determine e well,
//! because it is a norm over all weights. For each pass of the epoch, the measured difference is
//! divided by e, where e is computed from the other passes of the same step. Let L be the upper
//! tolerance limit of these quotients. Then e·L is the largest expected effect of rounding in this
//! step.
//!
//! In a few steps, rounding switches a ReLU unit on or off, and the few passes of this step may not
//! show it. Let P be the upper tolerance limit of the measured differences of all passes of the
//! epoch. The bound of a step is the larger of e·L and P, plus a constant for the rounding that is
//! not emulated.

use amp_core::{precision::Precision, tch::Kind};

use super::reference::{Compared, Figures, larger};
use crate::{
    gate::conformance::{OF_GRADIENT, OF_LOSS, tolerance_limit},
    rounding::{is_narrow, rounding_of},
};

/// The smallest number of passes with emulated rounding from which a bound is computed.
const PASSES: i64 = 32;
/// The smallest number of passes with emulated rounding for each step.
const PASSES_OF_STEP: i64 = 2;
/// The constant for the rounding that is not emulated, under 64-true. If rounding switches a ReLU
/// unit on or off, the gradient changes by more than through other f32 rounding. Under 64-true,
/// this is so rare that the passes do not show it.
const OF_SWITCHES: f64 = 1e-3;

/// Returns the number of passes with emulated rounding that the gate makes for each step of an
/// epoch of `steps` steps.
pub(super) fn passes(steps: i64) -> u64 {
    let steps = steps.max(1);
    ((PASSES + steps - 1) / steps).max(PASSES_OF_STEP).cast_unsigned()
}

/// The differences from 32-true. Each pair is a difference and its bound, from the step in which
/// the difference is largest relative to its bound.
pub(super) struct Judged {
    pub(super) projection: (f64, f64),
    pub(super) parameter: (f64, f64),
    pub(super) loss: (f64, f64),
}

impl Judged {
    pub(super) fn new(steps: &[Compared], precision: Precision) -> Self {
        let of_gradient = match precision {
            Precision::F64True => OF_SWITCHES,
            other => OF_GRADIENT * rounding_of(loss_dtype(other)),
        };
        // The loss is computed from the outputs of the last module, which have the precision's
        // dtype.
        let of_logits = match precision.compute() {
            kind if is_narrow(kind) => OF_LOSS * rounding_of(kind),
            _ => OF_LOSS * rounding_of(Kind::Float),
        };
        Self {
            projection: worst(steps, |step| step.projection, |step| step.error, of_gradient),
            parameter: worst(
                steps,
                |step| step.parameter,
                |step| step.parameter_error,
                of_gradient,
            ),
            loss: worst(steps, |step| step.loss, |_| 1.0, of_logits),
        }
    }
}

/// Returns the dtype in which the loss is computed if the model does not cast its outputs.
fn loss_dtype(precision: Precision) -> Kind {
    match precision.storage() {
        kind if is_narrow(kind) => kind,
        _ => Kind::Float,
    }
}

/// Computes the bound of each step. Returns the difference that is largest relative to its bound,
/// together with this bound. `figure` returns the difference to judge. `size` returns the effect of
/// rounding in a pass, for example ‖g − r‖/‖r‖. The root mean square of `size` over the passes of a
/// step is e in the module's documentation. `not_emulated` is the constant for the rounding that is
/// not emulated.
fn worst(
    steps: &[Compared],
    figure: impl Fn(&Figures) -> f64,
    size: impl Fn(&Figures) -> f64,
    not_emulated: f64,
) -> (f64, f64) {
    let mean_square = |passes: &mut dyn Iterator<Item = &Figures>| {
        let (mut sum, mut count) = (0.0, 0.0);
        for pass in passes {
            (sum, count) = (size(pass).mul_add(size(pass), sum), count + 1.0);
        }
        (sum / f64::max(count, 1.0)).sqrt()
    };
    let (mut ratios, mut plain) = (Vec::new(), Vec::new());
    for step in steps {
        for (at, pass) in step.rounded.iter().enumerate() {
            let others = step.rounded.iter().enumerate().filter(|(other, _)| *other != at);
            let others = mean_square(&mut others.map(|(_, other)| other));
            let own = figure(pass);
            ratios.push(if own == 0.0 { 0.0 } else { own / others });
            plain.push(own);
        }
    }
    let limit = tolerance_limit(ratios, steps.len() as u64);
    let of_epoch = tolerance_limit(plain, steps.len() as u64);
    // A difference that is NaN exceeds every bound.
    let share = |(found, bound): (f64, f64)| match found / bound {
        share if share.is_nan() => f64::INFINITY,
        share => share,
    };
    let judged = steps.iter().map(|step| {
        let of_step = limit * mean_square(&mut step.rounded.iter());
        (figure(&step.found), not_emulated + larger(of_step, of_epoch))
    });
    judged.fold((0.0, not_emulated), |most, one| if share(one) > share(most) { one } else { most })
}

/// Returns the largest accepted relative difference between batch statistics and those of 32-true.
/// The validation loss may differ by half of this value. Rounding alone causes differences of a few
/// hundredths of this value.
pub(super) fn statistics_bound(precision: Precision) -> f64 {
    match precision {
        Precision::F64True | Precision::F32True => 1e-3,
        Precision::F16Mixed | Precision::F16True => 0.01,
        Precision::Bf16Mixed | Precision::Bf16True => 0.03,
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::{
        gate::{
            checked::{Checked, Unit},
            reason::Reason,
        },
        verdict::tolerance_factor,
    };

    /// Returns a step with two passes with emulated rounding. The distance between the passes'
    /// gradients and the 32-true gradient is `error`. All other differences are half of `error`.
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

    /// Checks the bounds of two kinds of steps. There are 32 steps with two passes each. Rounding
    /// changes the gradient of step 7 a hundred times as much as that of the other steps.
    ///
    /// In all 64 passes, the difference divided by the step's error is 0.5. The bound of step 7 is
    /// the tolerance limit of these ratios, times the step's error of 1. The limit is computed from
    /// the ratios to the power of 2/3. These powers are equal, so a tenth of their mean is used as
    /// their standard deviation. The bound of every other step is the tolerance limit of the
    /// differences in all 64 passes. In the two passes of step 7, the differences are a hundred
    /// times as large as in the other passes.
    #[rstest]
    #[case::sensitive(7, 0.5 * (1.0 + 0.1 * k()).powf(1.5))]
    #[case::calm(0, limit_of_all())]
    fn a_step_is_bounded_by_its_own_rounding(#[case] at: usize, #[case] bound: f64) {
        let bound = bound + LEAST;
        for (found, is_within) in [(0.99 * bound, true), (1.01 * bound, false)] {
            let steps = (0..32).map(|place| {
                let error = if place == 7 { 1.0 } else { 0.01 };
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
        let (calm, sensitive) = (0.005_f64.powf(2.0 / 3.0), 0.5_f64.powf(2.0 / 3.0));
        let mean = (62.0 * calm + 2.0 * sensitive) / 64.0;
        let square = 62.0 * (calm - mean).powi(2) + 2.0 * (sensitive - mean).powi(2);
        (mean + k() * (square / 63.0).sqrt()).powf(1.5)
    }

    /// Checks that the reported step is the step whose difference is largest relative to its bound.
    /// The difference 0.05 in the sensitive step is within its bound. The smaller difference 0.04
    /// in another step exceeds its bound.
    #[test]
    fn the_step_that_is_furthest_beyond_its_bound_is_judged() {
        let mut steps: Vec<Compared> = (0..32).map(|_| step(0.01, projection(0.001))).collect();
        steps[7] = step(0.05, projection(0.05));
        steps[9] = step(0.01, projection(0.04));
        let (figure, bound) = Judged::new(&steps, Precision::F16Mixed).projection;
        assert_eq!(figure, 0.04);
        assert!(bound < 0.03, "{bound}");
    }

    #[test]
    fn nan_exceeds_every_bound() {
        let mut steps: Vec<Compared> = (0..32).map(|_| step(0.01, projection(0.9))).collect();
        steps[3].found.projection = f64::NAN;
        let (figure, bound) = Judged::new(&steps, Precision::F16Mixed).projection;
        assert!(figure.is_nan() && bound.is_finite(), "{figure} {bound}");
        // If a gradient of a pass with emulated rounding is NaN, the bound is NaN. The rule then
        // counts as broken.
        let mut steps: Vec<Compared> = (0..32).map(|_| step(0.01, projection(0.001))).collect();
        steps[3].rounded[0].error = f64::NAN;
        let (figure, bound) = Judged::new(&steps, Precision::F16Mixed).projection;
        let checked = Checked::at_most(Reason::Gradient, "", "", Unit::Share, (figure, bound));
        assert!(checked.is_broken(), "{figure} {bound}");
    }

    /// Checks that the bound is the constant alone if emulated rounding changes nothing. The
    /// constant depends on the dtypes of the loss and of the logits. Under 64-true, the constant of
    /// the gradients is larger because of ReLU units that switch.
    #[rstest]
    #[case::f16(Precision::F16Mixed, [24.0 / 16_777_216.0, 4.0 / 2048.0])]
    #[case::bf16(Precision::Bf16Mixed, [24.0 / 16_777_216.0, 4.0 / 256.0])]
    #[case::f16_true(Precision::F16True, [24.0 / 2048.0, 4.0 / 2048.0])]
    #[case::bf16_true(Precision::Bf16True, [24.0 / 256.0, 4.0 / 256.0])]
    #[case::f64_true(Precision::F64True, [1e-3, 4.0 / 16_777_216.0])]
    fn what_is_not_emulated_is_part_of_a_bound(
        #[case] precision: Precision,
        #[case] least: [f64; 2],
    ) {
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
}

//! Bounds for the differences of gradients and losses from 32-true: how large these differences may
//! be through rounding alone. The bounds are computed from passes with emulated rounding, in the
//! same way for every model.
//!
//! In a step in which the gradients of the examples nearly cancel, rounding may change the gradient
//! a hundred times as much as in other steps. So the effect of rounding is measured in each step,
//! by a few passes with emulated rounding. Let g be the gradient of such a pass, r the gradient
//! under 32-true, and e the root mean square of ‖g − r‖/‖r‖ over the passes of the step. A few
//! passes determine e well, because it is a norm over all weights. The difference that needs a
//! bound, for example that of a parameter's gradient, is measured in each pass of the epoch. It is
//! divided by the e of the step's other passes. Let L be the upper tolerance limit of all these
//! quotients. Then rounding is expected to cause a difference of at most e·L in the step. For the
//! loss, e is replaced by 1.
//! e of the step's other passes. Let L be the upper tolerance limit of all these quotients. Then
//! rounding is expected to cause a difference of at most e·L in the step.
//!
//! In rare steps, rounding switches a ReLU unit on or off in the observed run, but in none of the
//! step's few emulated passes. The effect is then larger than e·L. Therefore let P be the upper
//! tolerance limit of the differences in all passes of the epoch. The bound of a step is the larger
//! of e·L and P, plus a constant for the rounding that is not emulated.
//!
//! A step whose e is above [`MOST`] is left out when gradients are compared. Its gradient says little,
//! and its passes would widen the bounds of all other steps.

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
/// The constant in the bounds for gradients under 64-true. It allows for a ReLU unit that rounding
/// switches on or off. Under 64-true this is so rare that it happens in no pass with emulated
/// rounding.
const OF_SWITCHES: f64 = 1e-3;

/// The largest e (the effect of rounding, see the module's documentation) of a step whose gradients
/// are compared.
const MOST: f64 = 0.25;

/// Returns the number of passes with emulated rounding that the gate makes for each step of an
/// epoch of `steps` steps.
pub(super) fn passes(steps: i64) -> u64 {
    let steps = steps.max(1);
    ((PASSES + steps - 1) / steps).max(PASSES_OF_STEP).cast_unsigned()
}

/// The differences from 32-true in an epoch. Each pair is a difference and its bound. Both are from
/// the step in which the difference is largest relative to its bound.
pub(super) struct Judged {
    pub(super) projection: (f64, f64),
    pub(super) parameter: (f64, f64),
    pub(super) loss: (f64, f64),
    /// The number of steps whose gradients are not compared, because rounding alone may change the
    /// gradient of a parameter by more than [`MOST`].
    left_out: usize,
    steps: usize,
}

impl Judged {
    pub(super) fn new(steps: &[Compared], precision: Precision) -> Self {
        let of_gradient = match precision {
            Precision::F64True => OF_SWITCHES,
            other => OF_GRADIENT * rounding_of(loss_dtype(other)),
        };
        // The loss also contains the rounding of the last module's outputs to the precision's
        // dtype.
        let of_logits = match precision.compute() {
            kind if is_narrow(kind) => OF_LOSS * rounding_of(kind),
            _ => OF_LOSS * rounding_of(Kind::Float),
        };
        let (all, error, parameter_error): (Vec<&Compared>, Size, Size) =
            (steps.iter().collect(), |step| step.error, |step| step.parameter_error);
        let (calm, calm_parameters) = (calm(steps, error), calm(steps, parameter_error));
        Self {
            projection: worst(&calm, |step| step.projection, error, of_gradient),
            parameter: worst(&calm_parameters, |step| step.parameter, parameter_error, of_gradient),
            loss: worst(&all, |step| step.loss, |_| 1.0, of_logits),
            left_out: steps.len() - calm_parameters.len().min(calm.len()),
            steps: steps.len(),
        }
    }

    /// Returns a description of the steps that were compared.
    pub(super) fn over(&self) -> String {
        match self.left_out {
            0 => format!("an epoch, {} steps", self.steps),
            left_out => format!(
                "an epoch, {} steps (the gradients of {left_out} are not compared: rounding alone may change them by \
                 more than {:.0} %)",
                self.steps,
                100.0 * MOST
            ),
        }
    }
}

/// The effect of rounding in a pass, ‖g − r‖/‖r‖ in the module's documentation.
type Size = fn(&Figures) -> f64;

/// Returns the steps whose e is at most [`MOST`] or NaN, and those in which a difference is not
/// finite.
fn calm(steps: &[Compared], size: Size) -> Vec<&Compared> {
    let is_finite = |found: &Figures| (found.projection + found.parameter).is_finite();
    let of_step = |step: &Compared| mean_square(size, &mut step.rounded.iter());
    steps.iter().filter(|step| !(of_step(step) > MOST && is_finite(&step.found))).collect()
}

/// Returns the root mean square of `size` over the passes.
fn mean_square(size: Size, passes: &mut dyn Iterator<Item = &Figures>) -> f64 {
    let (mut sum, mut count) = (0.0, 0.0);
    for pass in passes {
        (sum, count) = (size(pass).mul_add(size(pass), sum), count + 1.0);
    }
    (sum / f64::max(count, 1.0)).sqrt()
}

/// Returns the dtype in which the loss is computed if the model does not cast its outputs.
fn loss_dtype(precision: Precision) -> Kind {
    match precision.storage() {
        kind if is_narrow(kind) => kind,
        _ => Kind::Float,
    }
}

/// Computes the bound of each step. Returns the difference that is largest relative to its bound,
/// and this bound. `figure` returns the difference that needs a bound. `size` returns the effect of
/// rounding (‖g − r‖/‖r‖ in the module's documentation), or 1 for the loss. `not_emulated` is the
/// constant for the rounding that is not emulated.
fn worst(
    steps: &[&Compared],
    figure: impl Fn(&Figures) -> f64,
    size: Size,
    not_emulated: f64,
) -> (f64, f64) {
    let (mut ratios, mut plain) = (Vec::new(), Vec::new());
    for step in steps {
        for (at, pass) in step.rounded.iter().enumerate() {
            let others = step.rounded.iter().enumerate().filter(|(other, _)| *other != at);
            let others = mean_square(size, &mut others.map(|(_, other)| other));
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
        let of_step = limit * mean_square(size, &mut step.rounded.iter());
        (figure(&step.found), not_emulated + larger(of_step, of_epoch))
    });
    judged.fold((0.0, not_emulated), |most, one| if share(one) > share(most) { one } else { most })
}

/// Returns how far the running statistics of batch norms may differ from those under 32-true,
/// relative to the norm of the latter. The validation loss may differ from that under 32-true by
/// half of this bound. Rounding alone causes only a few hundredths of the bound.
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

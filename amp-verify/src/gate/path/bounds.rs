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
//!
//! In rare steps, rounding switches a ReLU unit on or off in the observed run, but in none of the
//! step's few emulated passes. The effect is then larger than e·L. Therefore let P be the upper
//! tolerance limit of the differences in all passes of the epoch. The bound of a step is the larger
//! of e·L and P, plus a constant for the rounding that is not emulated.
//!
//! In other rare steps, rounding changes the gradient in one direction only, for example where a
//! layer norm divides by a small standard deviation. A few passes do not determine e then: it is the
//! size of one random number. So a step that exceeds its bound is repeated with more passes with
//! emulated rounding, [`REPEATED`] together, before it is judged. They give a better e, and the upper
//! tolerance limit T of their own differences. The bound of such a step is the largest of e·L, P and
//! T. The further passes do not widen the bounds of the other steps.
//!
//! A step whose e is above [`MOST`] is left out when gradients are compared. Its gradient says little,
//! and its passes would widen the bounds of all other steps.

use std::collections::BTreeSet;

use amp_core::{precision::Precision, tch::Kind};

use super::compared::{Compared, Figures, larger};
use crate::{
    gate::conformance::{OF_GRADIENT, OF_LOSS, tolerance_limit},
    rounding::{is_narrow, rounding_of},
};

/// The smallest number of passes with emulated rounding from which a bound is computed.
const PASSES: i64 = 32;
/// The smallest number of passes with emulated rounding for each step.
const PASSES_OF_STEP: i64 = 2;
/// The number of passes with emulated rounding of a step that is repeated because it exceeded its
/// bound.
pub(super) const REPEATED: usize = 16;
/// At most this fraction of an epoch's steps is repeated. If more steps exceed their bounds, rounding
/// is not the reason.
const MOST_REPEATED: f64 = 0.125;
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
    /// The steps with a difference that exceeds its bound, by their index in the epoch.
    beyond: BTreeSet<usize>,
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
        let all: Vec<(usize, &Compared)> = steps.iter().enumerate().collect();
        let (error, parameter_error): (Size, Size) =
            (|step| step.error, |step| step.parameter_error);
        let (calm, calm_parameters) = (calm(&all, error), calm(&all, parameter_error));
        let projections = bounded(&calm, |step| step.projection, error, of_gradient);
        let parameters =
            bounded(&calm_parameters, |step| step.parameter, parameter_error, of_gradient);
        let losses = bounded(&all, |step| step.loss, |_| 1.0, of_logits);
        let beyond = [&projections, &parameters, &losses].into_iter().flatten();
        Self {
            beyond: beyond.filter(|one| one.share() > 1.0).map(|one| one.step).collect(),
            projection: worst(&projections, of_gradient),
            parameter: worst(&parameters, of_gradient),
            loss: worst(&losses, of_logits),
            left_out: steps.len() - calm_parameters.len().min(calm.len()),
            steps: steps.len(),
        }
    }

    /// Returns the steps to repeat with more passes with emulated rounding before they are judged,
    /// by their index in the epoch: the steps that exceed their bounds, unless there are too many.
    pub(super) fn to_repeat(&self) -> BTreeSet<usize> {
        match self.beyond.len() as f64 <= (MOST_REPEATED * self.steps as f64).max(1.0) {
            true => self.beyond.clone(),
            false => BTreeSet::new(),
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

/// A difference of a step from 32-true, and its bound.
struct Bounded {
    /// The step's index in the epoch.
    step: usize,
    found: f64,
    bound: f64,
}

impl Bounded {
    /// Returns the difference divided by its bound. A difference that is NaN exceeds every bound.
    fn share(&self) -> f64 {
        match self.found / self.bound {
            share if share.is_nan() => f64::INFINITY,
            share => share,
        }
    }
}

/// Returns the steps whose e is at most [`MOST`] or NaN, and those in which a difference is not
/// finite.
fn calm<'a>(steps: &[(usize, &'a Compared)], size: Size) -> Vec<(usize, &'a Compared)> {
    let is_finite = |found: &Figures| (found.projection + found.parameter).is_finite();
    let of_step = |step: &Compared| mean_square(size, &mut step.rounded.iter());
    let is_calm = |step: &Compared| !(of_step(step) > MOST && is_finite(&step.found));
    steps.iter().copied().filter(|(_, step)| is_calm(step)).collect()
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

/// Computes the bound of each step. `figure` returns the difference that needs a bound. `size` returns
/// the effect of rounding (‖g − r‖/‖r‖ in the module's documentation), or 1 for the loss.
/// `not_emulated` is the constant for the rounding that is not emulated.
fn bounded(
    steps: &[(usize, &Compared)],
    figure: impl Fn(&Figures) -> f64,
    size: Size,
    not_emulated: f64,
) -> Vec<Bounded> {
    // The further passes of a repeated step say nothing about the other steps.
    let regular = steps.iter().map(|(_, step)| step.rounded.len()).min().unwrap_or_default();
    let (mut ratios, mut plain) = (Vec::new(), Vec::new());
    for (_, step) in steps {
        for (at, pass) in step.rounded.iter().enumerate().take(regular) {
            let others = step.rounded.iter().enumerate().filter(|(other, _)| *other != at);
            let others = mean_square(size, &mut others.map(|(_, other)| other));
            let own = figure(pass);
            ratios.push(if own == 0.0 { 0.0 } else { own / others });
            plain.push(own);
        }
    }
    let together = steps.len() as u64;
    let limit = tolerance_limit(ratios, together);
    let of_epoch = tolerance_limit(plain, together);
    let of_step = |step: &Compared| {
        let of_error = limit * mean_square(size, &mut step.rounded.iter());
        match step.rounded.len() > regular {
            true => larger(of_error, tolerance_limit(step.rounded.iter().map(&figure), together)),
            false => of_error,
        }
    };
    let one = |&(at, step): &(usize, &Compared)| {
        let bound = not_emulated + larger(of_step(step), of_epoch);
        Bounded { step: at, found: figure(&step.found), bound }
    };
    steps.iter().map(one).collect()
}

/// Returns the difference that is largest relative to its bound, and this bound. Returns 0 and
/// `not_emulated` without steps.
fn worst(bounded: &[Bounded], not_emulated: f64) -> (f64, f64) {
    let largest = bounded.iter().max_by(|one, other| one.share().total_cmp(&other.share()));
    largest.map_or((0.0, not_emulated), |one| (one.found, one.bound))
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
mod tests;

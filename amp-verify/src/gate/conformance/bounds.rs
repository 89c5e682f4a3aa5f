//! Bounds for how far the first training steps under a precision may differ from the same steps
//! under 32-true. The bounds are computed from runs that emulate the precision's rounding.

use amp_core::tch::Kind;

use super::figures::{Figures, What};
use crate::{
    rounding::rounding_of,
    verdict::{CONFIDENCE, RISK, mean, standard_deviation, tolerance_factor},
};

/// The smallest standard deviation s with which a bound is computed, as a fraction of the mean
/// difference between the emulated runs and 32-true. This allows for kernels that, inside a module,
/// round at other places than the emulation does.
const LEAST_SPREAD: f64 = 0.1;
/// The smallest bound for the relative difference between the loss and that of 32-true, in unit
/// roundoffs of the loss's dtype. It allows for a few roundings between the last module and the
/// loss that the emulation leaves out: those of operators that do not run equally often in the
/// precision and in the emulation.
pub(in crate::gate) const OF_LOSS: f64 = 4.0;
/// The smallest bound for the relative difference between a gradient and that of 32-true, in unit
/// roundoffs of the loss's dtype. The roundings that [`OF_LOSS`] allows for also change the
/// gradients.
pub(in crate::gate) const OF_GRADIENT: f64 = 24.0;

/// The smallest values that bounds may have are computed from these two quantities.
#[derive(Debug, Clone, Copy)]
pub(super) struct Least {
    /// The dtype in which the loss is computed.
    pub(super) loss: Kind,
    /// The smallest bound for a difference between weights: the error that arises because the
    /// optimizer's constants are rounded to f32.
    pub(super) weights: f64,
}

/// The bounds. A bound is the upper tolerance limit mean + k·s, where s is the standard deviation
/// and k the factor of [`tolerance_factor`]: with confidence 0.95, at most a fraction [`RISK`] of
/// correct runs exceeds it. For a distance (a norm of differences), the mean and s are those of
/// distance^(2/3). This power is nearly normal, because the square of a distance is a sum of
/// squares (Wilson and Hilferty 1931). A signed difference has one limit above zero and one below.
/// Each of the two may be exceeded with probability [`RISK`]/2, and the gradient of each of n
/// parameters with probability [`RISK`]/n. The limits assume that the normal distribution also
/// holds for values larger than all measured ones.
pub(super) struct Bounds<'a> {
    runs: &'a [Figures],
    least: Least,
    difference: f64,
    distance: f64,
    gradient: f64,
}

impl<'a> Bounds<'a> {
    pub(super) fn new(runs: &'a [Figures], least: Least) -> Self {
        let gradients = runs
            .first()
            .map_or(0, |run| run.keys().filter(|what| matches!(what, What::Gradient(_))).count());
        let factor = |risk| tolerance_factor(risk, CONFIDENCE, runs.len());
        Self {
            runs,
            least,
            difference: factor(RISK / 2.0),
            distance: factor(RISK),
            gradient: factor(RISK / gradients.max(1) as f64),
        }
    }

    /// Returns the bound of the difference `what` between a precision and 32-true.
    pub(super) fn of(&self, what: &What) -> f64 {
        let values: Vec<f64> = self.runs.iter().filter_map(|run| run.get(what).copied()).collect();
        let of_distance = |k: f64| limit_of_distance(&values, k);
        let difference = || {
            let middle = mean(&values).abs();
            let spread = standard_deviation(&values).max(LEAST_SPREAD * middle);
            self.difference.mul_add(spread, middle)
        };
        let rounding = rounding_of(self.least.loss);
        let (limit, least) = match what {
            What::Loss => (difference(), OF_LOSS * rounding),
            What::Gradient(_) => (of_distance(self.gradient), OF_GRADIENT * rounding),
            What::Update => (of_distance(self.distance), self.least.weights),
            What::Length | What::Norm => (difference(), self.least.weights),
        };
        limit.max(least)
    }
}

/// Returns the limit mean + k·s for the distances `values`. The mean and s are computed for the
/// distances raised to the power 2/3, because these powers are nearly normal.
fn limit_of_distance(values: &[f64], k: f64) -> f64 {
    let roots: Vec<f64> = values.iter().map(|value| value.powf(2.0 / 3.0)).collect();
    let middle = mean(&roots);
    let spread = standard_deviation(&roots).max(LEAST_SPREAD * middle);
    k.mul_add(spread, middle).powf(1.5)
}

/// Computes an upper tolerance limit from the measured `distances`: with confidence 0.95, if
/// `together` new distances are measured, the probability that any of them exceeds the limit is at
/// most [`RISK`]. The limit is infinite if `distances` has fewer than two values.
pub(in crate::gate) fn tolerance_limit(
    distances: impl IntoIterator<Item = f64>,
    together: u64,
) -> f64 {
    let values: Vec<f64> = distances.into_iter().collect();
    let risk = RISK / together.max(1) as f64;
    match values.len() {
        0 | 1 => f64::INFINITY,
        count => limit_of_distance(&values, tolerance_factor(risk, CONFIDENCE, count)),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// Returns forty values whose mean is `mean` and whose standard deviation is `deviation`.
    fn forty_draws(mean: f64, deviation: f64) -> Vec<f64> {
        // Twenty values lie above the mean and twenty below, all at the distance `away`. Their
        // variance (with n − 1) is 40/39·away².
        let away = deviation * (39.0_f64 / 40.0).sqrt();
        (0..40).map(|at| mean + if at % 2 == 0 { away } else { -away }).collect()
    }

    const LEAST: Least = Least { loss: Kind::Float, weights: 1e-6 };

    fn gradient(parameter: &str) -> What {
        What::Gradient(parameter.into())
    }

    /// Checks that the bounds from forty runs are mean + k·s. The expected factors k, for 95 %
    /// confidence, were computed in Python from the noncentral t distribution: 5.297515 for a
    /// distance (risk 1e-5), and 5.483708 for a signed difference (risk 5e-6 on each side of zero).
    /// The three gradients have a risk of 1e-5/3 each. The bounds of distances are computed from
    /// distance^(2/3), and s is at least a tenth of the mean.
    #[test]
    fn a_bound_is_a_tolerance_limit() {
        assert_eq!(RISK, 1e-5);
        let power = |values: Vec<f64>| values.into_iter().map(|root| root.powf(1.5)).collect();
        let figures: [(What, Vec<f64>); 7] = [
            (What::Loss, forty_draws(0.0, 1e-4)),
            (What::Length, forty_draws(-0.001, 0.0005)),
            (What::Norm, forty_draws(-0.002, 1e-6)),
            (What::Update, power(forty_draws(0.2, 0.03))),
            (gradient("w"), power(forty_draws(0.1, 0.02))),
            (gradient("b"), power(forty_draws(0.1, 0.001))),
            (gradient("unused"), vec![0.0; 40]),
        ];
        let run = |at: usize| -> Figures {
            figures.iter().map(|(what, values)| (what.clone(), values[at])).collect()
        };
        let runs: Vec<Figures> = (0..40).map(run).collect();
        let bounds = Bounds::new(&runs, LEAST);
        let third = bounds.of(&gradient("w")).powf(2.0 / 3.0);
        let k = (third - 0.1) / 0.02;
        assert!(k > 5.483708 && k < 5.7, "k is {k} for a third of the risk");
        for (what, expected) in [
            (What::Loss, 5.483_708e-4),
            (What::Length, 0.003_741_854),
            (What::Norm, 0.002 + 5.483_708 * 2e-4),
            (What::Update, 0.358_925_45_f64.powf(1.5)),
            (gradient("b"), (0.1 + k * 0.01).powf(1.5)),
            (gradient("unused"), 24.0 / 16_777_216.0),
        ] {
            let found = bounds.of(&what);
            assert!((found / expected - 1.0).abs() < 1e-5, "{what}: {found}, not {expected}");
        }
        // A loss in bf16 may differ from that of 32-true by 4 unit roundoffs of bf16, and a
        // gradient may differ by 24.
        let bounds = Bounds::new(&runs, Least { loss: Kind::BFloat16, ..LEAST });
        assert_eq!(bounds.of(&What::Loss), 2.0_f64.powi(-6));
        assert_eq!(bounds.of(&gradient("unused")), 24.0 / 256.0);
    }

    /// Checks the bound for a parameter that has a gradient in the checked run, but none in the
    /// runs with emulated rounding: it is only a few unit roundoffs, so any real difference exceeds
    /// it.
    #[test]
    fn an_unknown_gradient_is_beyond_its_bound() {
        let runs = vec![BTreeMap::from([(What::Loss, 0.0)]); 3];
        let bound = Bounds::new(&runs, LEAST).of(&gradient("w"));
        assert!(bound < 1e-5, "{bound}");
    }
}

//! Bounds for how far the losses of the model in Rust ("our side") may be from those of its PyTorch
//! version, in the first batches under 32-true. The losses stay within the bounds if the two sides
//! compute the same function.
//!
//! The two sides round at different places in the computation. So their weights differ after the
//! first step, and this difference may grow from step to step, at a rate that depends on the model,
//! its weights and its data. Therefore the growth is measured: our side trains a few more times on
//! the same batches, with initial weights that are perturbed at random by [up to sixteen unit
//! roundoffs](super::ours). The bound of a batch's loss is [`FACTOR`] times the largest difference
//! between the perturbed runs and the unperturbed run in this batch and all earlier ones. A bound
//! is at least [`LEAST`], because computing the loss rounds too.

/// The number of runs with perturbed initial weights, from which the bounds are computed.
pub(super) const RUNS: u64 = 4;
/// The bound of a loss is this multiple of the largest difference between a perturbed run and the
/// unperturbed run.
const FACTOR: f64 = 4.0;
/// The smallest bound, relative to the loss: sixteen unit roundoffs of f32.
const LEAST: f64 = 1.0 / 1_048_576.0;

/// Returns for each step the difference between the losses in `own` and in `other`, divided by the
/// loss in `own` or by the mean of all losses in `own`, whichever is larger. (Divided by a loss
/// near 0, for example of a GAN's critic, any difference would look large.)
pub(super) fn differences(own: &[f64], other: &[f64]) -> Vec<f64> {
    let finite = own.iter().filter(|loss| loss.is_finite());
    let typical = finite.clone().map(|loss| loss.abs()).sum::<f64>() / finite.count().max(1) as f64;
    let difference = |(own, other): (&f64, &f64)| match (own.is_finite(), other.is_finite()) {
        (false, false) => 0.0,
        (true, true) if own == other => 0.0,
        (true, true) => (own - other).abs() / own.abs().max(typical),
        _ => f64::INFINITY,
    };
    own.iter().zip(other).map(difference).collect()
}

/// Returns how far the loss of each step may be from PyTorch's. `own` has the losses of our
/// unperturbed run. `moved` has the losses of the runs with perturbed initial weights.
pub(super) fn bounds(own: &[f64], moved: &[Vec<f64>]) -> Vec<f64> {
    let moved: Vec<Vec<f64>> = moved.iter().map(|other| differences(own, other)).collect();
    let mut furthest = 0.0_f64;
    (0..own.len())
        .map(|step| {
            let here = moved.iter().filter_map(|run| run.get(step)).copied();
            furthest = here.filter(|off| off.is_finite()).fold(furthest, f64::max);
            (FACTOR * furthest).max(LEAST)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_grows_with_the_deviation_of_perturbed_runs() {
        let own = [2.0, 2.0, 2.0, 2.0];
        let moved = [vec![2.0, 2.002, 2.0, 2.0], vec![2.0, 2.0, 1.996, 2.0]];
        let found = bounds(&own, &moved);
        for (found, expected) in found.iter().zip([LEAST, 0.004, 0.008, 0.008]) {
            assert!((found - expected).abs() < 1e-12, "{found}, not {expected}");
        }
    }

    #[test]
    fn a_difference_is_relative_to_the_loss_or_the_mean_loss() {
        let own = [4.0, 0.0, f64::NAN, 1.0, 3.0];
        let other = [4.4, 0.2, f64::NAN, f64::NAN, 3.0];
        let found = differences(&own, &other);
        // The mean of the finite losses 4, 0, 1 and 3 is 2, so a difference from a loss below 2 is
        // divided by 2.
        let expected = [0.1, 0.1, 0.0, f64::INFINITY, 0.0];
        for (found, expected) in found.iter().zip(expected) {
            assert!(*found == expected || (found - expected).abs() < 1e-12, "{found}: {expected}");
        }
    }
}

//! The verdict on a precision: paired non-inferiority over seeds.
//!
//! For each seed d = metric(32-true) − metric(precision), both with the same weights, order and dropout; a
//! positive d is worse. With U, L = d̄ ± t(1 − α, n − 1)·s/√n the precision passes if U < δ, fails if L >
//! δ, and is inconclusive otherwise. There are two looks, at the first and at the largest number of seeds.
//! Each has risk α/2, so that both together have at most α.

mod statistics;

pub use statistics::{mean, power, standard_deviation, t_quantile, tolerance_factor};

use serde::{Deserialize, Serialize};

/// The conclusion.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Not worse by δ or more.
    Pass,
    /// Worse by more than δ, or a check failed.
    Fail,
    /// The seeds are not sufficient for a verdict.
    Inconclusive,
}

/// How a metric is judged.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Design {
    /// δ: the regression of the metric that is not accepted, in the metric's own unit.
    pub margin: f64,
    /// The probability that a precision worse by δ passes, over both looks.
    pub alpha: f64,
    /// Seeds of the first look.
    pub first: usize,
    /// Seeds of the second.
    pub most: usize,
    /// The metric's smallest step: for an accuracy, one divided by the number of validation examples.
    pub resolution: f64,
    /// Whether better by more than δ fails as well (two one-sided tests, Schuirmann 1987).
    pub equivalence: bool,
}

/// The figures behind a verdict.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Judgement {
    /// The conclusion.
    pub verdict: Verdict,
    /// Pairs.
    pub n: usize,
    /// d̄: positive is worse than the baseline.
    pub mean: f64,
    /// The measured s of the differences.
    pub s: f64,
    /// The s that was used: at least resolution/√6, see [`Design::judge`].
    pub s_used: f64,
    /// L.
    pub lower: f64,
    /// U.
    pub upper: f64,
    /// δ.
    pub margin: f64,
    /// α of this look.
    pub alpha: f64,
    /// The probability that a precision without regression passes. It equals the probability of detecting
    /// a regression of δ; computed from n and the s that was used.
    pub power: f64,
    /// Better by more than δ. That is not a failure, but something has changed.
    pub improved: bool,
}

impl Design {
    /// α of one look.
    pub fn look_alpha(&self) -> f64 {
        if self.most > self.first { self.alpha / 2.0 } else { self.alpha }
    }

    /// Judges the differences of one look.
    ///
    /// An accuracy changes in steps, and a few equal differences have s = 0, which would claim certainty.
    /// Rounding both metrics to a step q gives their difference a standard deviation of q/√6; a smaller s
    /// is never used.
    pub fn judge(&self, differences: &[f64]) -> Judgement {
        let n = differences.len();
        let (mean, s) = (mean(differences), standard_deviation(differences));
        let floor = self.resolution / 6.0_f64.sqrt();
        let s_used = if s.is_nan() { s } else { s.max(floor) };
        let alpha = self.look_alpha();
        let half = t_quantile(1.0 - alpha, n as f64 - 1.0) * s_used / (n as f64).sqrt();
        let (lower, upper) = (mean - half, mean + half);
        let delta = self.margin;
        let improved = upper < -delta;
        let verdict = if lower > delta || (self.equivalence && improved) {
            Verdict::Fail
        } else if upper < delta && (!self.equivalence || lower > -delta) {
            Verdict::Pass
        } else {
            // Comparisons with NaN are false, so NaN leads here.
            Verdict::Inconclusive
        };
        let power = power(delta, s_used, n, alpha);
        Judgement {
            verdict,
            n,
            mean,
            s,
            s_used,
            lower,
            upper,
            margin: delta,
            alpha,
            power,
            improved,
        }
    }
}

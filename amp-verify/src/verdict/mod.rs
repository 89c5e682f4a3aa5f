//! Decides whether a precision is as good as 32-true: a paired non-inferiority test over seeds.
//!
//! For each seed, d = metric(32-true) − metric(precision). The two runs have the same initial
//! weights, order of examples and dropout. If d is positive, the precision is worse than 32-true.
//! For a metric of which lower values are better, such as a loss, the sign of d is reversed. d̄ is
//! the mean of d over n seeds, and s is the standard deviation of d. The confidence interval of the
//! mean is from L to U: d̄ ± t(1 − a, n − 1)·s/√n. Here a is the level of the evaluation, and
//! t(p, f) is the quantile of Student's t distribution with f degrees of freedom at the probability
//! p. Let δ be the margin: how much worse than 32-true a precision may be. The precision passes if
//! U < δ, and fails if L > δ. Otherwise the result is inconclusive.
//!
//! The test is evaluated up to three times: with `first` seeds, with `first` plus a third of the
//! remaining seeds, and with `most` seeds. The first evaluation has the level a = α/2, and each of
//! the other two has the level a = α/4. So the total risk of a wrong pass is at most α
//! (Bonferroni).

mod statistics;

#[cfg(feature = "cli")]
pub(crate) use statistics::{CONFIDENCE, RISK};
pub use statistics::{count_limit, mean, power, standard_deviation, t_quantile, tolerance_factor};

use serde::{Deserialize, Serialize};

/// What the statistical test concludes about a precision.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// The test shows that the precision is not worse than 32-true by the margin or more. With
    /// [`Design::equivalence`], it also shows that the precision is not better by the margin or
    /// more.
    Pass,
    /// The test shows that the precision is worse than 32-true by more than the margin, or, with
    /// [`Design::equivalence`], better by more than the margin.
    Fail,
    /// The test shows neither a pass nor a failure, because there are too few seeds, or because the
    /// difference from 32-true is NaN for one of the seeds.
    Inconclusive,
}

/// The parameters of the statistical test that compares a precision with 32-true.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Design {
    /// The margin (δ), in the metric's unit: a precision is not accepted if it is worse than
    /// 32-true by this much or more.
    pub margin: f64,
    /// The accepted probability (α) that a precision passes in one of the evaluations although it
    /// is worse by the margin.
    pub alpha: f64,
    /// The number of seeds with which the test is first evaluated.
    pub first: usize,
    /// The largest number of seeds. The test is evaluated with more seeds than `first` only if it
    /// was inconclusive with fewer.
    pub most: usize,
    /// The smallest amount by which the metric can change: for an accuracy, one divided by the
    /// number of validation examples, and for a metric that is not a fraction, 0.
    pub resolution: f64,
    /// Whether a precision that is better by more than the margin fails as well (two one-sided
    /// tests, Schuirmann 1987).
    pub equivalence: bool,
}

/// The result of one evaluation of the statistical test.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Judgement {
    /// What the test concludes.
    pub verdict: Verdict,
    /// The number of differences from 32-true, one for each seed.
    pub n: usize,
    /// The mean of the differences (d̄). It is positive if the precision is worse than 32-true.
    pub mean: f64,
    /// The standard deviation of the differences.
    pub s: f64,
    /// The standard deviation from which the interval was computed. It is at least resolution/√6,
    /// for the reason given at [`Design::judge`].
    pub s_used: f64,
    /// The lower end (L) of the confidence interval of the mean difference.
    pub lower: f64,
    /// The upper end (U) of the confidence interval of the mean difference.
    pub upper: f64,
    /// The margin (δ) with which the test was evaluated.
    pub margin: f64,
    /// The significance level of this evaluation of the test.
    pub alpha: f64,
    /// The power of the test, computed from `n` and `s_used`: the probability that a precision
    /// which is as good as 32-true passes.
    pub power: f64,
    /// Whether the precision is better than 32-true by more than the margin. This is not a
    /// regression, but it shows that something has changed.
    pub improved: bool,
}

/// Returns the numbers of seeds with which the test is evaluated, in increasing order: `first`,
/// `first` plus a third of the remaining seeds, and `most`. Equal numbers are returned once. The
/// test ends at the first evaluation whose result is not inconclusive.
///
/// # Examples
///
/// ```
/// use amp_verify::verdict::evaluations;
///
/// assert_eq!(evaluations(4, 10), [4, 6, 10]);
/// assert_eq!(evaluations(5, 5), [5]);
/// ```
pub fn evaluations(first: usize, most: usize) -> Vec<usize> {
    let further = most.saturating_sub(first);
    let mut all = vec![first, first + further.div_ceil(3), first + further];
    all.dedup();
    all
}

impl Design {
    /// Returns the significance level of the evaluation with `n` seeds. If there are several
    /// evaluations, the first has half of α, and the others have equal shares of the other half.
    pub fn level(&self, n: usize) -> f64 {
        match evaluations(self.first, self.most).len() {
            1 => self.alpha,
            _ if n <= self.first => self.alpha / 2.0,
            count => self.alpha / 2.0 / (count as f64 - 1.0),
        }
    }

    /// Decides whether a precision passes, from how much worse than 32-true it is with each seed (a
    /// negative difference means that it is better).
    ///
    /// An accuracy is a multiple of q (the `resolution`), so a few differences may be equal by
    /// chance. Their standard deviation s would then be 0, and the interval would have no width.
    /// The rounding of two metrics to multiples of q alone gives their difference a standard
    /// deviation of q/√6. Therefore at least q/√6 is used for s.
    ///
    /// # Examples
    ///
    /// ```
    /// use amp_verify::verdict::{Design, Verdict};
    ///
    /// let design = Design {
    ///     margin: 0.01,
    ///     alpha: 0.05,
    ///     first: 4,
    ///     most: 8,
    ///     resolution: 0.001,
    ///     equivalence: false,
    /// };
    /// // With 32-true the accuracy is 0.1 percentage points higher on average.
    /// let judgement = design.judge(&[0.001, 0.002, 0.000, 0.001]);
    /// assert_eq!(judgement.verdict, Verdict::Pass);
    /// ```
    pub fn judge(&self, differences: &[f64]) -> Judgement {
        let n = differences.len();
        let (mean, s) = (mean(differences), standard_deviation(differences));
        let floor = self.resolution / 6.0_f64.sqrt();
        let s_used = if s.is_nan() { s } else { s.max(floor) };
        let alpha = self.level(n);
        let half = t_quantile(1.0 - alpha, n as f64 - 1.0) * s_used / (n as f64).sqrt();
        let (lower, upper) = (mean - half, mean + half);
        let delta = self.margin;
        let improved = upper < -delta;
        let verdict = if lower > delta || (self.equivalence && improved) {
            Verdict::Fail
        } else if upper < delta && (!self.equivalence || lower > -delta) {
            Verdict::Pass
        } else {
            // If a difference from 32-true is NaN, all comparisons above are false, so the result
            // is inconclusive.
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

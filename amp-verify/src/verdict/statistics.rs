//! Statistics for the non-inferiority test and for the bounds of measured values: Student's t, the
//! power of the test, and tolerance limits.

use statrs::distribution::{
    ChiSquared, Continuous, ContinuousCDF, DiscreteCDF, Normal, Poisson, StudentsT,
};

/// The accepted probability that a value measured in correct training exceeds its bound.
#[cfg(feature = "cli")]
pub(crate) const RISK: f64 = 1e-5;
/// The confidence that the probability of exceeding a bound is at most [`RISK`]. It is below 1,
/// because a bound is estimated from a few runs.
#[cfg(feature = "cli")]
pub(crate) const CONFIDENCE: f64 = 0.95;

/// Returns the mean of `values`. Returns NaN if there are no values.
pub fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// Returns the standard deviation of a sample of n values, with the divisor n − 1. Returns NaN if
/// there are fewer than two values.
pub fn standard_deviation(values: &[f64]) -> f64 {
    let mean = mean(values);
    let squares = values.iter().map(|x| (x - mean).powi(2)).sum::<f64>();
    (squares / (values.len() as f64 - 1.0)).sqrt()
}

/// Returns the quantile of Student's t distribution with `freedom` degrees of freedom at
/// `probability`. If `freedom` is 0, the distribution does not exist. The result is then infinite,
/// so that every interval computed from it is infinite.
pub fn t_quantile(probability: f64, freedom: f64) -> f64 {
    StudentsT::new(0.0, 1.0, freedom).map_or(f64::INFINITY, |t| t.inverse_cdf(probability))
}

/// Returns the power of a one-sided one-sample t test: the probability that the test distinguishes
/// a mean of `effect` from 0. The test has the level `alpha`, and uses `n` differences with the
/// standard deviation `s`. The power is P(T > t(1 − alpha, n − 1)). Here t is the quantile that
/// [`t_quantile`] returns, and T has a noncentral t distribution with the noncentrality effect·√n/s
/// (Owen 1965). This is the probability that a precision without regression passes with a margin of
/// `effect`. It is also the probability that a regression of `effect` is detected.
///
/// # Examples
///
/// ```
/// use amp_verify::verdict::power;
///
/// // Four seeds are enough if the differences vary by a quarter of the margin.
/// assert!(power(0.01, 0.0025, 4, 0.025) > 0.9);
/// assert!(power(0.01, 0.01, 4, 0.025) < 0.5);
/// ```
pub fn power(effect: f64, s: f64, n: usize, alpha: f64) -> f64 {
    let freedom = n as f64 - 1.0;
    if freedom < 1.0 || s.is_nan() {
        return f64::NAN;
    }
    if s <= 0.0 {
        return 1.0;
    }
    let shift = effect * (n as f64).sqrt() / s;
    NoncentralT::new(freedom).map_or(f64::NAN, |t| t.above(t_quantile(1.0 - alpha, freedom), shift))
}

/// Returns the factor k of a one-sided tolerance limit, mean + k·s. Here the mean and the standard
/// deviation s are those of `n` values of a normal distribution. With probability `confidence`, at
/// most the fraction `risk` of the distribution is above the limit. k is t′(confidence; n − 1,
/// z(1 − risk)·√n)/√n, where z is the quantile of the standard normal distribution, and t′ the
/// quantile of the noncentral t distribution with n − 1 degrees of freedom and the noncentrality
/// z(1 − risk)·√n (Natrella 1963; ISO 16269-6). k is infinite for fewer than two values.
pub fn tolerance_factor(risk: f64, confidence: f64, n: usize) -> f64 {
    let (freedom, root) = (n as f64 - 1.0, (n as f64).sqrt());
    let Ok(normal) = Normal::new(0.0, 1.0) else { return f64::INFINITY };
    if freedom < 1.0 {
        return f64::INFINITY;
    }
    let shift = normal.inverse_cdf(1.0 - risk) * root;
    let Some(t) = NoncentralT::new(freedom) else { return f64::INFINITY };
    let is_below = |k: f64| t.above(k * root, shift) > 1.0 - confidence;
    let (mut low, mut high) = (0.0, 1.0);
    while is_below(high) && high < 1e6 {
        (low, high) = (high, 2.0 * high);
    }
    while high - low > 1e-9 * high {
        let middle = f64::midpoint(low, high);
        (low, high) = if is_below(middle) { (middle, high) } else { (low, middle) };
    }
    high
}

/// Returns an upper tolerance limit for counts of a Poisson distribution. The distribution is
/// estimated from `draws` earlier counts, whose sum is `seen`. With probability `confidence`, at
/// most the fraction `risk` of further counts is above the limit. The limit is computed for the
/// largest mean that the distribution may have with this confidence: χ²(confidence;
/// 2·seen + 2)/(2·draws), where χ² is the quantile of the chi-squared distribution with 2·seen + 2
/// degrees of freedom (Garwood 1936). If `draws` is 0, there is no limit, and the result is
/// `u64::MAX`.
pub fn count_limit(seen: u64, draws: usize, risk: f64, confidence: f64) -> u64 {
    let freedom = 2.0 * seen as f64 + 2.0;
    let most = ChiSquared::new(freedom).map(|chi| chi.inverse_cdf(confidence));
    let Ok(mean) = most.map(|most| most / (2.0 * draws as f64)) else { return u64::MAX };
    // If `draws` is 0, the mean is not finite.
    let Some(counts) = Poisson::new(mean).ok().filter(|_| mean.is_finite()) else {
        return u64::MAX;
    };
    let is_beyond = |count: u64| counts.sf(count) <= risk;
    let mut high = 1;
    while !is_beyond(high) {
        high *= 2;
    }
    let mut low = 0;
    while low < high {
        let middle = u64::midpoint(low, high);
        (low, high) = if is_beyond(middle) { (low, middle) } else { (middle + 1, high) };
    }
    high
}

/// Computes probabilities of noncentral t distributions with `freedom` degrees of freedom by
/// numerical integration.
struct NoncentralT {
    normal: Normal,
    freedom: f64,
    /// The distance between neighbouring points.
    width: f64,
    /// The points at which the integrand is evaluated, each with the density of the chi
    /// distribution.
    points: Vec<(f64, f64)>,
}

impl NoncentralT {
    /// The number of intervals between the points.
    const INTERVALS: i32 = 2000;

    /// Chooses the points and evaluates the density at each of them, once for all probabilities.
    /// Returns `None` if `freedom` is not a number above 0.
    fn new(freedom: f64) -> Option<Self> {
        let (normal, chi) = (Normal::new(0.0, 1.0).ok()?, ChiSquared::new(freedom).ok()?);
        // T = (Z + shift)·√ν/u, where Z has a standard normal distribution, and u has a chi
        // distribution with ν = `freedom` degrees of freedom. So T > c means Z > c·u/√ν − shift.
        // The probability of Z > c·u/√ν − shift is weighted with the density of u and integrated
        // over u by Simpson's rule. The density is smooth. The integral covers the distance 9 on
        // each side of √ν. Beyond that, the density is too small to change an f64 number.
        let (low, high) = ((freedom.sqrt() - 9.0).max(0.0), freedom.sqrt() + 9.0);
        let width = (high - low) / f64::from(Self::INTERVALS);
        let density = |u: f64| {
            if u <= 0.0 { 0.0 } else { 2.0 * u * chi.pdf(u * u) }
        };
        let point = |index: i32| {
            // `density` returns 0 at u = 0. With one degree of freedom, the true density there is
            // above 0. Therefore u is at least 1e-9.
            let u = (low + f64::from(index) * width).max(1e-9);
            (u, density(u))
        };
        let points = (0..=Self::INTERVALS).map(point).collect();
        Some(Self { normal, freedom, width, points })
    }

    /// Returns P(T > `critical`) for a T with the noncentrality `shift`.
    fn above(&self, critical: f64, shift: f64) -> f64 {
        let root = self.freedom.sqrt();
        let values: Vec<f64> = self
            .points
            .iter()
            .map(|(u, density)| density * self.normal.cdf(shift - critical * u / root))
            .collect();
        let [first, inner @ .., last] = values.as_slice() else { return f64::NAN };
        let weighed = inner.iter().enumerate().map(|(at, value)| {
            // Simpson's rule counts every second inner point four times, beginning with the first.
            value * if at % 2 == 0 { 4.0 } else { 2.0 }
        });
        (first + weighed.sum::<f64>() + last) * self.width / 3.0
    }
}

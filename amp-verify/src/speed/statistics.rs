//! The median and the quartiles of values that were measured in several rounds.

use serde::{Deserialize, Serialize};

/// The median and the quartiles of values that were measured in several rounds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// The median of the values.
    pub median: f64,
    /// The first quartile: a quarter of the values are below it.
    pub q1: f64,
    /// The third quartile: a quarter of the values are above it.
    pub q3: f64,
}

impl Spread {
    /// Computes the median and the quartiles of `values`. Returns `None` if there are no values.
    pub fn of(values: &[f64]) -> Option<Self> {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        Some(Self {
            median: quantile(&sorted, 0.5)?,
            q1: quantile(&sorted, 0.25)?,
            q3: quantile(&sorted, 0.75)?,
        })
    }

    /// Returns the interquartile range (the third minus the first quartile), divided by the median.
    pub fn relative(&self) -> f64 {
        (self.q3 - self.q1) / self.median
    }
}

/// Returns the value below which the fraction `share` of the sorted values lies, interpolated
/// linearly (type 7 of Hyndman and Fan, the default of numpy and R).
fn quantile(sorted: &[f64], share: f64) -> Option<f64> {
    let at = share * (sorted.len().checked_sub(1)?) as f64;
    let (low, part) = (at.floor() as usize, at.fract());
    let high = (low + 1).min(sorted.len() - 1);
    Some(sorted[low] + part * (sorted[high] - sorted[low]))
}

/// Divides two quantities that were measured in each round, for example the speeds of two engines,
/// and returns the median of the ratios. A temporary slowdown of the machine affects both
/// measurements of a round, so it has little effect on their ratio.
pub fn paired_ratio(numerator: &[f64], denominator: &[f64]) -> Option<f64> {
    let ratios: Vec<f64> = numerator.iter().zip(denominator).map(|(a, b)| a / b).collect();
    Spread::of(&ratios).map(|spread| spread.median)
}

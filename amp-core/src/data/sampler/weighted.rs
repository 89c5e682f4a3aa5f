use super::{Epoch, Sampler, digest};
use crate::{Error, Result};

/// Selects examples at random with probabilities in proportion to their weights
/// (WeightedRandomSampler), for example to balance classes of very different sizes. An example may
/// be selected several times in an epoch, or not at all.
///
/// ```
/// use amp_core::{Result, data::{Epoch, Sampler, Weighted}};
///
/// # fn main() -> Result<()> {
/// // Example 1 is drawn three times as often as example 2, and example 0 never.
/// let sampler = Weighted::new(vec![0.0, 3.0, 1.0], 4000)?;
/// let order = sampler.order(&Epoch { seed: 1, epoch: 0, examples: 3, batch_size: 2 })?;
/// let ones = order.iter().filter(|index| **index == 1).count();
/// assert!((2900..3100).contains(&ones));
/// assert!(!order.contains(&0));
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Weighted {
    /// For each example, the sum of all weights up to and including the example's own weight.
    sums: Vec<f64>,
    draws: i64,
}

impl Weighted {
    /// Creates a sampler that selects `num_samples` examples per epoch. `weights` contains the
    /// weight of each example of the set. The weights need not add up to 1.
    ///
    /// # Errors
    /// When a weight is negative or not finite, all weights are 0, or `num_samples` is below 1.
    ///
    /// # Examples
    ///
    /// ```
    /// use amp_core::{data::Weighted, prelude::*};
    ///
    /// // The second of two examples is drawn three times as often as the first.
    /// let sampler = Weighted::new(vec![1.0, 3.0], 100)?;
    /// # let _ = sampler;
    /// # Ok::<(), Error>(())
    /// ```
    pub fn new(weights: Vec<f64>, num_samples: i64) -> Result<Self> {
        let bad = |weight: &&f64| !(**weight >= 0.0 && weight.is_finite());
        if let Some(weight) = weights.iter().find(bad) {
            return Err(Error::config(format!(
                "a weight is {weight}, but weights must be finite and at least 0"
            )));
        }
        let mut sum = 0.0;
        let sums: Vec<f64> = weights
            .iter()
            .map(|weight| {
                sum += weight;
                sum
            })
            .collect();
        if !(sum > 0.0 && sum.is_finite()) {
            return Err(Error::config(format!(
                "the weights add up to {sum}, so no example can be drawn"
            )));
        }
        if num_samples < 1 {
            return Err(Error::config(format!("num_samples is {num_samples}: draw at least 1")));
        }
        Ok(Self { sums, draws: num_samples })
    }

    /// Returns weights for which each class is selected equally often. The weight of an example is
    /// 1 / (the number of examples of its class).
    pub fn balanced(classes: &[i64]) -> Vec<f64> {
        let mut sizes = std::collections::HashMap::new();
        classes.iter().for_each(|class| *sizes.entry(class).or_insert(0.0) += 1.0);
        classes.iter().map(|class| 1.0 / sizes[class]).collect()
    }
}

impl Sampler for Weighted {
    fn name(&self) -> String {
        let digest = digest(self.sums.iter().map(|sum| sum.to_le_bytes()));
        format!("weighted, {} draws, weights {digest}", self.draws)
    }

    fn len(&self, _: i64) -> i64 {
        self.draws
    }

    fn order(&self, epoch: &Epoch) -> Result<Vec<i64>> {
        let (weights, examples) = (self.sums.len(), epoch.examples);
        if weights as i64 != examples {
            return Err(Error::config(format!(
                "{weights} weights for a set of {examples} examples: give one per example"
            )));
        }
        let all = self.sums.last().copied().unwrap_or_default();
        let mut rng = epoch.rng();
        let draw = |_| {
            let place = rng.uniform(0.0, all);
            // Chooses the first example whose cumulative sum is larger than `place`. An example of
            // weight 0 is never chosen, because its cumulative sum equals that of the previous
            // example.
            let at = self.sums.partition_point(|sum| *sum <= place);
            at.min(weights - 1) as i64
        };
        Ok((0..self.draws).map(draw).collect())
    }
}

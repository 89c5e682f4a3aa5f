//! A random generator that is independent of libtorch's generators.

use tch::Tensor;

use crate::Result;

/// A stream of random numbers that depends only on its seed. It is independent of libtorch's
/// generators, from which the model takes its random numbers.
///
/// ```
/// use amp_core::random::Rng;
///
/// let mut rng = Rng::with_seed(7);
/// let (flip, angle) = (rng.chance(0.5), rng.uniform(-10.0, 10.0));
/// assert!((-10.0..10.0).contains(&angle));
/// let mut again = Rng::with_seed(7);
/// assert_eq!((again.chance(0.5), again.uniform(-10.0, 10.0)), (flip, angle));
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rng(fastrand::Rng);

impl Rng {
    /// Returns the stream of random numbers that belongs to `seed`.
    pub fn with_seed(seed: u64) -> Self {
        Self(fastrand::Rng::with_seed(seed))
    }

    /// Returns 64 random bits, for example as the seed of another generator.
    pub fn bits(&mut self) -> u64 {
        self.0.u64(..)
    }

    /// Returns a number that is uniformly distributed in [`low`, `high`). Returns `low` if `low`
    /// and `high` are equal.
    pub fn uniform(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.0.f64()
    }

    /// Returns a whole number from 0 to `count - 1`, each with the same probability. Returns 0 if
    /// `count` is below 1.
    pub fn below(&mut self, count: i64) -> i64 {
        self.0.i64(0..count.max(1))
    }

    /// Returns true with the given probability, and otherwise false.
    pub fn chance(&mut self, probability: f64) -> bool {
        self.0.f64() < probability
    }

    /// Returns a normally distributed number with mean 0 and standard deviation 1 (Box and Muller).
    pub fn normal(&mut self) -> f64 {
        // 1 - u is never 0, so the logarithm is finite.
        let radius = (-2.0 * (1.0 - self.0.f64()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.0.f64()).cos()
    }

    /// Returns a tensor of normally distributed numbers, in f32 on the CPU.
    ///
    /// # Errors
    /// When there is not enough memory, or a size is negative.
    pub fn randn(&mut self, shape: &[i64]) -> Result<Tensor> {
        let count = shape.iter().product::<i64>().max(0).cast_unsigned() as usize;
        let values: Vec<f32> =
            std::iter::repeat_with(|| self.normal() as f32).take(count).collect();
        Ok(Tensor::f_from_slice(&values)?.f_reshape(shape)?)
    }

    /// Returns a random number from 0 to 1 with the distribution Beta(a, b). `a` and `b` must be
    /// positive.
    pub fn beta(&mut self, a: f64, b: f64) -> f64 {
        // The result is X / (X + Y) for two gamma distributed numbers X and Y. It is computed from
        // the logarithms of X and Y, because X and Y underflow if a and b are small.
        let (x, y) = (self.ln_gamma(a), self.ln_gamma(b));
        1.0 / (1.0 + (y - x).exp())
    }

    /// Returns the logarithm of a gamma-distributed number with the shape parameter `shape`
    /// (Marsaglia and Tsang 2000).
    fn ln_gamma(&mut self, shape: f64) -> f64 {
        if shape < 1.0 {
            return self.ln_gamma(shape + 1.0) + (1.0 - self.0.f64()).ln() / shape;
        }
        let d = shape - 1.0 / 3.0;
        loop {
            let x = self.normal();
            let v = (1.0 + x / (9.0 * d).sqrt()).powi(3);
            if v > 0.0 && (1.0 - self.0.f64()).ln() < 0.5 * x * x + d * (1.0 - v + v.ln()) {
                return (d * v).ln();
            }
        }
    }

    /// Shuffles the items, so that each order is equally likely.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        self.0.shuffle(items);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Asserts that the mean and the variance of the drawn numbers are within five standard errors
    /// of `mean` and `variance`.
    fn moments(draw: impl FnMut() -> f64, mean: f64, variance: f64) {
        let drawn: Vec<f64> = std::iter::repeat_with(draw).take(100_000).collect();
        let own = drawn.iter().sum::<f64>() / 1e5;
        let spread = drawn.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / 1e5;
        assert!((own - mean).abs() <= 5.0 * (variance / 1e5).sqrt(), "mean {own}, not {mean}");
        // This bound for the variance holds if the kurtosis is at most 3, as for all distributions
        // of this test.
        assert!(
            (spread - variance).abs() <= 5.0 * variance * (2.0 / 1e5_f64).sqrt(),
            "variance {spread}"
        );
    }

    /// Checks the mean and the variance of random numbers from each distribution.
    #[test]
    fn distributions_have_their_moments() {
        let mut rng = Rng::with_seed(5);
        moments(|| rng.normal(), 0.0, 1.0);
        moments(|| rng.uniform(-1.0, 5.0), 2.0, 3.0);
        moments(|| rng.below(10) as f64, 4.5, 8.25);
        moments(|| f64::from(u8::from(rng.chance(0.3))), 0.3, 0.21);
        let drawn = rng.randn(&[2, 50_000]).expect("a tensor");
        assert_eq!((drawn.size(), drawn.kind()), (vec![2, 50_000], tch::Kind::Float));
        let drawn: Vec<f32> = drawn.view(-1).try_into().expect("values");
        let mut drawn = drawn.into_iter();
        moments(|| f64::from(drawn.next().expect("a value")), 0.0, 1.0);
        for (a, b) in [(0.2, 0.2), (1.0, 1.0), (0.5, 1.5), (3.0, 2.0)] {
            let all: f64 = a + b;
            moments(|| rng.beta(a, b), a / all, a * b / (all * all * (all + 1.0)));
        }
        assert!((0..1000).all(|_| (0.0..=1.0).contains(&rng.beta(1e-4, 1e-4))));
    }
}

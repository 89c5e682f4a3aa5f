//! A generator of random numbers that belongs to its owner alone.

/// A stream of random numbers that follows from its seed alone. libtorch's generators, which the model
/// draws from, are left alone.
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
    /// The stream of this seed.
    pub fn with_seed(seed: u64) -> Self {
        Self(fastrand::Rng::with_seed(seed))
    }

    /// 64 random bits, as for the seed of another generator.
    pub fn bits(&mut self) -> u64 {
        self.0.u64(..)
    }

    /// A number from `low` (inclusive) to `high` (exclusive), each as likely; `low` where both are equal.
    pub fn uniform(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.0.f64()
    }

    /// A whole number from 0 to `count - 1`, each as likely; 0 where `count` is below 1.
    pub fn below(&mut self, count: i64) -> i64 {
        self.0.i64(0..count.max(1))
    }

    /// Whether something of this probability happens.
    pub fn chance(&mut self, probability: f64) -> bool {
        self.0.f64() < probability
    }

    /// A number of the normal distribution with mean 0 and standard deviation 1 (Box and Muller).
    pub fn normal(&mut self) -> f64 {
        // 1 - u is never 0, whose logarithm is infinite.
        let radius = (-2.0 * (1.0 - self.0.f64()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.0.f64()).cos()
    }

    /// Puts the items into a random order, each as likely.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        self.0.shuffle(items);
    }
}

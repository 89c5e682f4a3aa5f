//! Seeds and random generators for the examples of a data set. Their random numbers are independent
//! of the model's random numbers.

use tch::Tensor;

use super::{Rng, isolated::with_cpu_seed, place};
use crate::{Result, ffi::CpuRandom};

/// Computes a seed for each example. The seed depends only on the seed of the run, the epoch and
/// the index of the example. Therefore the augmentation of an example is the same for any number of
/// prefetched batches, in any order of examples, and after a resume. The seeds use no random
/// numbers of libtorch's generators, so the model's random numbers stay the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Draws {
    key: u64,
}

impl Draws {
    /// Creates the seeds of one epoch from the seed of the run.
    pub fn new(seed: u64, epoch: u64) -> Self {
        Self { key: mixed(mixed(seed) ^ epoch) }
    }

    /// Returns the seed of a random generator for the example at `index`.
    pub fn seed(self, index: i64) -> u64 {
        mixed(self.key ^ index.cast_unsigned())
    }

    /// Returns a random generator for the example at `index`.
    pub fn rng(self, index: i64) -> Rng {
        Rng::with_seed(self.seed(index))
    }

    /// Returns a random generator for the batch that consists of these examples. Its random numbers
    /// are independent of those of the single examples' generators.
    pub fn batch_rng(self, indices: &[i64]) -> Rng {
        let start = mixed(!self.key);
        Rng::with_seed(indices.iter().fold(start, |key, index| mixed(key ^ index.cast_unsigned())))
    }

    /// Returns the seeds for transforms of whole batches, in the same run and epoch. The random
    /// numbers from these seeds are independent of the examples' random numbers.
    #[must_use]
    pub(crate) fn of_batches(self) -> Self {
        Self { key: mixed(self.key ^ BATCHES) }
    }

    /// Runs `body` while libtorch's CPU generator is seeded for the example at `index`, and
    /// restores the generator's state afterwards. Other threads of the run must not use the
    /// generator during the call.
    pub(crate) fn apart<T>(self, index: i64, body: impl FnOnce() -> T) -> Result<T> {
        let _place = place();
        with_cpu_seed(self.seed(index), body)
    }

    /// Runs `body`, and returns its result and whether `body` used libtorch's random generator. If
    /// `body` used it, the result is that of a call with the example's seed, as in
    /// [`apart`](Self::apart), and the generator's state is restored.
    ///
    /// Compares the generator's state before and after `body`. Other threads may change this state,
    /// too. If the first call of `body` leaves the state unchanged, `body` does not use the
    /// generator. Otherwise calls `body` several more times with the same seed. If one of these
    /// calls leaves the state unchanged, `body` does not use the generator. If two calls in a row
    /// leave the same changed state, `body` uses it. If neither happens, assumes that `body` uses
    /// it. A wrong assumption costs time, but the random numbers are still correct.
    pub(crate) fn watched<T>(self, index: i64, body: impl Fn() -> T) -> Result<(T, bool)> {
        let _place = place();
        let state = || CpuRandom::read()?.tensor();
        let before = CpuRandom::read()?;
        let value = body();
        if state()?.f_equal(&before.tensor()?)? {
            return Ok((value, false));
        }
        before.restore()?;
        let once = || -> Result<(T, Tensor, Tensor)> {
            let start = state()?;
            Ok((body(), start, state()?))
        };
        let (mut value, mut start, mut end) = self.apart(index, once)??;
        for _ in 0..RUNS {
            if end.f_equal(&start)? {
                return Ok((value, false));
            }
            let last = end;
            (value, start, end) = self.apart(index, once)??;
            if end.f_equal(&last)? {
                break;
            }
        }
        Ok((value, true))
    }
}

/// A constant that makes the seeds for transforms of batches differ from the seeds for examples.
const BATCHES: u64 = 0x6261_7463_6865_7321;

/// The largest number of further calls of `body` in [`Draws::watched`].
const RUNS: usize = 4;

/// Computes SplitMix64's output function: consecutive inputs give unrelated outputs.
fn mixed(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

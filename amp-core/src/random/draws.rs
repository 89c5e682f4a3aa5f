//! Random numbers for examples, independent of the model's random numbers.

use tch::Tensor;

use super::{Rng, place};
use crate::{Result, ffi::CpuRandom};

/// The seeds of examples. They depend only on the run's seed, the epoch and the example's index.
/// Therefore an augmentation is the same for any number of prefetched batches, any order of
/// examples and after a resume. It does not change the model's random numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Draws {
    key: u64,
}

impl Draws {
    /// Creates the seeds of an epoch.
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

    /// Returns a random generator for the batch with these examples. Its numbers are independent of
    /// the examples' own numbers.
    pub fn batch_rng(self, indices: &[i64]) -> Rng {
        let start = mixed(!self.key);
        Rng::with_seed(indices.iter().fold(start, |key, index| mixed(key ^ index.cast_unsigned())))
    }

    /// Returns the seeds of the same run and epoch for transforms of whole batches. Their numbers
    /// are independent of the examples' numbers.
    #[must_use]
    pub(crate) fn of_batches(self) -> Self {
        Self { key: mixed(self.key ^ BATCHES) }
    }

    /// Runs `body` with libtorch's CPU generator seeded for the example at `index`, and restores
    /// the generator afterwards. Other threads of the run must not draw meanwhile.
    pub(crate) fn apart<T>(self, index: i64, body: impl FnOnce() -> T) -> Result<T> {
        /// Restores the generator, also after a panic.
        struct Kept(CpuRandom);

        impl Drop for Kept {
            fn drop(&mut self) {
                // Restoring a state that was read from the same generator does not fail.
                let _ = self.0.restore();
            }
        }

        let _place = place();
        let _kept = Kept(CpuRandom::read()?);
        CpuRandom::seed(self.seed(index))?;
        Ok(body())
    }

    /// Returns the result of `body`, and whether `body` drew from libtorch's generator. If it did,
    /// it ran [apart](Self::apart), and the generator is unchanged.
    ///
    /// Other threads may draw at the same time and change the generator too. Therefore `body` is
    /// run several times from one seed. If two runs leave the generator in the same changed state,
    /// `body` draws. If no two runs agree, `body` is assumed to draw, which costs time but gives
    /// correct numbers.
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

/// A constant that makes the numbers for transforms of batches differ from the numbers for
/// examples.
const BATCHES: u64 = 0x6261_7463_6865_7321;

/// The number of repeated runs after which `body` is assumed to draw, if no two runs agree.
const RUNS: usize = 4;

/// Computes SplitMix64's output function: consecutive inputs give unrelated outputs.
fn mixed(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

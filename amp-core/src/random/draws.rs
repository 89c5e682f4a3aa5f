//! Random numbers for examples, apart from the model's.

use tch::Tensor;

use super::{Rng, place};
use crate::{Result, ffi::CpuRandom};

/// What an example's random numbers follow from: the run's seed, the epoch and the example's place in its
/// set, and nothing else. So an augmentation is the same for any number of batches loaded ahead, any order
/// of examples, and after a resume, and leaves the model's random numbers alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Draws {
    key: u64,
}

impl Draws {
    /// Of an epoch.
    pub fn new(seed: u64, epoch: u64) -> Self {
        Self { key: mixed(mixed(seed) ^ epoch) }
    }

    /// The seed for a random generator of the example at `index`.
    pub fn seed(self, index: i64) -> u64 {
        mixed(self.key ^ index.cast_unsigned())
    }

    /// The random numbers of the example at `index`.
    pub fn rng(self, index: i64) -> Rng {
        Rng::with_seed(self.seed(index))
    }

    /// The random numbers of the batch of these examples, apart from the numbers of its examples.
    pub fn batch_rng(self, indices: &[i64]) -> Rng {
        let start = mixed(!self.key);
        Rng::with_seed(indices.iter().fold(start, |key, index| mixed(key ^ index.cast_unsigned())))
    }

    /// Runs `body` with libtorch's generator of the CPU seeded by the example at `index`, and puts the
    /// generator back. Other threads of the run must not draw meanwhile.
    pub(crate) fn apart<T>(self, index: i64, body: impl FnOnce() -> T) -> Result<T> {
        /// Puts the generator back, also behind a panic.
        struct Kept(CpuRandom);

        impl Drop for Kept {
            fn drop(&mut self) {
                // The shim has no way to fail there.
                let _ = self.0.restore();
            }
        }

        let _place = place();
        let _kept = Kept(CpuRandom::read()?);
        CpuRandom::seed(self.seed(index))?;
        Ok(body())
    }

    /// What `body` gives, and whether it drew from libtorch's generator: then it ran
    /// [apart](Self::apart), and has changed nothing.
    ///
    /// Threads that are in no section may draw meanwhile, so that the generator's state moves without
    /// `body`. It draws if the state ends at one place in two runs from one seed; after a few runs
    /// without such a place it is taken to draw, which is slower and otherwise the same.
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

/// Runs after which a body whose end differs each time is taken to draw.
const RUNS: usize = 4;

/// SplitMix64's output function: neighbours have nothing in common.
fn mixed(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

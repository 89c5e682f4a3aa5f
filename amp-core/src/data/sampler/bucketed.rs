use super::{Epoch, Sampler, digest};
use crate::{Error, Result};

/// Shuffles a set such that the examples of a batch have similar lengths, so that little padding is
/// needed. First shuffles all examples. Then sorts the examples by length within pools of several
/// batches. Finally shuffles the order of the batches. If the last batch is not full, it contains
/// examples of any length.
///
/// ```
/// use amp_core::{Result, data::{Bucketed, Epoch, Sampler}};
///
/// # fn main() -> Result<()> {
/// let lengths = vec![9, 1, 8, 2];
/// let order = Bucketed::new(lengths.clone()).order(&Epoch { seed: 1, epoch: 0, examples: 4, batch_size: 2 })?;
/// for batch in order.chunks(2) {
///     assert!((lengths[batch[0] as usize] - lengths[batch[1] as usize]).abs() <= 1);
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Bucketed {
    lengths: Vec<i64>,
    pool: i64,
}

impl Bucketed {
    /// Creates the sampler from the length of each example. By default, a pool has 100 batches.
    pub fn new(lengths: Vec<i64>) -> Self {
        Self { lengths, pool: 100 }
    }

    /// Sets the number of batches in a pool. A small number shuffles better, and a large number
    /// needs less padding.
    #[must_use]
    pub fn pool(mut self, batches: i64) -> Self {
        self.pool = batches.max(1);
        self
    }
}

impl Sampler for Bucketed {
    fn name(&self) -> String {
        let digest = digest(self.lengths.iter().map(|length| length.to_le_bytes()));
        format!("bucketed, pools of {}, lengths {digest}", self.pool)
    }

    fn order(&self, epoch: &Epoch) -> Result<Vec<i64>> {
        let (lengths, examples) = (self.lengths.len(), epoch.examples);
        if lengths as i64 != examples {
            return Err(Error::config(format!(
                "{lengths} lengths for a set of {examples} examples: give one per example"
            )));
        }
        let mut rng = epoch.rng();
        let mut order: Vec<i64> = (0..examples).collect();
        rng.shuffle(&mut order);
        let size = epoch.batch_size.max(1) as usize;
        // If the last batch is not full, its examples are split off before sorting. Otherwise
        // `drop_last` would always leave out the longest examples of a pool.
        let rest = order.split_off(lengths / size * size);
        for pool in order.chunks_mut(size.saturating_mul(self.pool as usize)) {
            pool.sort_by_key(|index| self.lengths[*index as usize]);
        }
        let mut batches: Vec<&[i64]> = order.chunks(size).collect();
        rng.shuffle(&mut batches);
        Ok([batches.concat(), rest].concat())
    }
}

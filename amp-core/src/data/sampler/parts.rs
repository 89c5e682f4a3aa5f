//! Samplers that select some of the examples, in the order of another sampler.

use super::{Epoch, Sampler, digest};
use crate::{Error, Result};

/// Selects some of the examples. Another sampler determines their order, as if the set had only
/// these examples. With [`Shuffled`](super::Shuffled) this is torch's SubsetRandomSampler.
#[derive(Debug, Clone)]
pub struct Subset<S> {
    indices: Vec<i64>,
    inner: S,
}

impl<S: Sampler> Subset<S> {
    /// Selects the examples at `indices`, in the order that `inner` determines.
    ///
    /// # Errors
    /// When `indices` is empty.
    pub fn new(indices: Vec<i64>, inner: S) -> Result<Self> {
        if indices.is_empty() {
            return Err(Error::config("a subset needs at least one example"));
        }
        Ok(Self { indices, inner })
    }
}

impl<S: Sampler> Sampler for Subset<S> {
    fn name(&self) -> String {
        let digest = digest(self.indices.iter().map(|index| index.to_le_bytes()));
        format!("{} of {} examples {digest}", self.inner.name(), self.indices.len())
    }

    fn len(&self, _: i64) -> i64 {
        self.inner.len(self.indices.len() as i64)
    }

    fn order(&self, epoch: &Epoch) -> Result<Vec<i64>> {
        let within = Epoch { examples: self.indices.len() as i64, ..*epoch };
        let order = super::checked_order(&self.inner, &within)?;
        Ok(order.into_iter().map(|at| self.indices[at as usize]).collect())
    }
}

/// How all processes get the same number of examples, even if the number of examples is not a
/// multiple of the number of processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Tail {
    /// The first examples of the order are selected again, until all processes have the same number
    /// of examples.
    #[default]
    Pad,
    /// The last examples of the order are left out.
    Drop,
}

/// Selects the examples for one of several processes in distributed training (DistributedSampler).
/// Each process takes every `world_size`-th example of the same order. No two processes therefore
/// read the same example, except for the examples that [`Tail::Pad`] repeats. All processes read
/// the same number of examples. The processes do not communicate.
///
/// ```
/// use amp_core::{Result, data::{Distributed, Epoch, Sampler, Shuffled, Tail}};
///
/// # fn main() -> Result<()> {
/// let epoch = Epoch { seed: 1, epoch: 0, examples: 7, batch_size: 2 };
/// let first = Distributed::new(Shuffled, 0, 2, Tail::Drop)?.order(&epoch)?;
/// let second = Distributed::new(Shuffled, 1, 2, Tail::Drop)?.order(&epoch)?;
/// assert_eq!((first.len(), second.len()), (3, 3));
/// assert!(first.iter().all(|index| !second.contains(index)));
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Distributed<S> {
    inner: S,
    rank: i64,
    world_size: i64,
    tail: Tail,
}

impl<S: Sampler> Distributed<S> {
    /// Selects the examples of the process `rank`, counted from 0, out of `world_size` processes.
    ///
    /// # Errors
    /// When `rank` is not from 0 to `world_size` − 1.
    pub fn new(inner: S, rank: i64, world_size: i64, tail: Tail) -> Result<Self> {
        if !(0..world_size).contains(&rank) {
            return Err(Error::config(format!(
                "rank {rank} of {world_size} processes: a rank must be at least 0 and less than the number of \
                 processes"
            )));
        }
        Ok(Self { inner, rank, world_size, tail })
    }
}

impl<S: Sampler> Sampler for Distributed<S> {
    fn name(&self) -> String {
        let Self { inner, rank, world_size, tail } = self;
        format!("{}, rank {rank} of {world_size}, {tail:?}", inner.name())
    }

    fn len(&self, examples: i64) -> i64 {
        let all = self.inner.len(examples);
        match self.tail {
            Tail::Pad => (all + self.world_size - 1) / self.world_size,
            Tail::Drop => all / self.world_size,
        }
    }

    fn order(&self, epoch: &Epoch) -> Result<Vec<i64>> {
        // In each step, every process reads one batch. The batches of all processes are together
        // one large batch in the order of the inner sampler. The inner sampler therefore gets the
        // size of this large batch.
        let batch_size = epoch.batch_size * self.world_size;
        let order = self.inner.order(&Epoch { batch_size, ..*epoch })?;
        let places = (0..self.len(epoch.examples)).map(|at| at * self.world_size + self.rank);
        Ok(places.map(|at| order[at as usize % order.len()]).collect())
    }
}

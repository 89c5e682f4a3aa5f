//! Samplers, which determine the order of the examples in each epoch.

mod blocks;
mod bucketed;
mod parts;
mod weighted;

use std::{fmt, sync::Arc};

pub use blocks::ShuffledBlocks;
pub use bucketed::Bucketed;
pub use parts::{Distributed, Subset, Tail};
pub use weighted::Weighted;

use crate::{Error, Result, random::Rng};

/// Determines the order of the examples in each epoch (torch.utils.data.Sampler). The order depends
/// only on the content of an [`Epoch`]. It does not depend on the device, the precision or the
/// batches that were read before. A resumed run therefore continues in the same order.
///
/// A batch consists of consecutive examples of the order. Therefore the sampler also decides which
/// examples are in the same batch.
///
/// ```
/// use amp_core::{Result, data::{Epoch, Sampler}};
///
/// /// Every second example, the even ones in even epochs.
/// #[derive(Debug)]
/// struct EverySecond;
///
/// impl Sampler for EverySecond {
///     fn name(&self) -> String {
///         "every second".into()
///     }
///
///     fn len(&self, examples: i64) -> i64 {
///         examples / 2
///     }
///
///     fn order(&self, epoch: &Epoch) -> Result<Vec<i64>> {
///         let first = (epoch.epoch % 2) as i64;
///         let mut order: Vec<i64> = (0..epoch.examples / 2).map(|at| 2 * at + first).collect();
///         epoch.rng().shuffle(&mut order);
///         Ok(order)
///     }
/// }
///
/// # fn main() -> Result<()> {
/// let epoch = Epoch { seed: 1, epoch: 3, examples: 10, batch_size: 2 };
/// let mut order = EverySecond.order(&epoch)?;
/// order.sort();
/// assert_eq!(order, [1, 3, 5, 7, 9]);
/// # Ok(())
/// # }
/// ```
pub trait Sampler: fmt::Debug + Send + Sync {
    /// Returns a text that names the sampler and its options.
    fn name(&self) -> String;

    /// Returns the number of examples that the sampler selects in each epoch from a set of
    /// `examples` examples. An example counts each time it is selected.
    fn len(&self, examples: i64) -> i64 {
        examples
    }

    /// Returns the indices of the examples in the order of this epoch. There are [`len`](Self::len)
    /// indices, each from 0 to `epoch.examples - 1`.
    ///
    /// # Errors
    /// When the sampler does not fit a set of this size.
    fn order(&self, epoch: &Epoch) -> Result<Vec<i64>>;
}

/// The values that determine the order of the examples in an epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Epoch {
    /// The run's seed.
    pub seed: u64,
    /// The number of the epoch, counted from 0.
    pub epoch: u64,
    /// The number of examples in the set.
    pub examples: i64,
    /// The number of examples in a batch.
    pub batch_size: i64,
}

impl Epoch {
    /// Returns a random number generator whose seed depends on the run's seed and the epoch.
    pub fn rng(&self) -> Rng {
        // The run's seed is first replaced by a random number that is computed from it. If seed and
        // epoch were added up instead, the pairs (seed, epoch) and (seed + 1, epoch - 1) would give
        // the same random numbers.
        Rng::with_seed(Rng::with_seed(self.seed).bits() ^ self.epoch)
    }
}

impl<S: Sampler + ?Sized> Sampler for Arc<S> {
    fn name(&self) -> String {
        (**self).name()
    }

    fn len(&self, examples: i64) -> i64 {
        (**self).len(examples)
    }

    fn order(&self, epoch: &Epoch) -> Result<Vec<i64>> {
        (**self).order(epoch)
    }
}

/// Selects all examples in the order of the set (SequentialSampler).
#[derive(Debug, Clone, Copy, Default)]
pub struct InOrder;

impl Sampler for InOrder {
    fn name(&self) -> String {
        "in order".into()
    }

    fn order(&self, epoch: &Epoch) -> Result<Vec<i64>> {
        Ok((0..epoch.examples).collect())
    }
}

/// Selects all examples in a uniformly random order (RandomSampler), which is the same order as
/// that of [`Order::Shuffled`].
#[derive(Debug, Clone, Copy, Default)]
pub struct Shuffled;

impl Sampler for Shuffled {
    fn name(&self) -> String {
        "shuffled".into()
    }

    fn order(&self, epoch: &Epoch) -> Result<Vec<i64>> {
        let mut order: Vec<i64> = (0..epoch.examples).collect();
        epoch.rng().shuffle(&mut order);
        Ok(order)
    }
}

/// The order in which a loader reads the examples of a set. `with_order(Weighted::new(…)?)` uses a
/// sampler. `with_order(Order::InOrder)` uses the order of the set.
#[derive(Debug, Clone, Default)]
pub enum Order {
    /// A new random permutation in each epoch. It depends only on the seed and the epoch. A stream
    /// is not shuffled.
    #[default]
    Shuffled,
    /// The order in which the set stores the examples.
    InOrder,
    /// The order that a sampler determines.
    Sampled(Arc<dyn Sampler>),
}

impl<S: Sampler + 'static> From<S> for Order {
    fn from(sampler: S) -> Self {
        Self::Sampled(Arc::new(sampler))
    }
}

impl Order {
    /// Returns the sampler that determines the order; `None` for the set's order.
    pub(super) fn sampler(&self) -> Option<&dyn Sampler> {
        match self {
            Self::Shuffled => Some(&Shuffled),
            Self::InOrder => None,
            Self::Sampled(sampler) => Some(&**sampler),
        }
    }
}

/// Returns the order that `sampler` determines for this epoch, after checking its length and its
/// indices.
pub(super) fn checked_order(sampler: &dyn Sampler, epoch: &Epoch) -> Result<Vec<i64>> {
    let order = sampler.order(epoch)?;
    let most = epoch.examples - 1;
    let (given, said) = (order.len() as i64, sampler.len(epoch.examples));
    if given != said {
        return Err(Error::config(format!(
            "the sampler `{}` returned {given} examples, but its `len` is {said}: make them equal",
            sampler.name()
        )));
    }
    match order.iter().find(|index| !(0..=most).contains(*index)) {
        Some(index) => Err(Error::config(format!(
            "the sampler `{}` returned the index {index}, but the indices of the set are 0 to {most}",
            sampler.name()
        ))),
        None => Ok(order),
    }
}

/// Returns a checksum of a sampler's list, for example of its weights. As part of the sampler's
/// name, it distinguishes samplers of one type with different lists.
fn digest(bytes: impl Iterator<Item = [u8; 8]>) -> String {
    format!("{:08x}", bytes.fold(0, |digest, bytes| crc32c::crc32c_append(digest, &bytes)))
}

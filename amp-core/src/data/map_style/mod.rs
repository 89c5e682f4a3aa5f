//! Data sets that return one example at a time, by its index. Several threads may read such a set
//! at once.

mod collate;
mod shared_tensor;
mod workers;

use std::sync::atomic::{AtomicBool, Ordering};

pub use collate::{Collate, Pad};
pub use shared_tensor::SharedTensor;
pub(super) use workers::{Workers, counted};

use super::{AnyBatch, BatchField, SharedDataset, prefetch::caught};
use crate::{
    Error, Result,
    random::{Draws, Rng},
};

/// A map-style data set (torch.utils.data.Dataset), which returns one example for an index. `get`
/// corresponds to `__getitem__`.
///
/// [`Loading::num_workers`](super::Loading::num_workers) threads read examples in parallel. The
/// random numbers of an example depend only on the run's seed, the epoch and the example's index.
/// The batches are therefore bit-identical for any number of threads and after a resume, and an
/// example does not depend on the batch size.
///
/// An example is a struct that derives [`Batch`](derive@crate::Batch), or a
/// [`Batch`](super::Batch). Its tensors have no batch dimension, because [`collate`](Self::collate)
/// adds this dimension. If a set stores tensors in memory, it stores them as [`SharedTensor`]s,
/// which several threads can read.
///
/// ```no_run,standalone_crate
/// use amp_core::{
///     Result,
///     data::{Batch, DataModule, MapDataset},
///     random::Rng,
///     tch::Tensor,
/// };
///
/// /// Points on a circle, seen with noise; the target is the angle.
/// struct Circle;
///
/// impl MapDataset for Circle {
///     type Example = Batch;
///
///     fn len(&self) -> i64 {
///         1000
///     }
///
///     fn get(&self, index: i64, rng: &mut Rng) -> Result<Batch> {
///         let angle = index as f64 / 1000.0;
///         let seen = [angle.cos() + 0.1 * rng.normal(), angle.sin() + 0.1 * rng.normal()];
///         // [2] and [1]; a batch of 32 is [32, 2] and [32, 1].
///         Ok(Batch { input: Tensor::f_from_slice(&seen)?, target: Tensor::f_from_slice(&[angle])? })
///     }
/// }
///
/// # fn main() -> Result<()> {
/// let mut data = DataModule::new("circle", Circle.shared(), Circle.shared(), 32);
/// data.loading.num_workers = 4;
/// # Ok(())
/// # }
/// ```
pub trait MapDataset: Send + Sync {
    /// One example.
    type Example: BatchField;

    /// Returns the number of examples. It must be the same in every call.
    fn len(&self) -> i64;

    /// Returns whether there are no examples.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the example at `index`, counted from 0. Take random numbers, for example for
    /// augmentation, only from `rng`, because several threads call this method at once and in any
    /// order. If a sampler selects an example twice in an epoch, the example gets the same random
    /// numbers both times.
    ///
    /// # Errors
    /// When the example cannot be read. The training loop then ends the epoch and returns the
    /// error, which names the example's index.
    fn get(&self, index: i64, rng: &mut Rng) -> Result<Self::Example>;

    /// Combines examples into a batch, as PyTorch's `collate_fn` does. Each element of `examples`
    /// is an example's index and the example. The default implementation stacks the tensors of a
    /// field, which must have the same shape in all examples. To pad tensors of different lengths,
    /// use [`Collate`]. Take random numbers for the whole batch, for example for mixup, from `rng`.
    ///
    /// # Errors
    /// When the examples cannot form a batch.
    fn collate(&self, examples: &[(i64, Self::Example)], rng: &mut Rng) -> Result<AnyBatch> {
        let _ = rng;
        Collate::new().batch(examples)
    }

    /// Converts the set to the handle that a [`DataModule`](super::DataModule) takes.
    fn shared(self) -> SharedDataset
    where
        Self: Sized + 'static,
    {
        SharedDataset::of_examples(self)
    }
}

/// A map-style data set with examples of any type.
pub(super) trait AnyMapDataset: Send + Sync {
    /// Returns the batch of the examples at `indices`.
    fn gather(&self, indices: &[i64], draws: Draws, watch: &Watch) -> Result<AnyBatch>;
}

/// Signals between the loader and the threads that read examples.
#[derive(Debug, Default)]
pub(super) struct Watch {
    stopped: AtomicBool,
    drew: AtomicBool,
}

impl Watch {
    /// Asks the threads to stop. They then return an error instead of reading the next example.
    fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
    }

    /// Returns whether the data set used random numbers, for an example or for a whole batch.
    pub(super) fn drew(&self) -> bool {
        self.drew.load(Ordering::Relaxed)
    }
}

impl<D: MapDataset> AnyMapDataset for D {
    fn gather(&self, indices: &[i64], draws: Draws, watch: &Watch) -> Result<AnyBatch> {
        let mut examples = Vec::with_capacity(indices.len());
        for &index in indices {
            if watch.stopped.load(Ordering::Relaxed) {
                return Err(Error::config("the epoch was dropped"));
            }
            let mut rng = draws.rng(index);
            let example = caught(|| self.get(index, &mut rng));
            examples.push((index, example.map_err(|error| error.of_example(index))?));
            if rng != draws.rng(index) {
                watch.drew.store(true, Ordering::Relaxed);
            }
        }
        let mut rng = draws.batch_rng(indices);
        let batch = self.collate(&examples, &mut rng);
        if rng != draws.batch_rng(indices) {
            watch.drew.store(true, Ordering::Relaxed);
        }
        batch
    }
}

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tch::Tensor;

use super::Batch;
use crate::{Error, Result};

/// Examples by number (torch.utils.data.Dataset, but a batch at a time, so that one read from
/// disk or one `index_select` serves the whole batch).
///
/// A [`Batch`] in memory is one. Under prefetching `gather` runs on a thread of the loader's.
///
/// ```no_run,standalone_crate
/// use std::path::PathBuf;
///
/// use amp_core::{
///     Result,
///     data::{Batch, Dataset},
///     tch::{Kind, Tensor, vision::image},
/// };
///
/// /// Images of one size, a file each.
/// struct Images {
///     files: Vec<PathBuf>,
///     classes: Vec<i64>,
/// }
///
/// impl Dataset for Images {
///     fn len(&self) -> i64 {
///         self.classes.len() as i64
///     }
///
///     fn gather(&mut self, indices: &[i64]) -> Result<Batch> {
///         let at = |index: &i64| *index as usize;
///         let read = |index| Ok(image::load(&self.files[at(index)])?.f_to_kind(Kind::Float)?);
///         let images: Result<Vec<Tensor>> = indices.iter().map(read).collect();
///         let classes: Vec<i64> = indices.iter().map(|index| self.classes[at(index)]).collect();
///         Batch::new(Tensor::f_stack(&images?, 0)?, Tensor::f_from_slice(&classes)?)
///     }
/// }
/// # fn main() {}
/// ```
pub trait Dataset: Send {
    /// Number of examples; it must not change.
    fn len(&self) -> i64;

    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The examples at `indices` (from 0, in any order), in that order and in their own dtypes;
    /// the loader converts and moves them.
    ///
    /// # Errors
    /// When an example cannot be read; the error ends the epoch and reaches the training loop.
    fn gather(&mut self, indices: &[i64]) -> Result<Batch>;

    /// All examples, where they are in memory anyway: only then may [`Placement::Auto`] bring
    /// the whole set to the device.
    ///
    /// [`Placement::Auto`]: super::Placement::Auto
    fn in_memory(&self) -> Option<&Batch> {
        None
    }
}

impl Dataset for Batch {
    fn len(&self) -> i64 {
        self.len()
    }

    fn gather(&mut self, indices: &[i64]) -> Result<Batch> {
        self.select(&Tensor::f_from_slice(indices)?.f_to_device(self.input.device())?)
    }

    fn in_memory(&self) -> Option<&Batch> {
        Some(self)
    }
}

/// A handle of a dataset; clones read the same one.
#[derive(Clone)]
pub struct SharedDataset {
    len: i64,
    dataset: Arc<Mutex<dyn Dataset>>,
}

impl<D: Dataset + 'static> From<D> for SharedDataset {
    fn from(dataset: D) -> Self {
        Self { len: dataset.len(), dataset: Arc::new(Mutex::new(dataset)) }
    }
}

impl fmt::Debug for SharedDataset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedDataset").field("len", &self.len).finish_non_exhaustive()
    }
}

impl SharedDataset {
    /// Number of examples.
    pub fn len(&self) -> i64 {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The examples at `indices`, in that order.
    ///
    /// # Errors
    /// When the dataset fails or gives another number of examples.
    pub fn gather(&self, indices: &[i64]) -> Result<Batch> {
        let batch = self.lock().gather(indices)?;
        let (asked, given) = (indices.len() as i64, batch.len());
        if asked != given {
            return Err(Error::config(format!(
                "the dataset gave {given} examples for {asked} indices: `gather` must give one \
                 each"
            )));
        }
        Ok(batch)
    }

    /// The first `count` examples, or all when there are fewer.
    ///
    /// # Errors
    /// When the dataset fails.
    pub fn head(&self, count: i64) -> Result<Batch> {
        let count = count.min(self.len);
        match self.in_memory() {
            Some(all) => all.narrow(0, count),
            None => self.gather(&(0..count).collect::<Vec<_>>()),
        }
    }

    /// All examples, where they are in memory: handles of the same tensors.
    pub(super) fn in_memory(&self) -> Option<Batch> {
        self.lock().in_memory().map(Batch::shallow_clone)
    }

    fn lock(&self) -> MutexGuard<'_, dyn Dataset + 'static> {
        // A dataset that panicked has said so; whether it can go on is for it to know.
        self.dataset.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

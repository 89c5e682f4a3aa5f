use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
};

use tch::Tensor;

use super::{
    AnyBatch, BatchTransform, BatchType, IterableDataset, MapDataset,
    map_style::{AnyMapDataset, Watch, counted},
    stream::{AnyStream, Stream},
    transformed::Transforms,
};
use crate::{Error, Result, random::Draws, state::State};

/// Examples by number. The loader reads a whole batch at a time, so that one disk access or one
/// `index_select` serves the batch. To read one example at a time, as torch.utils.data.Dataset
/// does, implement [`MapDataset`](super::MapDataset).
///
/// A batch in memory is a dataset too: a [`Batch`](super::Batch) or any other [`BatchType`]. With
/// prefetching, `gather` runs on a thread of the loader.
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
///     type Batch = Batch;
///
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
    /// The type of the set's batches.
    type Batch: BatchType;

    /// Returns the number of examples; it must not change.
    fn len(&self) -> i64;

    /// Returns whether there are no examples.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the examples at `indices` (from 0, in any order), in that order and in the set's own
    /// dtypes. The loader converts and moves them.
    ///
    /// # Errors
    /// When an example cannot be read; the error ends the epoch and reaches the training loop.
    fn gather(&mut self, indices: &[i64]) -> Result<Self::Batch>;

    /// Returns the examples at `indices` as [`gather`](Self::gather) does, for a set that draws
    /// random numbers, for example for augmentation. Draw the numbers of each example from a
    /// generator with the seed [`draws.seed(index)`](Draws::seed): they are then the same with any
    /// number of threads and any batch size. The loader calls this method. The default calls
    /// `gather`.
    ///
    /// If `gather` draws from libtorch's CPU generator, its numbers depend on the batch, but not on
    /// the numbers that the model draws. The loader reads such a set in the training loop, even
    /// with `prefetch`.
    ///
    /// # Errors
    /// The errors of [`gather`](Self::gather).
    fn gather_drawing(&mut self, indices: &[i64], draws: Draws) -> Result<Self::Batch> {
        let _ = draws;
        self.gather(indices)
    }

    /// Returns all examples if the set holds them in memory anyway: [`Placement::Auto`] moves only
    /// such a set to the device.
    ///
    /// # Errors
    /// When the examples in memory do not form a batch.
    ///
    /// [`Placement::Auto`]: super::Placement::Auto
    fn in_memory(&self) -> Result<Option<AnyBatch>> {
        Ok(None)
    }
}

/// All examples in memory.
impl<B: BatchType + Send> Dataset for B {
    type Batch = AnyBatch;

    fn len(&self) -> i64 {
        // `in_memory` reports the error of an invalid batch.
        self.to_any().map_or(0, |batch| batch.len())
    }

    fn gather(&mut self, indices: &[i64]) -> Result<AnyBatch> {
        let all = self.to_any()?;
        let index = Tensor::f_from_slice(indices)?;
        match all.device() {
            Some(device) => all.select(&index.f_to_device(device)?),
            None => Ok(all),
        }
    }

    fn in_memory(&self) -> Result<Option<AnyBatch>> {
        self.to_any().map(Some)
    }
}

/// A dataset that returns batches as [`AnyBatch`], whatever their own type is.
trait AnyDataset: Send {
    fn gather(&mut self, indices: &[i64], draws: Draws) -> Result<AnyBatch>;
    fn in_memory(&self) -> Result<Option<AnyBatch>>;
}

impl<D: Dataset> AnyDataset for D {
    fn gather(&mut self, indices: &[i64], draws: Draws) -> Result<AnyBatch> {
        Dataset::gather_drawing(self, indices, draws)?.to_any()
    }

    fn in_memory(&self) -> Result<Option<AnyBatch>> {
        Dataset::in_memory(self)
    }
}

/// A handle of a dataset. Clones are handles of the same dataset.
#[derive(Clone)]
pub struct SharedDataset {
    len: i64,
    /// Whether the set draws from libtorch's generator; unset until that was checked.
    draws: Arc<OnceLock<bool>>,
    reader: Reader,
    /// The transforms of batches on the device.
    transforms: Transforms,
}

/// The source of the examples.
#[derive(Clone)]
enum Reader {
    /// Reads a batch at a time, on one thread at a time.
    Batches(Arc<Mutex<dyn AnyDataset>>),
    /// Reads one example at a time, on any number of threads.
    Examples(Arc<dyn AnyMapDataset>),
    /// Reads in sequence, on one thread at a time.
    Stream(Arc<Mutex<dyn AnyStream>>),
}

impl<D: Dataset + 'static> From<D> for SharedDataset {
    fn from(dataset: D) -> Self {
        Self::of(dataset.len(), Reader::Batches(Arc::new(Mutex::new(dataset))))
    }
}

impl fmt::Debug for SharedDataset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedDataset").field("len", &self.len).finish_non_exhaustive()
    }
}

impl SharedDataset {
    fn of(len: i64, reader: Reader) -> Self {
        Self { len, draws: Arc::default(), reader, transforms: Transforms::default() }
    }

    /// Makes a set that gives one example at a time.
    pub(super) fn of_examples(set: impl MapDataset + 'static) -> Self {
        Self::of(set.len(), Reader::Examples(Arc::new(set)))
    }

    /// Makes a set that is read in sequence.
    pub(super) fn of_stream(set: impl IterableDataset + 'static) -> Result<Self> {
        let (len, stream) = (set.epoch_len(), Stream::new(set)?);
        Ok(Self::of(len, Reader::Stream(Arc::new(Mutex::new(stream)))))
    }

    /// Adds a transform of whole batches, for example [`Images`](super::Images). The loader applies
    /// it after it has moved a batch to the device. Floating-point values are f32 or f64 until the
    /// last transform, and are then cast to the precision's dtype. The batches are the same for any
    /// number of workers, for any [`Placement`](super::Placement), and after a resume.
    #[must_use]
    pub fn transformed(mut self, transform: impl BatchTransform + 'static) -> Self {
        self.transforms = self.transforms.and(transform);
        self
    }

    /// Returns the transforms of the set's batches.
    pub(super) fn transforms(&self) -> Transforms {
        self.transforms.clone()
    }

    fn stream(&self) -> Option<MutexGuard<'_, dyn AnyStream + 'static>> {
        match &self.reader {
            Reader::Stream(set) => Some(lock(set)),
            Reader::Batches(_) | Reader::Examples(_) => None,
        }
    }

    /// Returns whether the set is read in sequence. [`gather`](Self::gather) of such a set takes
    /// only consecutive numbers.
    pub fn is_stream(&self) -> bool {
        matches!(self.reader, Reader::Stream(_))
    }

    /// Returns the stream's state before the example of this number; `None` for other sets.
    pub(super) fn stream_state(&self, number: i64) -> Result<Option<State>> {
        self.stream().map(|stream| stream.state_before(number)).transpose()
    }

    /// Sets the position of a stream, so that the example with this number comes next. Without a
    /// saved state the stream starts from its beginning.
    pub(super) fn set_stream(&self, number: i64, state: Option<State>) -> Result<()> {
        self.stream().map_or(Ok(()), |mut stream| stream.set(number, state))
    }

    /// Returns the set, if it gives one example at a time.
    pub(super) fn examples(&self) -> Option<Arc<dyn AnyMapDataset>> {
        match &self.reader {
            Reader::Examples(set) => Some(set.clone()),
            Reader::Batches(_) | Reader::Stream(_) => None,
        }
    }

    /// Returns the number of examples.
    pub fn len(&self) -> i64 {
        self.len
    }

    /// Returns whether there are no examples.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns the error of examples in memory that do not form a batch. The length of such a set
    /// is 0.
    pub(super) fn check(&self) -> Result<()> {
        match self.len {
            0 => self.in_memory().map(drop),
            _ => Ok(()),
        }
    }

    /// Returns the examples at `indices`, in that order.
    ///
    /// # Errors
    /// When the dataset fails or gives another number of examples.
    pub fn gather(&self, indices: &[i64]) -> Result<AnyBatch> {
        let draws = Draws::new(0, 0);
        self.transforms().apply(self.gather_drawing(indices, draws)?, indices, draws)
    }

    /// Returns the examples at `indices`, in that order, with random numbers of this epoch, before
    /// batch transforms.
    pub(super) fn gather_drawing(&self, indices: &[i64], draws: Draws) -> Result<AnyBatch> {
        let (batch, method) = match &self.reader {
            Reader::Batches(set) => (lock(set).gather(indices, draws)?, "gather"),
            Reader::Examples(set) => (set.gather(indices, draws, &Watch::default())?, "collate"),
            Reader::Stream(set) => (lock(set).gather(indices, draws)?, "collate"),
        };
        counted(batch, indices.len(), method)
    }

    /// Returns whether `self` and `other` read the same data set.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        match (&self.reader, &other.reader) {
            (Reader::Batches(one), Reader::Batches(two)) => Arc::ptr_eq(one, two),
            (Reader::Examples(one), Reader::Examples(two)) => Arc::ptr_eq(one, two),
            (Reader::Stream(one), Reader::Stream(two)) => Arc::ptr_eq(one, two),
            _ => false,
        }
    }

    /// Returns whether the set draws from libtorch's generator; `None` if that was not checked yet.
    pub(super) fn draws(&self) -> Option<bool> {
        self.draws.get().copied()
    }

    /// Records whether the set draws from libtorch's generator.
    pub(super) fn note_draws(&self, draws: bool) {
        let _ = self.draws.set(draws);
    }

    /// Returns the first `count` examples, or all when there are fewer.
    ///
    /// # Errors
    /// When the dataset fails.
    pub fn head(&self, count: i64) -> Result<AnyBatch> {
        let indices: Vec<i64> = (0..count.min(self.len)).collect();
        // These random numbers are independent of the run's, so that this call does not change the
        // run.
        let draws = Draws::new(0, 0);
        self.transforms().apply(self.first(&indices, draws)?, &indices, draws)
    }

    /// Returns the first examples of the set, before batch transforms. `indices` are their numbers.
    fn first(&self, indices: &[i64], draws: Draws) -> Result<AnyBatch> {
        match self.in_memory()? {
            Some(all) => all.narrow(0, indices.len() as i64),
            None => draws.apart(0, || self.gather_drawing(indices, draws))?,
        }
    }

    /// Reads all examples once, to use them in every epoch. Applies no batch transforms.
    ///
    /// # Errors
    /// When the dataset fails, or has other examples in each epoch.
    pub(super) fn whole(&self) -> Result<AnyBatch> {
        let set = match &self.reader {
            Reader::Batches(_) => {
                return self.first(&(0..self.len).collect::<Vec<_>>(), Draws::new(0, 0));
            }
            Reader::Examples(set) => set,
            Reader::Stream(_) => {
                return Err(Error::config(
                    "`placement = device` copies the dataset once, but a stream has no end: choose `auto` \
                     or `host`",
                ));
            }
        };
        let (watch, indices) = (Watch::default(), (0..self.len).collect::<Vec<_>>());
        let all = set.gather(&indices, Draws::new(0, 0), &watch)?;
        let all = counted(all, indices.len(), "collate")?;
        if watch.drew() {
            return Err(Error::config(
                "`placement = device` copies the dataset once, but it draws other random numbers in \
                 each epoch: choose `auto` or `host`",
            ));
        }
        Ok(all)
    }

    /// Returns handles of all examples, before batch transforms, if they are in memory.
    pub(super) fn in_memory(&self) -> Result<Option<AnyBatch>> {
        match &self.reader {
            Reader::Batches(set) => lock(set).in_memory(),
            Reader::Examples(_) | Reader::Stream(_) => Ok(None),
        }
    }
}

fn lock<T: ?Sized>(set: &Mutex<T>) -> MutexGuard<'_, T> {
    // If the data set panicked while it was locked, the panic was reported then. The data set
    // itself decides whether it can continue.
    set.lock().unwrap_or_else(PoisonError::into_inner)
}

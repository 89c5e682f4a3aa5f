use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
};

use tch::Tensor;

use super::{
    AnyBatch, BatchTransform, BatchType, IterableDataset, MapDataset,
    epochs_differ::differs_between_epochs,
    map_style::{AnyMapDataset, Watch, counted},
    padded::check_unpadded,
    stream::{AnyStream, Stream},
    transformed::Transforms,
};
use crate::{Error, Result, random::Draws, state::State};

/// A data set that returns the examples at given indices. The loader requests all examples of a
/// batch at once, so that one disk access or one `index_select` is enough for the batch. To return
/// one example at a time, as torch.utils.data.Dataset does, implement
/// [`MapDataset`](super::MapDataset).
///
/// A batch in memory is a dataset too: [`Batch`](super::Batch), or any other type that implements
/// [`BatchType`]. If batches are prefetched, a thread of the loader calls `gather`.
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
    /// The type of the batches that `gather` returns.
    type Batch: BatchType;

    /// Returns the number of examples. It must be the same in every call.
    fn len(&self) -> i64;

    /// Returns whether there are no examples.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns a batch of the examples at `indices`, in the order of `indices`. An index counts
    /// from 0; the indices may be in any order. Return tensors in the dtypes in which the set
    /// stores the examples: the loader casts the tensors and moves the batch to the device.
    ///
    /// # Errors
    /// When an example cannot be read. The training loop then ends the epoch and returns the error.
    fn gather(&mut self, indices: &[i64]) -> Result<Self::Batch>;

    /// Returns the examples at `indices`, as [`gather`](Self::gather) does. The loader calls only
    /// this method. The default implementation calls `gather`. Implement this method if the set
    /// uses random numbers, for example for augmentation. Seed a generator with
    /// [`draws.seed(index)`](Draws::seed) for each example. The random numbers of an example then
    /// do not depend on the number of threads or the batch size.
    ///
    /// If `gather` instead takes random numbers from libtorch's CPU generator, the loader seeds
    /// this generator before each batch with a seed that depends on the batch's first index, and
    /// restores the generator's state afterwards. The random numbers of the set and of the model
    /// then do not affect each other. Such a set is not prefetched.
    ///
    /// # Errors
    /// When an example cannot be read, as for [`gather`](Self::gather).
    fn gather_drawing(&mut self, indices: &[i64], draws: Draws) -> Result<Self::Batch> {
        let _ = draws;
        self.gather(indices)
    }

    /// Returns all examples if the set already stores them in memory, otherwise `None`.
    /// [`Placement::Auto`] copies only such a set to the device. Return `None` if `gather` pads.
    ///
    /// # Errors
    /// When the examples in memory do not form a batch.
    ///
    /// [`Placement::Auto`]: super::Placement::Auto
    fn in_memory(&self) -> Result<Option<AnyBatch>> {
        Ok(None)
    }
}

/// A batch in memory is a data set of its examples.
impl<B: BatchType + Send> Dataset for B {
    type Batch = AnyBatch;

    fn len(&self) -> i64 {
        // `len` cannot return the error of an invalid batch, but `in_memory` returns it.
        self.to_any().map_or(0, |batch| batch.len())
    }

    fn gather(&mut self, indices: &[i64]) -> Result<AnyBatch> {
        let all = self.to_any()?;
        let index = Tensor::f_from_slice(indices)?;
        match all.device() {
            Some(device) => Ok(all.select(&index.f_to_device(device)?)?.with_common()),
            None => Ok(all),
        }
    }

    fn in_memory(&self) -> Result<Option<AnyBatch>> {
        self.to_any().map(Some)
    }
}

/// A dataset that returns its batches as [`AnyBatch`], so that datasets of all batch types can be
/// handled alike.
trait AnyDataset: Send {
    fn gather(&mut self, indices: &[i64], draws: Draws) -> Result<AnyBatch>;
    fn in_memory(&self) -> Result<Option<AnyBatch>>;
}

impl<D: Dataset> AnyDataset for D {
    fn gather(&mut self, indices: &[i64], draws: Draws) -> Result<AnyBatch> {
        let batch = Dataset::gather_drawing(self, indices, draws)?.to_any()?;
        match batch.is_divisible() || Dataset::in_memory(self)?.is_none() {
            true => Ok(batch),
            false => Ok(batch.with_common()),
        }
    }

    fn in_memory(&self) -> Result<Option<AnyBatch>> {
        Dataset::in_memory(self)
    }
}

/// A handle of a dataset. A clone is another handle of the same dataset.
#[derive(Clone)]
pub struct SharedDataset {
    len: i64,
    /// Whether the set takes random numbers from libtorch's generator. Unset until the first batch
    /// has been read, because it is known only then.
    draws: Arc<OnceLock<bool>>,
    reader: Reader,
    /// The transforms that the loader applies to batches on the device.
    transforms: Transforms,
}

/// How the examples are read.
#[derive(Clone)]
enum Reader {
    /// A set that returns batches. One thread at a time may read it.
    Batches(Arc<Mutex<dyn AnyDataset>>),
    /// A set that returns single examples. Several threads may read it at once.
    Examples(Arc<dyn AnyMapDataset>),
    /// A stream, which is read in sequence. One thread at a time may read it.
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

    /// Makes the handle of a set that returns one example at a time.
    pub(super) fn of_examples(set: impl MapDataset + 'static) -> Self {
        Self::of(set.len(), Reader::Examples(Arc::new(set)))
    }

    /// Makes the handle of a stream.
    pub(super) fn of_stream(set: impl IterableDataset + 'static) -> Result<Self> {
        let (len, stream) = (set.epoch_len(), Stream::new(set)?);
        Ok(Self::of(len, Reader::Stream(Arc::new(Mutex::new(stream)))))
    }

    /// Adds a transform that changes whole batches, for example [`Images`](super::Images). The
    /// loader applies the transform on the device. Floating-point values are f32 or f64 in the
    /// transforms; after the last transform the loader casts them to the precision's dtype. The
    /// batches are the same for any number of workers, for any [`Placement`](super::Placement), and
    /// after a resume.
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

    /// Returns whether the set is a stream, which can only be read in sequence. For a stream,
    /// [`gather`](Self::gather) accepts only consecutive indices.
    pub fn is_stream(&self) -> bool {
        matches!(self.reader, Reader::Stream(_))
    }

    /// Returns whether the set reads each example by itself, so that small batches are as fast per
    /// example as large ones. False for a stream, which copies its state for each batch.
    pub fn reads_single_examples(&self) -> bool {
        matches!(self.reader, Reader::Examples(_))
    }

    /// Returns the stream's state before it reads example `number` (counted from 0). Returns `None`
    /// if the set is not a stream.
    pub(super) fn stream_state(&self, number: i64) -> Result<Option<State>> {
        self.stream().map(|stream| stream.state_before(number)).transpose()
    }

    /// Moves a stream to `state` or, if `state` is `None`, to its beginning. `number` is the number
    /// of the example that the stream then reads first.
    pub(super) fn set_stream(&self, number: i64, state: Option<State>) -> Result<()> {
        self.stream().map_or(Ok(()), |mut stream| stream.set(number, state))
    }

    /// Returns the map-style set behind this handle; `None` for other sets.
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

    /// Returns an error if the examples of a set in memory do not form a batch. [`len`](Self::len)
    /// cannot report this error, and returns 0 for such a set.
    pub(super) fn check(&self) -> Result<()> {
        match self.len {
            0 => self.in_memory().map(drop),
            _ => Ok(()),
        }
    }

    /// Returns a batch of the examples at `indices`, in the order of `indices`.
    ///
    /// # Errors
    /// When an example cannot be read, or the dataset returns more or fewer examples than there are
    /// indices.
    pub fn gather(&self, indices: &[i64]) -> Result<AnyBatch> {
        let draws = Draws::new(0, 0);
        self.transforms().apply(self.gather_drawing(indices, draws)?, indices, draws)
    }

    /// Returns a batch of the examples at `indices`, in the order of `indices`. `draws` determines
    /// the random numbers that the set uses in this epoch. The batch transforms are not applied.
    pub(super) fn gather_drawing(&self, indices: &[i64], draws: Draws) -> Result<AnyBatch> {
        let (batch, method) = match &self.reader {
            Reader::Batches(set) => (lock(set).gather(indices, draws)?, "gather"),
            Reader::Examples(set) => (set.gather(indices, draws, &Watch::default())?, "collate"),
            Reader::Stream(set) => (lock(set).gather(indices, draws)?, "collate"),
        };
        counted(batch, indices.len(), method)
    }

    /// Returns whether `self` and `other` are handles of the same data set.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        match (&self.reader, &other.reader) {
            (Reader::Batches(one), Reader::Batches(two)) => Arc::ptr_eq(one, two),
            (Reader::Examples(one), Reader::Examples(two)) => Arc::ptr_eq(one, two),
            (Reader::Stream(one), Reader::Stream(two)) => Arc::ptr_eq(one, two),
            _ => false,
        }
    }

    /// Returns whether the set takes random numbers from libtorch's generator; `None` if this is
    /// not known yet.
    pub(super) fn draws(&self) -> Option<bool> {
        self.draws.get().copied()
    }

    /// Stores whether the set takes random numbers from libtorch's generator.
    pub(super) fn note_draws(&self, draws: bool) {
        let _ = self.draws.set(draws);
    }

    /// Returns the first `count` examples, or all examples if there are fewer.
    ///
    /// # Errors
    /// When an example cannot be read or transformed.
    pub fn head(&self, count: i64) -> Result<AnyBatch> {
        let indices: Vec<i64> = (0..count.min(self.len)).collect();
        // These seeds do not depend on the run's seed: every call returns the same examples.
        let draws = Draws::new(0, 0);
        self.transforms().apply(self.first(&indices, draws)?, &indices, draws)
    }

    /// Returns a set of the first `count` examples, or of all examples if there are fewer. If the
    /// examples are not in memory, each is read when its batch is requested.
    pub(super) fn first_only(&self, count: i64) -> Result<Self> {
        if self.in_memory()?.is_some() {
            return Ok(self.head(count)?.into());
        }
        Ok(Self { len: count.min(self.len), draws: Arc::default(), ..self.clone() })
    }

    /// Returns the examples at `indices`, which must be 0, 1, 2 and so on. Does not apply the batch
    /// transforms.
    fn first(&self, indices: &[i64], draws: Draws) -> Result<AnyBatch> {
        match self.in_memory()? {
            Some(all) => all.narrow(0, indices.len() as i64),
            None => draws.apart(0, || self.gather_drawing(indices, draws))?,
        }
    }

    /// Reads all examples, so that a copy on the device can be used in every epoch. Does not apply
    /// the batch transforms.
    ///
    /// # Errors
    /// When an example cannot be read, or the dataset is a stream. When the dataset uses random
    /// numbers, and therefore returns different examples in each epoch. When the batch of all
    /// examples is padded, or is not [divisible](AnyBatch::is_divisible).
    pub(super) fn whole(&self) -> Result<AnyBatch> {
        let indices: Vec<i64> = (0..self.len).collect();
        let draws = Draws::new(0, 0);
        let (all, drew) = match &self.reader {
            Reader::Batches(_) => {
                let drew = self.in_memory()?.is_none() && differs_between_epochs(self)?;
                (self.first(&indices, draws)?, drew)
            }
            Reader::Examples(set) => {
                let watch = Watch::default();
                let all = set.gather(&indices, draws, &watch)?;
                (counted(all, indices.len(), "collate")?, watch.drew())
            }
            Reader::Stream(_) => {
                return Err(Error::config(
                    "`placement = device` copies the dataset once, but a stream has no end: choose `auto` \
                     or `host`",
                ));
            }
        };
        if drew {
            return Err(Error::config(
                "`placement = device` copies the dataset once, but this dataset draws new random \
                 numbers in each epoch: choose `auto` or `host`",
            ));
        }
        let copies = "`placement = device` makes each batch from one copy of the dataset";
        all.check_divisible(copies, "choose `auto` or `host`")?;
        check_unpadded(self, &all, draws).map(|()| all)
    }

    /// Returns all examples if the set stores them in memory, otherwise `None`. The result shares
    /// memory with the set, and the batch transforms are not applied.
    pub(super) fn in_memory(&self) -> Result<Option<AnyBatch>> {
        match &self.reader {
            Reader::Batches(set) => Ok(lock(set).in_memory()?.map(AnyBatch::with_common)),
            Reader::Examples(_) | Reader::Stream(_) => Ok(None),
        }
    }
}

fn lock<T: ?Sized>(set: &Mutex<T>) -> MutexGuard<'_, T> {
    // A poisoned lock means that the data set panicked in an earlier call, which already reported
    // the panic. The data set is used again: it decides itself whether it can continue.
    set.lock().unwrap_or_else(PoisonError::into_inner)
}

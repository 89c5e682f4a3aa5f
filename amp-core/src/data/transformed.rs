//! Transforms of whole batches that run on the device of the model.

use std::{fmt, sync::Arc};

use tch::Kind;

use super::{AnyBatch, Transform, map_style::counted};
use crate::{
    Result,
    precision::{Policy, Precision},
    random::{Draws, Rng},
};

/// A transform of a batch that runs after the batch was moved to the device, for example for
/// augmentation. See [`SharedDataset::transformed`](super::SharedDataset::transformed).
///
/// ```
/// use amp_core::{Result, data::{AnyBatch, BatchRandom, BatchTransform}, tch::Tensor};
///
/// /// Adds one random number to each example.
/// struct Shift;
///
/// impl BatchTransform for Shift {
///     fn apply(&self, mut batch: AnyBatch, random: &mut BatchRandom) -> Result<AnyBatch> {
///         let numbers: Vec<f32> = random.examples().iter_mut().map(|rng| rng.normal() as f32).collect();
///         let x = batch.required("input")?;
///         let shift = Tensor::f_from_slice(&numbers)?.f_view([-1, 1])?.f_to_device(x.device())?;
///         let shifted = x.f_add(&shift)?;
///         batch.replace("input", &shifted)?;
///         Ok(batch)
///     }
/// }
/// ```
pub trait BatchTransform: Send + Sync {
    /// Returns the transformed batch. It must have as many examples as `batch`. Take random numbers
    /// only from `random`, a generator on the host, so that the result is the same on every device.
    ///
    /// # Errors
    /// When the transform cannot process the batch.
    fn apply(&self, batch: AnyBatch, random: &mut BatchRandom) -> Result<AnyBatch>;
}

/// The random numbers of a batch and of its examples. An example's numbers depend only on the run's
/// seed, the epoch and the example's index. The batch's numbers depend only on the seed, the epoch
/// and the indices of all its examples. The data set draws its own random numbers from other
/// generators.
#[derive(Debug)]
pub struct BatchRandom {
    examples: Vec<Rng>,
    batch: Rng,
}

impl BatchRandom {
    pub(super) fn new(draws: Draws, indices: &[i64]) -> Self {
        let draws = draws.of_batches();
        let examples = indices.iter().map(|index| draws.rng(*index)).collect();
        Self { examples, batch: draws.batch_rng(indices) }
    }

    /// Returns a generator for each example, in the batch's order. The generators continue where
    /// the previous transform stopped.
    pub fn examples(&mut self) -> &mut [Rng] {
        &mut self.examples
    }

    /// Returns the random number generator of the whole batch.
    pub fn batch(&mut self) -> &mut Rng {
        &mut self.batch
    }
}

/// The transforms of a set's batches, in the order in which they are applied.
#[derive(Clone, Default)]
pub(super) struct Transforms(Vec<Arc<dyn BatchTransform>>);

impl fmt::Debug for Transforms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} transforms", self.0.len())
    }
}

impl Transforms {
    /// Returns a list of these transforms with `transform` at the end.
    pub(super) fn and(&self, transform: impl BatchTransform + 'static) -> Self {
        let mut all = self.0.clone();
        all.push(Arc::new(transform));
        Self(all)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the policy (precision and device) that is used to move batches to the device. If
    /// there are transforms and `policy` would convert batches to 16 bits, the returned policy
    /// leaves them in f32: they are converted after the transforms.
    pub(super) fn placing(&self, policy: Policy) -> Policy {
        let wide = matches!(policy.precision.storage(), Kind::Float | Kind::Double);
        match self.is_empty() || wide {
            true => policy,
            false => Policy::new(Precision::F32True, policy.device),
        }
    }

    /// Applies all transforms, one after the other, to the batch of the examples at `indices`.
    pub(super) fn apply(&self, batch: AnyBatch, indices: &[i64], draws: Draws) -> Result<AnyBatch> {
        if self.is_empty() {
            return Ok(batch);
        }
        let _no_grad = tch::no_grad_guard();
        let mut random = BatchRandom::new(draws, indices);
        let mut changes = self.0.iter();
        let changed = changes.try_fold(batch, |batch, change| change.apply(batch, &mut random))?;
        counted(changed, indices.len(), "BatchTransform::apply")
    }
}

/// Applies a [`Transform`] to the images in one field of a batch: to all images at once, on the
/// batch's device.
///
/// ```no_run
/// use amp_core::{
///     Result,
///     data::{
///         Batch, Compose, CutMix, DataModule, Images, Normalize, RandomCrop, RandomHorizontalFlip, SharedDataset,
///     },
///     tch::{Device, Kind, Tensor},
/// };
///
/// # fn main() -> Result<()> {
/// // On the device uint8 images take a quarter of the memory of f32 images.
/// let images = |count| -> Result<SharedDataset> {
///     let images = Tensor::f_zeros([count, 3, 32, 32], (Kind::Uint8, Device::Cpu))?;
///     Ok(Batch::new(images, Tensor::f_zeros([count], (Kind::Int64, Device::Cpu))?)?.into())
/// };
/// let normalize = Normalize::new(&[0.5; 3], &[0.25; 3])?;
/// let augment = Compose::new()
///     .then(RandomCrop::new(32).padding(4))
///     .then(RandomHorizontalFlip::new(0.5))
///     .then(normalize.clone());
/// let train = images(50_000)?.transformed(Images::new(augment)).transformed(CutMix::new(1.0, 10)?);
/// let val = images(10_000)?.transformed(Images::new(normalize));
/// let data = DataModule::new("cifar", train, val, 512);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Images<T> {
    field: String,
    transform: T,
}

impl<T: Transform> Images<T> {
    /// Transforms the images of the field `input`.
    pub fn new(transform: T) -> Self {
        Self { field: "input".to_owned(), transform }
    }

    /// Transforms the images of the field `name` instead of the field `input`.
    #[must_use]
    pub fn of_field(mut self, name: impl Into<String>) -> Self {
        self.field = name.into();
        self
    }
}

impl<T: Transform> BatchTransform for Images<T> {
    fn apply(&self, mut batch: AnyBatch, random: &mut BatchRandom) -> Result<AnyBatch> {
        let images = batch.required(&self.field)?.shallow_clone();
        let images = self.transform.apply_batch(images, random.examples())?;
        batch.replace(&self.field, &images)?;
        Ok(batch)
    }
}

//! Images: transforms and grids as in torchvision, and reading and writing of image files.

mod color;
#[cfg(feature = "images")]
mod folder;
mod geometry;
mod grid;
mod mix;
mod region;

pub use color::{ColorJitter, Jitter, Normalize};
#[cfg(feature = "images")]
pub use folder::{ImageFolder, decode_image};
pub use geometry::{CenterCrop, RandomCrop, RandomHorizontalFlip, Resize};
pub use grid::ImageGrid;
#[cfg(feature = "images")]
pub use grid::save_image;
pub use mix::{CutMix, MixUp};
pub use region::RandomResizedCrop;
use tch::{Kind, Tensor, kind::Element};

use crate::{Error, Result, random::Rng};

/// A transform of an image (torchvision.transforms.v2.Transform). An image has the shape `[C, H,
/// W]`. Its values are uint8 from 0 to 255, as in files, or floating-point from 0 to 1.
///
/// ```
/// use amp_core::{Result, data::Transform, random::Rng, tch::Tensor};
///
/// /// Makes some images negative.
/// struct RandomInvert(f64);
///
/// impl Transform for RandomInvert {
///     fn apply(&self, image: Tensor, rng: &mut Rng) -> Result<Tensor> {
///         Ok(if rng.chance(self.0) { 255 - image } else { image })
///     }
/// }
/// ```
pub trait Transform: Send + Sync {
    /// Returns the transformed image. Take random numbers only from `rng`, so that the result does
    /// not depend on the number of workers.
    ///
    /// # Errors
    /// When the transform cannot process the image.
    fn apply(&self, image: Tensor, rng: &mut Rng) -> Result<Tensor>;

    /// Transforms the images of a batch of shape `[N, C, H, W]`, on any device. Each image has its
    /// own random number generator in `rngs`. The result must be the same as if
    /// [`apply`](Self::apply) were called for each image. The default implementation calls `apply`
    /// for each image, and so launches about N times as many kernels as an implementation that
    /// transforms the whole batch at once.
    ///
    /// # Errors
    /// When the transform cannot process the images, or there is not one `rng` for each image.
    fn apply_batch(&self, images: Tensor, rngs: &mut [Rng]) -> Result<Tensor> {
        sizes_of_batch(&images, rngs)?;
        let changed = rngs.iter_mut().enumerate();
        let changed = changed.map(|(at, rng)| self.apply(images.f_get(at as i64)?, rng));
        Ok(Tensor::f_stack(&changed.collect::<Result<Vec<_>>>()?, 0)?)
    }
}

/// Applies several transforms, one after the other.
///
/// ```
/// use amp_core::{
///     Result,
///     data::{ColorJitter, Compose, Normalize, RandomHorizontalFlip, RandomResizedCrop, Transform},
///     random::Rng,
///     tch::{Device, Kind, Tensor},
/// };
///
/// # fn main() -> Result<()> {
/// let train = Compose::new()
///     .then(RandomResizedCrop::new(224))
///     .then(RandomHorizontalFlip::new(0.5))
///     .then(ColorJitter::new().brightness(0.4)?.hue(0.1)?)
///     .then(Normalize::imagenet());
/// let image = Tensor::zeros([3, 375, 500], (Kind::Uint8, Device::Cpu));
/// let image = train.apply(image, &mut Rng::with_seed(1))?;
/// assert_eq!((image.size(), image.kind()), (vec![3, 224, 224], Kind::Float));
/// # Ok(())
/// # }
/// ```
#[derive(Default)]
pub struct Compose(Vec<Box<dyn Transform>>);

impl Compose {
    /// Creates an empty sequence of transforms, which returns images unchanged.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a transform at the end of the sequence.
    #[must_use]
    pub fn then(mut self, transform: impl Transform + 'static) -> Self {
        self.0.push(Box::new(transform));
        self
    }
}

impl Transform for Compose {
    fn apply(&self, image: Tensor, rng: &mut Rng) -> Result<Tensor> {
        self.0.iter().try_fold(image, |image, transform| transform.apply(image, rng))
    }

    fn apply_batch(&self, images: Tensor, rngs: &mut [Rng]) -> Result<Tensor> {
        self.0.iter().try_fold(images, |images, transform| transform.apply_batch(images, rngs))
    }
}

/// Returns the number of channels, the height and the width of an image.
fn sizes(image: &Tensor) -> Result<(i64, i64, i64)> {
    match image.size().as_slice() {
        &[c, h, w] if are_images(image) => Ok((c, h, w)),
        size => Err(Error::config(format!(
            "the image is {size:?} of dtype {:?}, but must be [C, H, W], uint8 from 0 to 255 or \
             floating-point from 0 to 1",
            image.kind()
        ))),
    }
}

/// Returns the number of channels, the height and the width of each image in the batch.
fn sizes_of_batch(images: &Tensor, rngs: &[Rng]) -> Result<(i64, i64, i64)> {
    match images.size().as_slice() {
        &[n, c, h, w] if are_images(images) && n as usize == rngs.len() => Ok((c, h, w)),
        size => Err(Error::config(format!(
            "the images are {size:?} of dtype {:?} with {} random number generators, but must be \
             [N, C, H, W] with N generators, uint8 from 0 to 255 or floating-point from 0 to 1",
            images.kind(),
            rngs.len()
        ))),
    }
}

fn are_images(images: &Tensor) -> bool {
    let dtype = matches!(images.kind(), Kind::Uint8 | Kind::Float | Kind::Double);
    dtype && images.size().iter().all(|size| *size > 0)
}

/// Makes a tensor of shape `[N, 1, 1, 1]` with one number for each image, on the device of the
/// images.
fn of_each<T: Element>(numbers: &[T], images: &Tensor) -> Result<Tensor> {
    Ok(Tensor::f_from_slice(numbers)?.f_view([-1, 1, 1, 1])?.f_to_device(images.device())?)
}

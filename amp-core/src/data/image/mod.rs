//! Images: transforms and grids with torchvision's parameters and values, and files.

mod color;
#[cfg(feature = "images")]
mod folder;
mod geometry;
mod grid;
mod mixup;

pub use color::{ColorJitter, Jitter, Normalize};
#[cfg(feature = "images")]
pub use folder::{ImageFolder, decode_image};
pub use geometry::{CenterCrop, RandomHorizontalFlip, RandomResizedCrop, Resize};
pub use grid::ImageGrid;
#[cfg(feature = "images")]
pub use grid::save_image;
pub use mixup::MixUp;
use tch::{Kind, Tensor};

use crate::{Error, Result, random::Rng};

/// A change of an image (torchvision.transforms.v2.Transform). Images are `[C, H, W]`: uint8 from 0 to 255
/// as files have them, or floating from 0 to 1.
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
    /// The changed image. Random numbers are drawn from `rng` and from nothing else.
    ///
    /// # Errors
    /// When the image does not fit the change.
    fn apply(&self, image: Tensor, rng: &mut Rng) -> Result<Tensor>;
}

/// Transforms one after the other.
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
    /// No change.
    pub fn new() -> Self {
        Self::default()
    }

    /// The same transforms, followed by another one.
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
}

/// Channels, height and width.
fn sizes(image: &Tensor) -> Result<(i64, i64, i64)> {
    match (image.size().as_slice(), image.kind()) {
        (&[c, h, w], Kind::Uint8 | Kind::Float | Kind::Double) if c > 0 && h > 0 && w > 0 => {
            Ok((c, h, w))
        }
        (size, kind) => Err(Error::config(format!(
            "an image {size:?} of {kind:?}: images are [C, H, W], uint8 from 0 to 255 or floating from 0 to 1"
        ))),
    }
}

//! Batch transforms that mix images and their classes.

use tch::{Device, Kind, Tensor};

use crate::{
    Error, Result,
    data::{AnyBatch, Batch, BatchRandom, BatchTransform, BatchType},
    random::Rng,
};

/// Mixes each image of a batch with the previous image of the batch, and mixes the classes of the
/// two images in the same proportion (torchvision.transforms.v2.MixUp;
/// <https://arxiv.org/abs/1710.09412>). As a [`BatchTransform`], `MixUp` mixes the fields `input`
/// and `target` on the device. [`apply`](Self::apply) can also be called in
/// [`MapDataset::collate`](super::super::MapDataset::collate), which gets a random number generator
/// for the batch.
///
/// ```
/// use amp_core::{Result, data::{Batch, MixUp}, random::Rng, tch::{Device, Kind, Tensor}};
///
/// # fn main() -> Result<()> {
/// let images = Tensor::zeros([4, 3, 8, 8], (Kind::Float, Device::Cpu));
/// let batch = Batch::new(images, Tensor::from_slice(&[0_i64, 1, 2, 1]))?;
/// let mixed = MixUp::new(0.2, 3)?.apply(&batch, &mut Rng::with_seed(1))?;
/// assert_eq!(mixed.target.size(), [4, 3]);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Copy)]
pub struct MixUp {
    alpha: f64,
    classes: i64,
}

impl MixUp {
    /// Creates the transform. For each batch, the weight of an image in its mixture is drawn from
    /// the distribution Beta(alpha, alpha). The targets have `num_classes` classes.
    ///
    /// # Errors
    /// When `alpha` is not positive, or `num_classes` is below 1.
    pub fn new(alpha: f64, num_classes: i64) -> Result<Self> {
        checked("MixUp", alpha, num_classes)?;
        Ok(Self { alpha, classes: num_classes })
    }

    /// Returns the mixed batch. The shape of `input` does not change. The given `target` contains
    /// int64 classes, of shape `[N]`, or probabilities, of shape `[N, classes]`. The returned
    /// `target` contains f32 probabilities, of shape `[N, classes]`.
    ///
    /// # Errors
    /// When the inputs are not floating-point, or a class is out of range. On CUDA a class out of
    /// range fails as a device-side assert.
    pub fn apply(&self, batch: &Batch, rng: &mut Rng) -> Result<Batch> {
        self.mixed(batch, rng.beta(self.alpha, self.alpha))
    }

    fn mixed(&self, batch: &Batch, share: f64) -> Result<Batch> {
        let Batch { input, target } = batch;
        if !crate::precision::is_floating(input.kind()) {
            return Err(Error::config(format!(
                "MixUp needs floating-point images, but these are {:?}: normalize them first",
                input.kind()
            )));
        }
        let target = probabilities("MixUp", target, self.classes)?;
        Ok(Batch { input: blended(input, share)?, target: blended(&target, share)? })
    }
}

/// Replaces a rectangle of each image by the same rectangle of the previous image of the batch.
/// Mixes the classes of the two images in proportion to the areas that they occupy
/// (torchvision.transforms.v2.CutMix; <https://arxiv.org/abs/1905.04899>). It is used like
/// [`MixUp`], but the images may also be uint8.
#[derive(Debug, Clone, Copy)]
pub struct CutMix {
    alpha: f64,
    classes: i64,
}

impl CutMix {
    /// Creates the transform. For each batch, the fraction of an image's area that is kept is drawn
    /// from the distribution Beta(alpha, alpha). If alpha is 1, all fractions are equally likely.
    /// The targets have `num_classes` classes.
    ///
    /// # Errors
    /// When `alpha` is not positive, or `num_classes` is below 1.
    pub fn new(alpha: f64, num_classes: i64) -> Result<Self> {
        checked("CutMix", alpha, num_classes)?;
        Ok(Self { alpha, classes: num_classes })
    }

    /// Returns the mixed batch. The shape of `input` does not change. The given `target` contains
    /// int64 classes, of shape `[N]`, or probabilities, of shape `[N, classes]`. The returned
    /// `target` contains f32 probabilities, of shape `[N, classes]`.
    ///
    /// # Errors
    /// When the inputs do not have the shape `[N, …, H, W]`, or a class is out of range. On CUDA a
    /// class out of range fails as a device-side assert.
    pub fn apply(&self, batch: &Batch, rng: &mut Rng) -> Result<Batch> {
        let (h, w) = height_and_width(&batch.input)?;
        let share = rng.beta(self.alpha, self.alpha);
        let column = rng.below(w);
        self.cut(batch, share, (rng.below(h), column))
    }

    /// Replaces a rectangle in each image and mixes the classes. `share` is the fraction of the
    /// image that is kept: the rectangle's area is 1 − `share` of the image. The center of the
    /// rectangle is at this row and column. The part of the rectangle outside the image is ignored.
    ///
    /// # Errors
    /// When [`apply`](Self::apply) would fail, or `share` is not from 0 to 1.
    pub fn cut(&self, batch: &Batch, share: f64, (row, column): (i64, i64)) -> Result<Batch> {
        let Batch { input, target } = batch;
        let (h, w) = height_and_width(input)?;
        if !(0.0..=1.0).contains(&share) || !(0..h).contains(&row) || !(0..w).contains(&column) {
            return Err(Error::config(format!(
                "CutMix keeps the fraction {share} of images of {h} x {w} pixels and replaces a \
                 rectangle around row {row} and column {column}: the fraction must be from 0 to 1, \
                 and the row and the column within the image"
            )));
        }
        let half = 0.5 * (1.0 - share).sqrt();
        let range = |middle: i64, length: i64| {
            let by = (half * length as f64) as i64;
            ((middle - by).max(0), (middle + by).min(length))
        };
        let ((top, bottom), (left, right)) = (range(row, h), range(column, w));
        let (height, width) = (bottom - top, right - left);
        let part = |images: &Tensor| -> Result<Tensor> {
            Ok(images.f_narrow(-2, top, height)?.f_narrow(-1, left, width)?)
        };
        let cut = input.f_detach_copy()?;
        part(&cut)?.f_copy_(&part(&input.f_roll([1], [0])?)?)?;
        let share = 1.0 - (height * width) as f64 / (h * w) as f64;
        let target = probabilities("CutMix", target, self.classes)?;
        Ok(Batch { input: cut, target: blended(&target, share)? })
    }
}

impl BatchTransform for MixUp {
    fn apply(&self, batch: AnyBatch, random: &mut BatchRandom) -> Result<AnyBatch> {
        changed(batch, |pair| Self::apply(self, pair, random.batch()))
    }
}

impl BatchTransform for CutMix {
    fn apply(&self, batch: AnyBatch, random: &mut BatchRandom) -> Result<AnyBatch> {
        changed(batch, |pair| Self::apply(self, pair, random.batch()))
    }
}

fn height_and_width(images: &Tensor) -> Result<(i64, i64)> {
    match images.size()[..] {
        [_, .., h, w] => Ok((h, w)),
        _ => Err(Error::config(format!(
            "CutMix: the inputs are {:?}, but must be images [N, C, H, W]",
            images.size()
        ))),
    }
}

fn changed(mut batch: AnyBatch, mix: impl FnOnce(&Batch) -> Result<Batch>) -> Result<AnyBatch> {
    let Batch { input, target } = mix(&Batch::from_any(&batch)?)?;
    batch.replace("input", &input)?;
    batch.replace("target", &target)?;
    Ok(batch)
}

fn checked(what: &str, alpha: f64, classes: i64) -> Result<()> {
    match alpha > 0.0 && alpha.is_finite() && classes > 0 {
        true => Ok(()),
        false => Err(Error::config(format!(
            "{what}: alpha is {alpha} and the number of classes is {classes}, but both must be \
             positive"
        ))),
    }
}

/// Mixes each example with the previous example of the batch: returns `share` times the example
/// plus 1 − `share` times the previous example.
fn blended(tensor: &Tensor, share: f64) -> Result<Tensor> {
    let before = tensor.f_roll([1], [0])?.f_mul_scalar_(1.0 - share)?;
    Ok(before.f_add(&tensor.f_mul_scalar(share)?)?)
}

/// Converts classes, of shape `[N]`, or probabilities to f32 probabilities of shape `[N, classes]`.
fn probabilities(what: &str, target: &Tensor, classes: i64) -> Result<Tensor> {
    let size = target.size();
    let fits = match size.as_slice() {
        [_] => target.kind() == Kind::Int64,
        [_, count] => *count == classes,
        _ => false,
    };
    if !fits {
        return Err(Error::config(format!(
            "{what}: the targets are {size:?} of dtype {:?}, but must be int64 [N], or \
             probabilities [N, {classes}]",
            target.kind()
        )));
    }
    if target.dim() == 2 {
        return Ok(target.f_to_kind(Kind::Float)?);
    }
    // On CUDA, reading the smallest and the largest class would make the host wait for the device.
    // There, libtorch's scatter kernel checks the range.
    if target.device() == Device::Cpu {
        let (least, most) =
            (target.f_min()?.f_int64_value(&[])?, target.f_max()?.f_int64_value(&[])?);
        if least < 0 || most >= classes {
            let (bad, last) = (if least < 0 { least } else { most }, classes - 1);
            return Err(Error::config(format!(
                "{what}: a target is the class {bad}, but the classes are 0 to {last}"
            )));
        }
    }
    let zeros = Tensor::f_zeros([size[0], classes], (Kind::Float, target.device()))?;
    Ok(zeros.f_scatter_value(1, &target.f_unsqueeze(1)?, 1.0)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Checks the formula of the MixUp paper for the weight 0.75: the result must be 0.75 times the
    /// example plus 0.25 times the previous example.
    #[test]
    fn an_example_is_mixed_with_the_one_before() -> Result<()> {
        let input = Tensor::from_slice(&[0.0f32, 4.0, 8.0]).view([3, 1]);
        let batch = Batch::new(input, Tensor::from_slice(&[0_i64, 1, 1]))?;
        let Batch { input, target } = MixUp::new(1.0, 2)?.mixed(&batch, 0.75)?;
        assert_eq!(Vec::<f32>::try_from(input.flatten(0, -1))?, [2.0, 3.0, 7.0]);
        assert_eq!(
            Vec::<f32>::try_from(target.flatten(0, -1))?,
            [0.75, 0.25, 0.25, 0.75, 0.0, 1.0]
        );
        Ok(())
    }
}

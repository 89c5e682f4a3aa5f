use tch::{Kind, Tensor};

use crate::{Error, Result, data::Batch, random::Rng};

/// Mixes each image of a batch with the one before it, and their classes in the same proportion
/// (torchvision.transforms.v2.MixUp; <https://arxiv.org/abs/1710.09412>). Call it from
/// [`MapDataset::collate`](super::super::MapDataset::collate), which has random numbers of the batch.
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
    /// Draws proportions from Beta(alpha, alpha); targets have this many classes.
    ///
    /// # Errors
    /// When `alpha` is not positive, or `num_classes` is below 1.
    pub fn new(alpha: f64, num_classes: i64) -> Result<Self> {
        if !(alpha > 0.0 && alpha.is_finite()) || num_classes < 1 {
            return Err(Error::config(format!(
                "MixUp of alpha {alpha} and {num_classes} classes: both must be positive"
            )));
        }
        Ok(Self { alpha, classes: num_classes })
    }

    /// The mixed batch: `input` as it was, `target` `[N]` of classes, or `[N, classes]` of probabilities,
    /// becomes f32 `[N, classes]`.
    ///
    /// # Errors
    /// When the inputs are not floating, or a class is out of range.
    pub fn apply(&self, batch: &Batch, rng: &mut Rng) -> Result<Batch> {
        self.mixed(batch, rng.beta(self.alpha, self.alpha))
    }

    fn mixed(&self, batch: &Batch, share: f64) -> Result<Batch> {
        let Batch { input, target } = batch;
        if !crate::precision::is_floating(input.kind()) {
            return Err(Error::config(format!(
                "MixUp of {:?} images: normalize them first",
                input.kind()
            )));
        }
        let target = match target.dim() {
            1 => {
                let (least, most) =
                    (target.f_min()?.f_int64_value(&[])?, target.f_max()?.f_int64_value(&[])?);
                if least < 0 || most >= self.classes {
                    let (bad, last) = (if least < 0 { least } else { most }, self.classes - 1);
                    return Err(Error::config(format!(
                        "MixUp of class {bad}: there are 0 to {last}"
                    )));
                }
                target.f_one_hot(self.classes)?.f_to_kind(Kind::Float)?
            }
            _ => target.f_to_kind(Kind::Float)?,
        };
        let mix = |tensor: &Tensor| -> Result<Tensor> {
            let before = tensor.f_roll([1], [0])?.f_mul_scalar_(1.0 - share)?;
            Ok(before.f_add(&tensor.f_mul_scalar(share)?)?)
        };
        Ok(Batch { input: mix(input)?, target: mix(&target)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The paper's formula: 0.75 of each example and 0.25 of the one before it.
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

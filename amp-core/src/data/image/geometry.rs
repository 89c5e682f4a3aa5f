//! Image transforms that move pixels: resizing, cropping and flipping.

use tch::{Device, Kind, Tensor};

use super::{Transform, of_each, sizes, sizes_of_batch};
use crate::{Error, Result, random::Rng};

/// Scales an image by bilinear interpolation with antialiasing (torchvision.transforms.v2.Resize).
#[derive(Debug, Clone, Copy)]
pub struct Resize {
    height: Option<i64>,
    size: i64,
}

impl Resize {
    /// Resizes the shorter side to `size` pixels. The longer side is scaled by the same factor.
    pub fn new(size: i64) -> Self {
        Self { height: None, size }
    }

    /// Resizes to this height and width.
    pub fn to(height: i64, width: i64) -> Self {
        Self { height: Some(height), size: width }
    }

    /// Returns the height and width to which an image of height `h` and width `w` is resized.
    fn asked(self, h: i64, w: i64) -> (i64, i64) {
        let Self { height, size } = self;
        match height {
            Some(height) => (height, size),
            // The size is rounded towards 0, as in torchvision.
            None if w <= h => (size * h / w, size),
            None => (size, size * w / h),
        }
    }
}

impl Transform for Resize {
    fn apply(&self, image: Tensor, _: &mut Rng) -> Result<Tensor> {
        let (_, h, w) = sizes(&image)?;
        let (height, width) = self.asked(h, w);
        resized(&image, height, width)
    }

    fn apply_batch(&self, images: Tensor, rngs: &mut [Rng]) -> Result<Tensor> {
        let (_, h, w) = sizes_of_batch(&images, rngs)?;
        let (height, width) = self.asked(h, w);
        resized_batch(&images, height, width)
    }
}

pub(super) fn resized(image: &Tensor, height: i64, width: i64) -> Result<Tensor> {
    Ok(resized_batch(&image.f_unsqueeze(0)?, height, width)?.f_squeeze_dim(0)?)
}

fn resized_batch(images: &Tensor, height: i64, width: i64) -> Result<Tensor> {
    if height < 1 || width < 1 {
        return Err(Error::config(format!(
            "an image cannot be resized to {height} x {width} pixels: both sizes must be at least 1"
        )));
    }
    if images.size()[2..] == [height, width] {
        return Ok(images.shallow_clone());
    }
    let scaled = |images: &Tensor| {
        images.f_internal_upsample_bilinear2d_aa([height, width], false, None, None)
    };
    match (images.kind(), images.device()) {
        // libtorch's resizing on CUDA does not support uint8.
        (Kind::Uint8, Device::Cuda(_)) => rounded(&scaled(&images.f_to_kind(Kind::Float)?)?),
        _ => Ok(scaled(images)?),
    }
}

/// Rounds floating-point pixels to the nearest whole numbers, and converts them to uint8.
pub(super) fn rounded(pixels: &Tensor) -> Result<Tensor> {
    Ok(pixels.f_round()?.f_clamp(0.0, 255.0)?.f_to_kind(Kind::Uint8)?)
}

pub(super) fn cropped(
    image: &Tensor,
    top: i64,
    left: i64,
    height: i64,
    width: i64,
) -> Result<Tensor> {
    Ok(image.f_narrow(-2, top, height)?.f_narrow(-1, left, width)?)
}

/// Crops an image to the rectangle in its middle. An image that is smaller than the rectangle is
/// padded with zeros (torchvision.transforms.v2.CenterCrop).
#[derive(Debug, Clone, Copy)]
pub struct CenterCrop {
    height: i64,
    width: i64,
}

impl CenterCrop {
    /// Crops to a square of this size.
    pub fn new(size: i64) -> Self {
        Self::to(size, size)
    }

    /// Crops to this height and width.
    pub fn to(height: i64, width: i64) -> Self {
        Self { height, width }
    }
}

impl Transform for CenterCrop {
    fn apply(&self, image: Tensor, _: &mut Rng) -> Result<Tensor> {
        let (_, h, w) = sizes(&image)?;
        self.middle(image, h, w)
    }

    fn apply_batch(&self, images: Tensor, rngs: &mut [Rng]) -> Result<Tensor> {
        let (_, h, w) = sizes_of_batch(&images, rngs)?;
        self.middle(images, h, w)
    }
}

impl CenterCrop {
    /// Crops one image or a batch of images to the rectangle in the middle. `h` and `w` are the
    /// images' height and width.
    fn middle(self, mut image: Tensor, mut h: i64, mut w: i64) -> Result<Tensor> {
        let Self { height, width } = self;
        if h < height || w < width {
            let missing = |own: i64, asked: i64| (asked - own).max(0);
            let (rows, columns) = (missing(h, height), missing(w, width));
            let border = [columns / 2, (columns + 1) / 2, rows / 2, (rows + 1) / 2];
            image = image.f_constant_pad_nd(border)?;
            (h, w) = (h + rows, w + columns);
        }
        let start = |own: i64, asked: i64| ((own - asked) as f64 / 2.0).round_ties_even() as i64;
        cropped(&image, start(h, height), start(w, width), height, width)
    }
}

/// Crops a rectangle of a fixed size at a random position. The image can be padded with zeros
/// before the crop (torchvision.transforms.v2.RandomCrop).
#[derive(Debug, Clone, Copy)]
pub struct RandomCrop {
    height: i64,
    width: i64,
    padding: i64,
}

impl RandomCrop {
    /// Crops to a square of this size, without padding.
    pub fn new(size: i64) -> Self {
        Self::to(size, size)
    }

    /// Crops to this height and width.
    pub fn to(height: i64, width: i64) -> Self {
        Self { height, width, padding: 0 }
    }

    /// Adds this number of rows or columns of zeros on each of the four sides before the crop.
    #[must_use]
    pub fn padding(mut self, padding: i64) -> Self {
        self.padding = padding;
        self
    }

    /// Returns the padded image or batch of images, and the padded height and width.
    fn padded(self, image: &Tensor) -> Result<(Tensor, i64, i64)> {
        let Self { height, width, padding } = self;
        let image = match padding {
            0 => image.shallow_clone(),
            _ => image.f_constant_pad_nd([padding; 4])?,
        };
        let size = image.size();
        let (h, w) = (size[size.len() - 2], size[size.len() - 1]);
        if padding < 0 || height < 1 || width < 1 || h < height || w < width {
            return Err(Error::config(format!(
                "RandomCrop cannot crop images that are {h} x {w} pixels with padding {padding} to \
                 {height} x {width}: the crop must be at least 1 x 1 and fit into the padded image"
            )));
        }
        Ok((image, h, w))
    }

    /// Chooses the first row and column of the crop at random.
    fn place(self, h: i64, w: i64, rng: &mut Rng) -> (i64, i64) {
        (rng.below(h - self.height + 1), rng.below(w - self.width + 1))
    }
}

impl Transform for RandomCrop {
    fn apply(&self, image: Tensor, rng: &mut Rng) -> Result<Tensor> {
        sizes(&image)?;
        let (image, h, w) = self.padded(&image)?;
        let (top, left) = self.place(h, w, rng);
        cropped(&image, top, left, self.height, self.width)
    }

    fn apply_batch(&self, images: Tensor, rngs: &mut [Rng]) -> Result<Tensor> {
        let (channels, ..) = sizes_of_batch(&images, rngs)?;
        let (images, h, w) = self.padded(&images)?;
        let places = rngs.iter_mut().map(|rng| self.place(h, w, rng));
        let (tops, lefts): (Vec<i64>, Vec<i64>) = places.unzip();
        let from = |starts: &[i64], count: i64| -> Result<Tensor> {
            let steps = Tensor::f_arange(count, (Kind::Int64, images.device()))?;
            Ok(of_each(starts, &images)?.f_add(&steps)?)
        };
        let (n, Self { height, width, .. }) = (rngs.len() as i64, *self);
        let rows =
            from(&tops, height)?.f_transpose(2, 3)?.f_expand([n, channels, height, w], false)?;
        let columns = from(&lefts, width)?.f_expand([n, channels, height, width], false)?;
        Ok(images.f_gather(2, &rows, false)?.f_gather(3, &columns, false)?)
    }
}

/// Mirrors each image left to right with some probability
/// (torchvision.transforms.v2.RandomHorizontalFlip).
#[derive(Debug, Clone, Copy)]
pub struct RandomHorizontalFlip {
    probability: f64,
}

impl RandomHorizontalFlip {
    /// Flips an image with this probability, from 0 to 1.
    pub fn new(probability: f64) -> Self {
        Self { probability }
    }
}

impl Transform for RandomHorizontalFlip {
    fn apply(&self, image: Tensor, rng: &mut Rng) -> Result<Tensor> {
        sizes(&image)?;
        match rng.chance(self.probability) {
            true => Ok(image.f_flip([2])?),
            false => Ok(image),
        }
    }

    fn apply_batch(&self, images: Tensor, rngs: &mut [Rng]) -> Result<Tensor> {
        sizes_of_batch(&images, rngs)?;
        let mirrored: Vec<bool> = rngs.iter_mut().map(|rng| rng.chance(self.probability)).collect();
        let mirrored = of_each(&mirrored, &images)?;
        Ok(images.f_flip([3])?.f_where_self(&mirrored, &images)?)
    }
}

/// Returns the largest pixel value in this dtype: 255 for uint8, otherwise 1.
pub(super) fn bound(kind: Kind) -> f64 {
    if kind == Kind::Uint8 { 255.0 } else { 1.0 }
}

//! Image transforms that change colors.

use tch::{Kind, Tensor};

use super::{Transform, geometry::bound, of_each, sizes, sizes_of_batch};
use crate::{Error, Result, precision::f32_or_f64, random::Rng};

/// Changes brightness, contrast, saturation and hue by random factors, in random order
/// (torchvision.transforms.v2.ColorJitter).
#[derive(Debug, Clone, Default)]
pub struct ColorJitter {
    brightness: Option<(f64, f64)>,
    contrast: Option<(f64, f64)>,
    saturation: Option<(f64, f64)>,
    hue: Option<(f64, f64)>,
}

/// The range from which the random factor of a color change is drawn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Jitter {
    /// The range from `center - by` to `center + by`, where `by` is this number and `center` is the
    /// value that does not change the image: 1 for a factor, 0 for the hue. The lower end of a
    /// range of factors is at least 0.
    By(f64),
    /// The range from the first number to the second number.
    Between(f64, f64),
}

impl From<f64> for Jitter {
    fn from(by: f64) -> Self {
        Self::By(by)
    }
}

impl From<(f64, f64)> for Jitter {
    fn from((least, most): (f64, f64)) -> Self {
        Self::Between(least, most)
    }
}

impl Jitter {
    /// Returns the lowest and the highest value of the range, or `None` if the range contains only
    /// `center`, the value that does not change an image. `bounds` are the lowest and the highest
    /// allowed value.
    fn range(self, name: &str, center: f64, bounds: (f64, f64)) -> Result<Option<(f64, f64)>> {
        let (least, most) = match self {
            Self::By(by) => ((center - by).max(if center > 0.0 { 0.0 } else { -by }), center + by),
            Self::Between(least, most) => (least, most),
        };
        if !(bounds.0 <= least && least <= most && most <= bounds.1 && most.is_finite()) {
            return Err(Error::config(format!(
                "the range of {name} is {least} to {most}, but both limits must be from {} to {}, the lower one first",
                bounds.0, bounds.1
            )));
        }
        Ok((least != center || most != center).then_some((least, most)))
    }
}

const FACTORS: (f64, f64) = (0.0, f64::INFINITY);

impl ColorJitter {
    /// Creates a transform that changes nothing until a range is set.
    pub fn new() -> Self {
        Self::default()
    }

    /// Changes the brightness by a random factor. A number `by` stands for factors from
    /// `max(0, 1 - by)` to `1 + by`; a range gives the factors directly.
    ///
    /// # Errors
    /// When the range contains a negative factor.
    pub fn brightness(mut self, by: impl Into<Jitter>) -> Result<Self> {
        self.brightness = by.into().range("brightness", 1.0, FACTORS)?;
        Ok(self)
    }

    /// Changes the contrast by a random factor. A number `by` stands for factors from
    /// `max(0, 1 - by)` to `1 + by`; a range gives the factors directly.
    ///
    /// # Errors
    /// When the range contains a negative factor.
    pub fn contrast(mut self, by: impl Into<Jitter>) -> Result<Self> {
        self.contrast = by.into().range("contrast", 1.0, FACTORS)?;
        Ok(self)
    }

    /// Changes the saturation by a random factor. A number `by` stands for factors from
    /// `max(0, 1 - by)` to `1 + by`; a range gives the factors directly.
    ///
    /// # Errors
    /// When the range contains a negative factor.
    pub fn saturation(mut self, by: impl Into<Jitter>) -> Result<Self> {
        self.saturation = by.into().range("saturation", 1.0, FACTORS)?;
        Ok(self)
    }

    /// Turns the hue by a random angle. A number `by` stands for angles from `-by` to `by`; a range
    /// gives the angles directly. The angle 1 is a full circle.
    ///
    /// # Errors
    /// When the hue may turn by more than half a circle.
    pub fn hue(mut self, by: impl Into<Jitter>) -> Result<Self> {
        self.hue = by.into().range("hue", 0.0, (-0.5, 0.5))?;
        Ok(self)
    }
}

impl Transform for ColorJitter {
    fn apply(&self, image: Tensor, rng: &mut Rng) -> Result<Tensor> {
        sizes(&image)?;
        let images = self.apply_batch(image.f_unsqueeze(0)?, std::slice::from_mut(rng))?;
        Ok(images.f_squeeze_dim(0)?)
    }

    fn apply_batch(&self, images: Tensor, rngs: &mut [Rng]) -> Result<Tensor> {
        let (channels, ..) = sizes_of_batch(&images, rngs)?;
        if channels != 1 && channels != 3 {
            return Err(Error::config(format!(
                "the colors of an image with {channels} channels cannot be changed: the image must \
                 have 1 or 3 channels"
            )));
        }
        let ranges = [self.brightness, self.contrast, self.saturation, self.hue];
        // Draws a random order of the four changes for each image. An entry has the index of the
        // change in `CHANGES` and its random factor, or is `None` if no range was set for the
        // change.
        let drawn = rngs.iter_mut().map(|rng| {
            let mut order = [0, 1, 2, 3];
            rng.shuffle(&mut order);
            order.map(|change: usize| {
                ranges[change].map(|(least, most)| (change, rng.uniform(least, most)))
            })
        });
        let drawn: Vec<[Option<(usize, f64)>; 4]> = drawn.collect();
        let mut images = images;
        for round in 0..drawn.first().map_or(0, |changes| changes.len()) {
            let mut changed = None;
            for (number, change) in CHANGES.iter().enumerate() {
                let own =
                    drawn.iter().enumerate().filter_map(|(at, changes)| match changes[round] {
                        Some((asked, factor)) if asked == number => Some((at as i64, factor)),
                        _ => None,
                    });
                let (places, factors): (Vec<i64>, Vec<f64>) = own.unzip();
                if places.len() == drawn.len() {
                    images = change(&images, &factors)?;
                } else if !places.is_empty() {
                    let places = Tensor::f_from_slice(&places)?.f_to_device(images.device())?;
                    let part = change(&images.f_index_select(0, &places)?, &factors)?;
                    let all: &mut Tensor = match &mut changed {
                        Some(all) => all,
                        none => none.insert(images.f_detach_copy()?),
                    };
                    let _ = all.f_index_copy_(0, &places, &part)?;
                }
            }
            images = changed.unwrap_or(images);
        }
        Ok(images)
    }
}

/// A function that changes images of shape `[N, C, H, W]`, with one factor for each image.
type Change = fn(&Tensor, &[f64]) -> Result<Tensor>;

const CHANGES: [Change; 4] = [brightness, contrast, saturation, hue];

/// Returns the factors of the images as a tensor of shape `[N, 1, 1, 1]`, in the dtype in which the
/// color transforms compute.
fn factors(factors: &[f64], images: &Tensor) -> Result<Tensor> {
    Ok(of_each(factors, images)?.f_to_kind(f32_or_f64(images.kind()))?)
}

/// Returns `ratio` · `one` + (1 − `ratio`) · `other` for each image, with the image's ratio from
/// `ratios`.
fn blended(one: &Tensor, other: &Tensor, ratios: &[f64]) -> Result<Tensor> {
    let rest: Vec<f64> = ratios.iter().map(|ratio| 1.0 - ratio).collect();
    let (ratios, rest) = (factors(ratios, one)?, factors(&rest, one)?);
    let sum = one.f_mul(&ratios)?.f_add(&other.f_mul(&rest)?)?;
    Ok(sum.f_clamp(0.0, bound(one.kind()))?.f_to_kind(one.kind())?)
}

/// Converts images to gray images of shape `[N, 1, H, W]`. The pixels of uint8 images are rounded
/// down to whole numbers.
fn gray(images: &Tensor) -> Result<Tensor> {
    if images.size()[1] == 1 {
        return Ok(images.f_to_kind(f32_or_f64(images.kind()))?);
    }
    let channel =
        |at, weight: f64| -> Result<Tensor> { Ok(images.f_select(1, at)?.f_mul_scalar(weight)?) };
    let sum = channel(0, 0.2989)?.f_add(&channel(1, 0.587)?)?.f_add(&channel(2, 0.114)?)?;
    let sum = sum.f_unsqueeze(1)?;
    Ok(if images.kind() == Kind::Uint8 { sum.f_floor()? } else { sum })
}

fn brightness(images: &Tensor, by: &[f64]) -> Result<Tensor> {
    let scaled = images.f_mul(&factors(by, images)?)?.f_clamp(0.0, bound(images.kind()))?;
    Ok(scaled.f_to_kind(images.kind())?)
}

fn contrast(images: &Tensor, by: &[f64]) -> Result<Tensor> {
    // The sum is computed in f64, where sums of whole numbers are exact. Therefore the result does
    // not depend on the order of addition.
    let mean = gray(images)?.f_mean_dim([1_i64, 2, 3].as_slice(), true, Kind::Double)?;
    blended(images, &mean.f_to_kind(f32_or_f64(images.kind()))?, by)
}

fn saturation(images: &Tensor, by: &[f64]) -> Result<Tensor> {
    match images.size()[1] {
        1 => Ok(images.shallow_clone()),
        _ => blended(images, &gray(images)?, by),
    }
}

/// Turns the hue of each image by a fraction of the circle: converts to HSV and back, by
/// torchvision's formulas.
fn hue(images: &Tensor, turns: &[f64]) -> Result<Tensor> {
    if images.size()[1] == 1 {
        return Ok(images.shallow_clone());
    }
    let whole = images.kind() == Kind::Uint8;
    let scaled = if whole {
        images.f_to_kind(Kind::Float)?.f_mul_scalar(1.0 / 255.0)?
    } else {
        images.shallow_clone()
    };
    let (least, value) = (scaled.f_amin([1], false)?, scaled.f_amax([1], false)?);
    let ones = value.f_ones_like()?;
    let gray = value.f_eq_tensor(&least)?;
    let range = value.f_sub(&least)?;
    let s = range.f_div(&ones.f_where_self(&gray, &value)?)?;
    let divisor = ones.f_where_self(&gray, &range)?.f_unsqueeze(1)?;
    let parts = value.f_unsqueeze(1)?.f_sub(&scaled)?.f_div(&divisor)?;
    let (rc, gc, bc) = (parts.f_select(1, 0)?, parts.f_select(1, 1)?, parts.f_select(1, 2)?);
    let is_red = value.f_eq_tensor(&scaled.f_select(1, 0)?)?;
    let is_green = value.f_eq_tensor(&scaled.f_select(1, 1)?)?;
    let of_green = rc.f_add_scalar(2.0)?.f_sub(&bc)?;
    let of_blue = gc.f_add_scalar(4.0)?.f_sub(&rc)?;
    let of_red = bc.f_sub(&gc)?;
    let h = of_red.f_where_self(&is_red, &of_green.f_where_self(&is_green, &of_blue)?)?;
    let h = h.f_mul_scalar(1.0 / 6.0)?.f_add_scalar(1.0)?.f_fmod(1.0)?;
    let turns = factors(turns, images)?.f_squeeze_dim(1)?;
    let h6 = h.f_add(&turns)?.f_remainder(1.0)?.f_mul_scalar(6.0)?;
    let sector = h6.f_floor()?;
    let f = h6.f_sub(&sector)?;
    let sector = sector.f_to_kind(Kind::Int64)?.f_remainder(6)?;
    let unit = |tensor: Tensor| -> Result<Tensor> { Ok(tensor.f_mul(&value)?.f_clamp(0.0, 1.0)?) };
    let sf = s.f_mul(&f)?;
    let q = unit(ones.f_sub(&sf)?)?;
    let t = unit(sf.f_add(&ones.f_sub(&s)?)?)?;
    let p = unit(ones.f_sub(&s)?)?;
    let all = Tensor::f_stack(&[&value, &p, &q, &t], 1)?;
    // The rows are red, green and blue; the columns are the six sectors of the color circle. An
    // entry is the index in `all` of the channel's new value.
    let table = [[0_i64, 2, 1, 1, 3, 0], [3, 0, 0, 2, 1, 1], [1, 1, 3, 0, 0, 2]];
    let table = Tensor::f_from_slice(&table.concat())?.f_view([3, 6])?;
    let select =
        table.f_to_device(images.device())?.f_index_select(1, &sector.f_flatten(0, -1)?)?;
    let size = sector.size();
    let select = select.f_view([3, size[0], size[1], size[2]])?.f_transpose(0, 1)?;
    let turned = all.f_gather(1, &select, false)?;
    if !whole {
        return Ok(turned);
    }
    // This is torchvision's conversion from floating point to uint8. It divides the range from 0 to
    // 1 into 256 intervals of nearly equal length.
    Ok(turned.f_mul_scalar(255.0 + 1.0 - 1e-3)?.f_to_kind(Kind::Uint8)?)
}

/// Converts an image to f32 values from 0 to 1. Then subtracts each channel's mean and divides by
/// each channel's standard deviation (torchvision's ToDtype with scale, and Normalize). An f64
/// image stays f64.
#[derive(Debug, Clone)]
pub struct Normalize {
    mean: Vec<f64>,
    std: Vec<f64>,
}

impl Normalize {
    /// Creates the transform. `mean` and `std` contain one value per channel.
    ///
    /// # Errors
    /// When the numbers of means and deviations differ, or a deviation is not positive.
    pub fn new(mean: &[f64], std: &[f64]) -> Result<Self> {
        if mean.len() != std.len() || mean.is_empty() || !std.iter().all(|std| *std > 0.0) {
            return Err(Error::config(format!(
                "Normalize: the mean is {mean:?} and the std is {std:?}, but each channel needs a \
                 mean and a positive std"
            )));
        }
        Ok(Self { mean: mean.to_vec(), std: std.to_vec() })
    }

    /// Creates the transform with the mean and standard deviation of ImageNet, which torchvision's
    /// pretrained models expect.
    pub fn imagenet() -> Self {
        Self { mean: vec![0.485, 0.456, 0.406], std: vec![0.229, 0.224, 0.225] }
    }
}

impl Transform for Normalize {
    fn apply(&self, image: Tensor, _: &mut Rng) -> Result<Tensor> {
        let (channels, ..) = sizes(&image)?;
        self.normalized(image, channels)
    }

    fn apply_batch(&self, images: Tensor, rngs: &mut [Rng]) -> Result<Tensor> {
        let (channels, ..) = sizes_of_batch(&images, rngs)?;
        self.normalized(images, channels)
    }
}

impl Normalize {
    /// Normalizes one image or a batch of images.
    fn normalized(&self, image: Tensor, channels: i64) -> Result<Tensor> {
        if channels as usize != self.mean.len() {
            return Err(Error::config(format!(
                "Normalize has means for {} channels, but the image has {channels}",
                self.mean.len()
            )));
        }
        let scaled = match image.kind() {
            Kind::Uint8 => image.f_to_kind(Kind::Float)?.f_mul_scalar_(1.0 / 255.0)?,
            _ => image,
        };
        let of = |values: &[f64]| -> Result<Tensor> {
            let values = Tensor::f_from_slice(values)?.f_to_kind(scaled.kind())?;
            Ok(values.f_view([-1, 1, 1])?.f_to_device(scaled.device())?)
        };
        Ok(scaled.f_sub(&of(&self.mean)?)?.f_div_(&of(&self.std)?)?)
    }
}

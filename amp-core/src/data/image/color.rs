//! Transforms that change colors.

use tch::{Device, Kind, Tensor};

use super::{Transform, geometry::bound, sizes};
use crate::{Error, Result, random::Rng};

/// Changes brightness, contrast, saturation and hue by random factors, in random order
/// (torchvision.transforms.v2.ColorJitter).
#[derive(Debug, Clone, Default)]
pub struct ColorJitter {
    brightness: Option<(f64, f64)>,
    contrast: Option<(f64, f64)>,
    saturation: Option<(f64, f64)>,
    hue: Option<(f64, f64)>,
}

/// The range of a random factor.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Jitter {
    /// A range of this size to both sides of "no change"; a factor is never below 0.
    By(f64),
    /// From the first to the second number.
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
    /// The range, where it changes anything.
    fn range(self, name: &str, center: f64, bounds: (f64, f64)) -> Result<Option<(f64, f64)>> {
        let (least, most) = match self {
            Self::By(by) => ((center - by).max(if center > 0.0 { 0.0 } else { -by }), center + by),
            Self::Between(least, most) => (least, most),
        };
        if !(bounds.0 <= least && least <= most && most <= bounds.1 && most.is_finite()) {
            return Err(Error::config(format!(
                "{name} from {least} to {most}: it must be from {} to {}, the least first",
                bounds.0, bounds.1
            )));
        }
        Ok((least != center || most != center).then_some((least, most)))
    }
}

const FACTORS: (f64, f64) = (0.0, f64::INFINITY);

impl ColorJitter {
    /// No change yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Factors from `max(0, 1 - by)` to `1 + by`, or of a range.
    ///
    /// # Errors
    /// When a factor may be negative.
    pub fn brightness(mut self, by: impl Into<Jitter>) -> Result<Self> {
        self.brightness = by.into().range("brightness", 1.0, FACTORS)?;
        Ok(self)
    }

    /// Factors from `max(0, 1 - by)` to `1 + by`, or of a range.
    ///
    /// # Errors
    /// When a factor may be negative.
    pub fn contrast(mut self, by: impl Into<Jitter>) -> Result<Self> {
        self.contrast = by.into().range("contrast", 1.0, FACTORS)?;
        Ok(self)
    }

    /// Factors from `max(0, 1 - by)` to `1 + by`, or of a range.
    ///
    /// # Errors
    /// When a factor may be negative.
    pub fn saturation(mut self, by: impl Into<Jitter>) -> Result<Self> {
        self.saturation = by.into().range("saturation", 1.0, FACTORS)?;
        Ok(self)
    }

    /// Turns the hue by `-by` to `by` of the whole circle, or within a range.
    ///
    /// # Errors
    /// When it may be turned by more than half of the circle.
    pub fn hue(mut self, by: impl Into<Jitter>) -> Result<Self> {
        self.hue = by.into().range("hue", 0.0, (-0.5, 0.5))?;
        Ok(self)
    }
}

impl Transform for ColorJitter {
    fn apply(&self, mut image: Tensor, rng: &mut Rng) -> Result<Tensor> {
        let (channels, ..) = sizes(&image)?;
        if channels != 1 && channels != 3 {
            return Err(Error::config(format!(
                "colors of an image of {channels} channels: it must have 1 or 3"
            )));
        }
        type Change = fn(&Tensor, f64) -> Result<Tensor>;
        let mut changes: [(Option<(f64, f64)>, Change); 4] = [
            (self.brightness, brightness),
            (self.contrast, contrast),
            (self.saturation, saturation),
            (self.hue, hue),
        ];
        rng.shuffle(&mut changes);
        for (range, change) in changes {
            if let Some((least, most)) = range {
                image = change(&image, rng.uniform(least, most))?;
            }
        }
        Ok(image)
    }
}

/// `ratio` of the one and the rest of the other.
fn blended(one: &Tensor, other: &Tensor, ratio: f64) -> Result<Tensor> {
    let sum = one.f_mul_scalar(ratio)?.f_add(&other.f_mul_scalar(1.0 - ratio)?)?;
    Ok(sum.f_clamp(0.0, bound(one.kind()))?.f_to_kind(one.kind())?)
}

/// `[1, H, W]`, in whole numbers for uint8.
fn gray(image: &Tensor) -> Result<Tensor> {
    if image.size()[0] == 1 {
        return Ok(image.f_to_kind(if image.kind() == Kind::Double {
            Kind::Double
        } else {
            Kind::Float
        })?);
    }
    let channel =
        |at, weight: f64| -> Result<Tensor> { Ok(image.f_select(0, at)?.f_mul_scalar(weight)?) };
    let sum = channel(0, 0.2989)?.f_add(&channel(1, 0.587)?)?.f_add(&channel(2, 0.114)?)?;
    let sum = sum.f_unsqueeze(0)?;
    Ok(if image.kind() == Kind::Uint8 { sum.f_floor()? } else { sum })
}

fn brightness(image: &Tensor, factor: f64) -> Result<Tensor> {
    let scaled = image.f_mul_scalar(factor)?.f_clamp(0.0, bound(image.kind()))?;
    Ok(scaled.f_to_kind(image.kind())?)
}

fn contrast(image: &Tensor, factor: f64) -> Result<Tensor> {
    let gray = gray(image)?;
    blended(image, &gray.f_mean(gray.kind())?, factor)
}

fn saturation(image: &Tensor, factor: f64) -> Result<Tensor> {
    match image.size()[0] {
        1 => Ok(image.shallow_clone()),
        _ => blended(image, &gray(image)?, factor),
    }
}

/// Turns the hue by a part of the circle: to HSV and back, by torchvision's formulas.
fn hue(image: &Tensor, turn: f64) -> Result<Tensor> {
    if image.size()[0] == 1 {
        return Ok(image.shallow_clone());
    }
    let whole = image.kind() == Kind::Uint8;
    let scaled = if whole {
        image.f_to_kind(Kind::Float)?.f_mul_scalar(1.0 / 255.0)?
    } else {
        image.shallow_clone()
    };
    let (least, value) = (scaled.f_amin([0], false)?, scaled.f_amax([0], false)?);
    let ones = value.f_ones_like()?;
    let gray = value.f_eq_tensor(&least)?;
    let range = value.f_sub(&least)?;
    let s = range.f_div(&ones.f_where_self(&gray, &value)?)?;
    let parts = value.f_unsqueeze(0)?.f_sub(&scaled)?.f_div(&ones.f_where_self(&gray, &range)?)?;
    let (rc, gc, bc) = (parts.f_select(0, 0)?, parts.f_select(0, 1)?, parts.f_select(0, 2)?);
    let is_red = value.f_eq_tensor(&scaled.f_select(0, 0)?)?;
    let is_green = value.f_eq_tensor(&scaled.f_select(0, 1)?)?;
    let of_green = rc.f_add_scalar(2.0)?.f_sub(&bc)?;
    let of_blue = gc.f_add_scalar(4.0)?.f_sub(&rc)?;
    let of_red = bc.f_sub(&gc)?;
    let h = of_red.f_where_self(&is_red, &of_green.f_where_self(&is_green, &of_blue)?)?;
    let h = h.f_mul_scalar(1.0 / 6.0)?.f_add_scalar(1.0)?.f_fmod(1.0)?;
    let h6 = h.f_add_scalar(turn)?.f_remainder(1.0)?.f_mul_scalar(6.0)?;
    let sector = h6.f_floor()?;
    let f = h6.f_sub(&sector)?;
    let sector = sector.f_to_kind(Kind::Int64)?.f_remainder(6)?;
    let unit = |tensor: Tensor| -> Result<Tensor> { Ok(tensor.f_mul(&value)?.f_clamp(0.0, 1.0)?) };
    let sf = s.f_mul(&f)?;
    let q = unit(ones.f_sub(&sf)?)?;
    let t = unit(sf.f_add(&ones.f_sub(&s)?)?)?;
    let p = unit(ones.f_sub(&s)?)?;
    let all = Tensor::f_stack(&[&value, &p, &q, &t], 0)?;
    // The values of red, green and blue in each sixth of the circle.
    let table = [[0_i64, 2, 1, 1, 3, 0], [3, 0, 0, 2, 1, 1], [1, 1, 3, 0, 0, 2]];
    let table = Tensor::f_from_slice(&table.concat())?.f_view([3, 6])?;
    let size = sector.size();
    let select =
        table.f_index_select(1, &sector.f_flatten(0, -1)?)?.f_view([3, size[0], size[1]])?;
    let turned = all.f_gather(0, &select, false)?;
    if !whole {
        return Ok(turned);
    }
    // torchvision's rounding of floating values to uint8: nearly 256 equal steps.
    Ok(turned.f_mul_scalar(255.0 + 1.0 - 1e-3)?.f_to_kind(Kind::Uint8)?)
}

/// Makes an image f32, from 0 to 1, subtracts the mean of each channel and divides by its standard deviation
/// (torchvision's ToDtype with scale and Normalize). A double stays one.
#[derive(Debug, Clone)]
pub struct Normalize {
    mean: Vec<f64>,
    std: Vec<f64>,
}

impl Normalize {
    /// By these values of each channel.
    ///
    /// # Errors
    /// When there are not as many of both, or a deviation is not positive.
    pub fn new(mean: &[f64], std: &[f64]) -> Result<Self> {
        if mean.len() != std.len() || mean.is_empty() || !std.iter().all(|std| *std > 0.0) {
            return Err(Error::config(format!(
                "Normalize of mean {mean:?} and std {std:?}: give a mean and a positive std for each channel"
            )));
        }
        Ok(Self { mean: mean.to_vec(), std: std.to_vec() })
    }

    /// By the values of ImageNet, which torchvision's pretrained models expect.
    pub fn imagenet() -> Self {
        Self { mean: vec![0.485, 0.456, 0.406], std: vec![0.229, 0.224, 0.225] }
    }
}

impl Transform for Normalize {
    fn apply(&self, image: Tensor, _: &mut Rng) -> Result<Tensor> {
        let (channels, ..) = sizes(&image)?;
        if channels as usize != self.mean.len() {
            return Err(Error::config(format!(
                "Normalize has values of {} channels, but the image has {channels}",
                self.mean.len()
            )));
        }
        let scaled = match image.kind() {
            Kind::Uint8 => image.f_to_kind(Kind::Float)?.f_mul_scalar_(1.0 / 255.0)?,
            _ => image,
        };
        let of = |values: &[f64]| -> Result<Tensor> {
            let values = Tensor::f_from_slice(values)?.f_to_kind(scaled.kind())?;
            Ok(values.f_view([-1, 1, 1])?.f_to_device(Device::Cpu)?)
        };
        Ok(scaled.f_sub(&of(&self.mean)?)?.f_div_(&of(&self.std)?)?)
    }
}

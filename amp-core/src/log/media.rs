//! Media: images, texts, and distributions of values.

use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use crate::{Error, Result, precision::is_floating};

/// A logged image, text or histogram. Its content is on the host.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", content = "content", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Media {
    /// An image.
    Image(Image),
    /// A text, which TensorBoard shows as Markdown.
    Text(String),
    /// A histogram of values.
    Histogram(Histogram),
}

/// An image of 8 bits per channel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// The height of the image in pixels.
    pub height: u32,
    /// The width of the image in pixels.
    pub width: u32,
    /// The number of channels: 1 for gray, 3 for RGB, 4 for RGBA.
    pub channels: u8,
    /// The pixels row by row, starting at the top left. The channels of a pixel are adjacent.
    pub pixels: Vec<u8>,
}

impl Image {
    /// Converts a tensor of shape `[H, W]` (one channel) or `[C, H, W]` (1, 3 or 4 channels). The
    /// dtype is uint8, or floating-point for values from 0 to 1. Floating-point values are clamped
    /// to this range, multiplied by 255 and rounded down, as SummaryWriter.add_image does. NaN
    /// becomes 0.
    ///
    /// # Errors
    /// When the image does not have one of these shapes and dtypes, or the device reports an
    /// earlier failure.
    pub fn from_tensor(image: &Tensor) -> Result<Self> {
        let size = image.size();
        let (channels, h, w) = match *size.as_slice() {
            [h, w] => (1, h, w),
            [c @ (1 | 3 | 4), h, w] => (c, h, w),
            _ => return Err(refused(&size)),
        };
        let side = |length: i64| match u32::try_from(length) {
            Ok(length) if length > 0 => Ok(length),
            _ => Err(refused(&size)),
        };
        let (height, width) = (side(h)?, side(w)?);
        let image = image.f_detach()?.f_reshape([channels, h, w])?;
        let pixels = match image.kind() {
            Kind::Uint8 => image,
            kind if is_floating(kind) => {
                let scaled = image.f_to_kind(Kind::Float)?.f_mul_scalar(255.0)?;
                let finite = scaled.f_nan_to_num(0.0, None, None)?;
                finite.f_clamp(0.0, 255.0)?.f_to_kind(Kind::Uint8)?
            }
            kind => {
                let why = format!("the image is {kind:?}, but must be uint8 or floating-point");
                return Err(Error::config(why));
            }
        };
        let pixels = pixels.f_permute([1, 2, 0])?.f_contiguous()?.f_view(-1)?.try_into()?;
        Ok(Self { height, width, channels: channels as u8, pixels })
    }
}

fn refused(size: &[i64]) -> Error {
    Error::config(format!(
        "an image has the shape [H, W] or [C, H, W] with 1, 3 or 4 channels, not {size:?}"
    ))
}

/// A histogram of values with TensorFlow's buckets, whose edges are `[−1e20, …, −1.1e−12, −1e−12,
/// 0, 1e−12, 1.1e−12, …, 1e20]`. Only the buckets between the smallest and the largest value are
/// kept.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Histogram {
    /// The smallest of the finite values.
    pub min: f64,
    /// The largest of the finite values.
    pub max: f64,
    /// The number of all finite values.
    pub count: u64,
    /// The sum of all finite values.
    pub sum: f64,
    /// The sum of the squares of the finite values.
    pub sum_squares: f64,
    /// The right edge of each bucket. A bucket does not include its right edge.
    pub limits: Vec<f64>,
    /// The number of values in each bucket. The first bucket is always empty: its right edge is the
    /// left edge of the second bucket.
    pub counts: Vec<u64>,
    /// The number of NaN and infinite values. The other fields do not include these values.
    pub not_finite: u64,
}

impl Histogram {
    /// Counts all elements of `values` on their device. Returns `None` if no element is finite.
    ///
    /// # Errors
    /// When the elements are not real numbers, or the device reports an earlier failure.
    pub fn from_tensor(values: &Tensor) -> Result<Option<Self>> {
        let kind = values.kind();
        if matches!(kind, Kind::ComplexHalf | Kind::ComplexFloat | Kind::ComplexDouble) {
            return Err(Error::config(format!("a histogram needs real numbers, not {kind:?}")));
        }
        let all = values.f_detach()?.f_reshape([-1])?.f_to_kind(Kind::Double)?;
        let values = all.f_masked_select(&all.f_isfinite()?)?;
        let count = values.numel() as u64;
        if count == 0 {
            return Ok(None);
        }
        let limits = limits();
        let edges = Tensor::f_from_slice(&limits)?.f_to_device(values.device())?;
        // The index of each value's bucket: the number of edges that are at most as large as the
        // value. A value that equals the last edge belongs to the last bucket.
        let places = values.f_bucketize(&edges, true, true)?;
        let places = places.f_clamp(0, limits.len() as i64 - 1)?;
        let counts = places.f_bincount(None::<Tensor>, limits.len() as i64)?;
        let figures = [
            values.f_min()?,
            values.f_max()?,
            values.f_sum(Kind::Double)?,
            values.f_square()?.f_sum(Kind::Double)?,
        ];
        let figures = Vec::<f64>::try_from(&Tensor::f_stack(&figures, 0)?)?;
        let counts = Vec::<i64>::try_from(&counts)?;
        // `counts[i]` is the number of values in the bucket whose right edge is `limits[i]`. One
        // empty bucket before the first value is kept, because its right edge is the left edge of
        // the next.
        let first = counts.iter().position(|count| *count > 0).unwrap_or(0).saturating_sub(1);
        let last = counts.iter().rposition(|count| *count > 0).unwrap_or(0);
        Ok(Some(Self {
            min: figures[0],
            max: figures[1],
            count,
            sum: figures[2],
            sum_squares: figures[3],
            limits: limits[first..=last].to_vec(),
            counts: counts[first..=last].iter().map(|count| count.unsigned_abs()).collect(),
            not_finite: all.numel() as u64 - count,
        }))
    }
}

/// Returns the default bin edges of torch.utils.tensorboard.
fn limits() -> Vec<f64> {
    let mut positive = Vec::new();
    let mut limit = 1e-12;
    while limit < 1e20 {
        positive.push(limit);
        limit *= 1.1;
    }
    let negative = positive.iter().rev().map(|limit| -limit);
    negative.chain([0.0]).chain(positive.iter().copied()).collect()
}

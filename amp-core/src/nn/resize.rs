//! Changes the size of images, sequences and volumes.

use tch::Tensor;

use super::{Context, Module, Visit, Visitor, ordered};
use crate::{Error, Result};

/// How the output's values are computed from the neighbouring values of the input.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Interpolation {
    /// The input element at the output element's position, scaled to the input's size and rounded
    /// down, as in torch's `nearest`.
    #[default]
    Nearest,
    /// The input element whose center is nearest to the center of the output element, as in Pillow,
    /// OpenCV and torch's `nearest-exact`.
    NearestExact,
    /// Linear interpolation along each dimension, for sequences, images (bilinear) and volumes
    /// (trilinear).
    Linear,
    /// Cubic interpolation along height and width, for images.
    Bicubic,
    /// The mean of the input elements that each output element covers.
    Area,
}

/// Values of an option for the spatial dimensions (all dimensions after the first two): no value,
/// one value for all of them, or one value for each.
///
/// ```
/// use amp_core::nn::{PerDimension, UpsampleConfig};
///
/// let doubled = UpsampleConfig { scale_factor: 2.into(), ..UpsampleConfig::new() };
/// let wide = UpsampleConfig { size: [240, 320].into(), ..UpsampleConfig::new() };
/// assert_eq!((doubled.size, wide.size), (PerDimension::None, PerDimension::Image([240, 320])));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PerDimension<T> {
    /// Not given.
    #[default]
    None,
    /// The same value for all spatial dimensions.
    All(T),
    /// A value for the dimension L of a sequence `[N, C, L]`.
    Sequence([T; 1]),
    /// Values for the dimensions H and W of an image `[N, C, H, W]`.
    Image([T; 2]),
    /// Values for the dimensions D, H and W of a volume `[N, C, D, H, W]`.
    Volume([T; 3]),
}

impl<T: Copy> PerDimension<T> {
    /// Returns the value of each of `dimensions` dimensions. Returns `None` if no value is set, or
    /// if values are set for another number of dimensions.
    pub(super) fn of(self, dimensions: usize) -> Option<Vec<T>> {
        let values = match self {
            Self::None => return None,
            Self::All(value) => vec![value; dimensions],
            Self::Sequence(values) => values.to_vec(),
            Self::Image(values) => values.to_vec(),
            Self::Volume(values) => values.to_vec(),
        };
        (values.len() == dimensions).then_some(values)
    }

    pub(super) fn is_given(&self) -> bool {
        !matches!(self, Self::None)
    }

    pub(super) fn all(self, fits: impl Fn(T) -> bool) -> bool {
        match self {
            Self::None => true,
            Self::All(value) => fits(value),
            Self::Sequence(values) => values.into_iter().all(fits),
            Self::Image(values) => values.into_iter().all(fits),
            Self::Volume(values) => values.into_iter().all(fits),
        }
    }
}

macro_rules! from_numbers {
    ($($number:ty => $of:ty;)*) => {$(
        impl From<$number> for PerDimension<$of> {
            fn from(value: $number) -> Self {
                Self::All(value.into())
            }
        }

        from_numbers!(@arrays $number => $of, 1 Sequence, 2 Image, 3 Volume);
    )*};
    (@arrays $number:ty => $of:ty, $($count:literal $variant:ident),*) => {$(
        impl From<[$number; $count]> for PerDimension<$of> {
            fn from(values: [$number; $count]) -> Self {
                Self::$variant(values.map(<$of>::from))
            }
        }
    )*};
}

// `From<i32>` accepts integer literals: a literal such as `2` has the type i32 if nothing else
// determines its type.
from_numbers! {
    i64 => i64;
    i32 => i64;
    f64 => f64;
    i32 => f64;
}

/// The options of an [`Upsample`]. The defaults are those of nn.Upsample.
#[derive(Debug, Clone, Copy)]
pub struct UpsampleConfig {
    /// The output's size in each spatial dimension. Set either `size` or `scale_factor`.
    pub size: PerDimension<i64>,
    /// The factor by which the size of each spatial dimension is multiplied. The new size is
    /// rounded down.
    pub scale_factor: PerDimension<f64>,
    /// How the output's values are computed from the neighbouring values of the input.
    pub mode: Interpolation,
    /// Whether the corner elements of the input and of the output are at the same positions.
    pub align_corners: bool,
    /// Whether positions in the input are computed from the sizes of input and output instead of
    /// from `scale_factor`. The two results differ only if the output's size was rounded.
    pub recompute_scale_factor: bool,
}

impl UpsampleConfig {
    /// Returns options with nearest-neighbour interpolation. The caller must set `size` or
    /// `scale_factor`.
    pub fn new() -> Self {
        Self {
            size: PerDimension::None,
            scale_factor: PerDimension::None,
            mode: Interpolation::Nearest,
            align_corners: false,
            recompute_scale_factor: false,
        }
    }
}

impl Default for UpsampleConfig {
    fn default() -> Self {
        Self::new()
    }
}

/// Resizes the spatial dimensions of `[N, C, L]`, `[N, C, H, W]` or `[N, C, D, H, W]`; nn.Upsample.
#[derive(Debug, Clone, Copy)]
pub struct Upsample {
    config: UpsampleConfig,
}

impl Upsample {
    /// Creates a layer that resizes its input to `size` or by `scale_factor`.
    ///
    /// # Errors
    /// When `size` and `scale_factor` are both set or both missing, one of their values is not
    /// positive, or `align_corners` or `recompute_scale_factor` is set but would have no effect.
    pub fn new(config: UpsampleConfig) -> Result<Self> {
        let UpsampleConfig { size, scale_factor, mode, align_corners, recompute_scale_factor } =
            config;
        let refused = |why: &str| Err(Error::config(format!("upsample: {why}")));
        if size.is_given() == scale_factor.is_given() {
            return refused(
                "set exactly one of size and scale_factor, for example scale_factor = 2",
            );
        }
        if !scale_factor.all(|factor| factor > 0.0 && factor.is_finite()) {
            return refused(&format!("scale_factor is {scale_factor:?}, but must be above 0"));
        }
        if !size.all(|size| size > 0) {
            return refused(&format!("size is {size:?}, but must be at least 1"));
        }
        let has_corners = matches!(mode, Interpolation::Linear | Interpolation::Bicubic);
        if align_corners && !has_corners {
            return refused(&format!("align_corners has no effect for {mode:?}: leave it out"));
        }
        if recompute_scale_factor && size.is_given() {
            return refused(
                "recompute_scale_factor has no effect without scale_factor: leave it out",
            );
        }
        Ok(Self { config })
    }

    /// Returns the output's size, and the factor of each dimension that maps positions in the
    /// output to positions in the input. A factor is `None` if the sizes of input and output
    /// determine this mapping. The result is `None` if the options are for another number of
    /// dimensions than `spatial` has.
    fn output(&self, spatial: &[i64]) -> Option<(Vec<i64>, Vec<Option<f64>>)> {
        let UpsampleConfig { size, scale_factor, recompute_scale_factor, .. } = self.config;
        if size.is_given() {
            return Some((size.of(spatial.len())?, vec![None; spatial.len()]));
        }
        let factors = scale_factor.of(spatial.len())?;
        let scaled = |(size, factor): (&i64, &f64)| (*size as f64 * factor).floor() as i64;
        let out = spatial.iter().zip(&factors).map(scaled).collect();
        let places = |factor| Some(factor).filter(|_| !recompute_scale_factor);
        Some((out, factors.into_iter().map(places).collect()))
    }
}

impl Visit for Upsample {
    fn visit(&self, _: &mut dyn Visitor) {}
}

impl Module for Upsample {
    fn forward(&self, input: &Tensor, _: &Context) -> Result<Tensor> {
        let UpsampleConfig { mode, align_corners: align, .. } = self.config;
        let size = input.size();
        let spatial = size.get(2..).unwrap_or_default();
        let refused = || {
            let UpsampleConfig { size: to, scale_factor, .. } = self.config;
            let by = if to.is_given() { format!("{to:?}") } else { format!("{scale_factor:?}") };
            Error::config(format!(
                "upsample: {mode:?} with size or scale_factor {by} does not support an input of \
                 shape {size:?}: give size or scale_factor one value, or one for each dimension \
                 after [N, C]; Bicubic needs [N, C, H, W]"
            ))
        };
        let (out, by) = self.output(spatial).ok_or_else(refused)?;
        if mode == Interpolation::Linear && (1..4).contains(&by.len()) && ordered::applies(input)? {
            return ordered::linear(input, &out, &by, align);
        }
        Ok(match (mode, &by[..]) {
            (Interpolation::Nearest, &[l]) => input.f_upsample_nearest1d(out, l)?,
            (Interpolation::Nearest, &[h, w]) => input.f_upsample_nearest2d(out, h, w)?,
            (Interpolation::Nearest, &[d, h, w]) => input.f_upsample_nearest3d(out, d, h, w)?,
            (Interpolation::NearestExact, &[l]) => {
                input.f_internal_upsample_nearest_exact1d(out, l)?
            }
            (Interpolation::NearestExact, &[h, w]) => {
                input.f_internal_upsample_nearest_exact2d(out, h, w)?
            }
            (Interpolation::NearestExact, &[d, h, w]) => {
                input.f_internal_upsample_nearest_exact3d(out, d, h, w)?
            }
            (Interpolation::Linear, &[l]) => input.f_upsample_linear1d(out, align, l)?,
            (Interpolation::Linear, &[h, w]) => input.f_upsample_bilinear2d(out, align, h, w)?,
            (Interpolation::Linear, &[d, h, w]) => {
                input.f_upsample_trilinear3d(out, align, d, h, w)?
            }
            (Interpolation::Bicubic, &[h, w]) => input.f_upsample_bicubic2d(out, align, h, w)?,
            (Interpolation::Area, [_]) => input.f_adaptive_avg_pool1d(out)?,
            (Interpolation::Area, [_, _]) => input.f_adaptive_avg_pool2d(out)?,
            (Interpolation::Area, [_, _, _]) => input.f_adaptive_avg_pool3d(out)?,
            _ => return Err(refused()),
        })
    }
}

macro_rules! shuffles {
    ($($(#[$doc:meta])* $name:ident => $function:ident;)*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Copy)]
        pub struct $name {
            factor: i64,
        }

        impl $name {
            /// Creates a layer with r = `factor`, the factor between the smaller and the larger
            /// height and width.
            ///
            /// # Errors
            /// When the factor is not positive.
            pub fn new(factor: i64) -> Result<Self> {
                match factor {
                    1.. => Ok(Self { factor }),
                    _ => Err(Error::config(format!(
                        "pixel shuffle: the factor is {factor}, but must be at least 1"
                    ))),
                }
            }
        }

        impl Visit for $name {
            fn visit(&self, _: &mut dyn Visitor) {}
        }

        impl Module for $name {
            fn forward(&self, input: &Tensor, _: &Context) -> Result<Tensor> {
                Ok(input.$function(self.factor)?)
            }
        }
    )*};
}

shuffles! {
    /// Rearranges `[N, C·r², H, W]` to `[N, C, H·r, W·r]`; nn.PixelShuffle.
    PixelShuffle => f_pixel_shuffle;
    /// Rearranges `[N, C, H·r, W·r]` to `[N, C·r², H, W]`; nn.PixelUnshuffle.
    PixelUnshuffle => f_pixel_unshuffle;
}

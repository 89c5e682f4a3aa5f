//! Layers that resize images, sequences and volumes.

use tch::Tensor;

use super::{Context, Module, Visit, Visitor};
use crate::{Error, Result};

/// The interpolation between the input's values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Interpolation {
    /// The nearest value.
    #[default]
    Nearest,
    /// Linear interpolation along each dimension, for sequences, images (bilinear) and volumes
    /// (trilinear).
    Linear,
    /// Cubic interpolation along both dimensions, for images.
    Bicubic,
}

/// The options of an [`Upsample`]. The defaults are those of nn.Upsample.
#[derive(Debug, Clone, Copy)]
pub struct UpsampleConfig {
    /// The factor of every dimension except the first two.
    pub scale_factor: f64,
    /// The interpolation between the input's values.
    pub mode: Interpolation,
    /// Whether the corners of input and output coincide.
    pub align_corners: bool,
}

impl UpsampleConfig {
    /// Sets interpolation by the nearest value.
    pub fn new(scale_factor: impl Into<f64>) -> Self {
        Self {
            scale_factor: scale_factor.into(),
            mode: Interpolation::Nearest,
            align_corners: false,
        }
    }
}

/// Resizes `[N, C, L]`, `[N, C, H, W]` or `[N, C, D, H, W]` by a factor; nn.Upsample.
#[derive(Debug, Clone, Copy)]
pub struct Upsample {
    config: UpsampleConfig,
}

impl Upsample {
    /// Resizes by this factor.
    ///
    /// # Errors
    /// When the factor is not positive, or `align_corners` is set for the nearest values.
    pub fn new(config: UpsampleConfig) -> Result<Self> {
        let UpsampleConfig { scale_factor, mode, align_corners } = config;
        if !(scale_factor > 0.0 && scale_factor.is_finite()) {
            return Err(Error::config(format!(
                "upsample: scale_factor is {scale_factor}, but must be above 0"
            )));
        }
        if align_corners && mode == Interpolation::Nearest {
            return Err(Error::config(
                "upsample: align_corners has no effect for the nearest values: leave it out",
            ));
        }
        Ok(Self { config })
    }
}

impl Visit for Upsample {
    fn visit(&self, _: &mut dyn Visitor) {}
}

impl Module for Upsample {
    fn forward(&self, input: &Tensor, _: &Context) -> Result<Tensor> {
        let UpsampleConfig { scale_factor, mode, align_corners: align } = self.config;
        let size = input.size();
        let spatial = size.get(2..).unwrap_or_default();
        let out: Vec<i64> =
            spatial.iter().map(|size| (*size as f64 * scale_factor).floor() as i64).collect();
        let factor = vec![scale_factor; spatial.len()];
        let one = factor.first().copied();
        Ok(match (mode, spatial.len()) {
            (Interpolation::Nearest, 1) => input.f_upsample_nearest1d(out, one)?,
            (Interpolation::Nearest, 2) => input.f_upsample_nearest2d(out, one, one)?,
            (Interpolation::Nearest, 3) => input.f_upsample_nearest3d(out, one, one, one)?,
            (Interpolation::Linear, 1) => input.f_upsample_linear1d(out, align, one)?,
            (Interpolation::Linear, 2) => input.f_upsample_bilinear2d(out, align, one, one)?,
            (Interpolation::Linear, 3) => {
                input.f_upsample_trilinear3d(out, align, one, one, one)?
            }
            (Interpolation::Bicubic, 2) => input.f_upsample_bicubic2d(out, align, one, one)?,
            _ => {
                return Err(Error::config(format!(
                    "upsample: {mode:?} does not take an input of shape {size:?}"
                )));
            }
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
            /// Resizes by this factor.
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

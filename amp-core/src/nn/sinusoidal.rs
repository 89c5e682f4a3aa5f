use tch::{Kind, Tensor};

use super::{Context, Module, Visit, Visitor};
use crate::{Error, Result, precision::is_floating};

/// Embeds each number x of the input, for example a diffusion step or a text position, as a vector
/// of sines and cosines: an input `[…]` gives an output `[…, dim]`. The first half of the vector is
/// sin(x · max_period^(−2k/dim)) for k from 0 to dim/2 − 1. The second half contains the cosines of
/// the same angles.
///
/// The values equal those of diffusers' `Timesteps(dim, flip_sin_to_cos=False,
/// downscale_freq_shift=0)`. Vaswani et al. (arXiv:1706.03762, section 3.5) use the same values in
/// another order: sines and cosines alternate. The values are computed in f64. If the input is
/// floating-point, the result has the input's dtype; for integers, the result has the dtype in
/// which the run's precision stores parameters.
///
/// ```no_run,standalone_crate
/// use amp_core::{nn::SinusoidalEmbedding, prelude::*};
///
/// /// A vector for each step of a diffusion.
/// #[derive(Module)]
/// struct StepEmbedding {
///     #[layer(SinusoidalEmbedding::new(64)?)]
///     waves: SinusoidalEmbedding,
///     #[layer(sequential(linear(64, 256), silu, linear(256, 256)))]
///     mlp: Sequential,
/// }
/// # fn main() {}
/// ```
#[derive(Debug, Clone, Copy)]
pub struct SinusoidalEmbedding {
    dim: i64,
    max_period: f64,
}

impl SinusoidalEmbedding {
    /// Creates an embedding with vectors of `dim` elements and a `max_period` of 10000.
    ///
    /// # Errors
    /// When `dim` is odd or below 2.
    pub fn new(dim: i64) -> Result<Self> {
        if dim < 2 || dim % 2 != 0 {
            return Err(Error::config(format!(
                "sinusoidal embedding: dim is {dim}, but must be even and at least 2"
            )));
        }
        Ok(Self { dim, max_period: 10_000.0 })
    }

    /// Sets `max_period`, the base of the frequencies max_period^(−2k/dim).
    ///
    /// # Errors
    /// When `max_period` is not positive and finite.
    pub fn max_period(mut self, max_period: f64) -> Result<Self> {
        if !(max_period > 0.0 && max_period.is_finite()) {
            return Err(Error::config(format!(
                "sinusoidal embedding: max_period is {max_period}, but must be positive and finite"
            )));
        }
        self.max_period = max_period;
        Ok(self)
    }
}

impl Visit for SinusoidalEmbedding {
    fn visit(&self, _: &mut dyn Visitor) {}
}

impl Module for SinusoidalEmbedding {
    fn forward(&self, input: &Tensor, cx: &Context) -> Result<Tensor> {
        let kind = match is_floating(input.kind()) {
            true => input.kind(),
            false => cx.policy().precision.storage(),
        };
        let places = Tensor::f_arange(self.dim / 2, (Kind::Double, input.device()))?;
        let rate = -2.0 * self.max_period.ln() / self.dim as f64;
        let angles = input
            .f_to_kind(Kind::Double)?
            .f_unsqueeze(-1)?
            .f_mul(&places.f_mul_scalar(rate)?.f_exp()?)?;
        Ok(Tensor::f_cat(&[angles.f_sin()?, angles.f_cos()?], -1)?.f_to_kind(kind)?)
    }
}

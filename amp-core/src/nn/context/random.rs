//! Random numbers that do not depend on the precision.

use tch::{Kind, Tensor};

use super::Context;
use crate::{
    Error, Result,
    precision::{dtype_name, is_floating},
};

impl Context {
    /// Draws numbers from the uniform distribution on [0, 1), in f32 under every precision, on the
    /// device of the forward pass.
    ///
    /// With the same seed, libtorch draws different numbers in different dtypes. Runs under several
    /// precisions can be compared only if they draw the same numbers. Therefore use this function,
    /// `randn`, `rand_like` or `randn_like`.
    ///
    /// # Errors
    /// When a size is negative, or there is not enough memory.
    ///
    /// # Examples
    ///
    /// ```
    /// use amp_core::prelude::*;
    ///
    /// /// Hides three quarters of the values in training.
    /// #[derive(Module)]
    /// #[forward(|x| match cx.is_training() {
    ///     true => model(&x.f_mul(&cx.rand(&x.size())?.f_ge(0.75)?)?),
    ///     false => model(x),
    /// })]
    /// struct Hide {
    ///     #[layer(linear(64, 64))]
    ///     model: Linear,
    /// }
    /// # fn main() {}
    /// ```
    pub fn rand(&self, shape: &[i64]) -> Result<Tensor> {
        Ok(Tensor::f_rand(shape, (Kind::Float, self.policy.device))?)
    }

    /// Draws numbers from the standard normal distribution, in f32 under every precision, on the
    /// device of the forward pass. See [`rand`](Self::rand).
    ///
    /// # Errors
    /// When a size is negative, or there is not enough memory.
    pub fn randn(&self, shape: &[i64]) -> Result<Tensor> {
        Ok(Tensor::f_randn(shape, (Kind::Float, self.policy.device))?)
    }

    /// Draws numbers from the uniform distribution on [0, 1), with the shape, dtype and device of
    /// `like`. The numbers are drawn in f32 and then rounded to this dtype. A number that would be
    /// rounded to 1 becomes the largest 16-bit number below 1. See [`rand`](Self::rand).
    ///
    /// # Errors
    /// When `like` is not floating-point, or there is not enough memory.
    pub fn rand_like(&self, like: &Tensor) -> Result<Tensor> {
        must_be_floating(like)?;
        let drawn = Tensor::f_rand(like.size(), (Kind::Float, like.device()))?;
        let below_one = match like.kind() {
            Kind::Half => 1.0 - f64::powi(2.0, -11),
            Kind::BFloat16 => 1.0 - f64::powi(2.0, -8),
            kind => return Ok(drawn.f_to_kind(kind)?),
        };
        Ok(drawn.f_clamp_max(below_one)?.f_to_kind(like.kind())?)
    }

    /// Draws numbers from the standard normal distribution, with the shape, dtype and device of
    /// `like`. The numbers are drawn in f32 and then rounded. See [`rand`](Self::rand).
    ///
    /// # Errors
    /// When `like` is not floating-point, or there is not enough memory.
    ///
    /// # Examples
    ///
    /// ```
    /// use amp_core::prelude::*;
    ///
    /// /// A sample of a normal distribution. Two layers compute the mean and the logarithm of the
    /// /// variance.
    /// #[derive(Module)]
    /// #[forward(|x| {
    ///     let (mean, deviation) = (mean(x)?, log_var(x)?.f_mul_scalar(0.5)?.f_exp()?);
    ///     Ok(mean.f_add(&deviation.f_mul(&cx.randn_like(&mean)?)?)?)
    /// })]
    /// struct Sample {
    ///     #[layer(linear(64, 8))]
    ///     mean: Linear,
    ///     #[layer(linear(64, 8))]
    ///     log_var: Linear,
    /// }
    /// # fn main() {}
    /// ```
    pub fn randn_like(&self, like: &Tensor) -> Result<Tensor> {
        must_be_floating(like)?;
        let drawn = Tensor::f_randn(like.size(), (Kind::Float, like.device()))?;
        Ok(drawn.f_to_kind(like.kind())?)
    }
}

/// Returns an error for an integer tensor. Functions call it before they draw, because each draw
/// advances the generator.
fn must_be_floating(like: &Tensor) -> Result<()> {
    if is_floating(like.kind()) {
        return Ok(());
    }
    Err(Error::config(format!(
        "random numbers of dtype {} cannot be drawn: `like` must be a floating-point tensor",
        dtype_name(like.kind())
    )))
}

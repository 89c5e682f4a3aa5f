//! Pooling that computes the p-norm of each window.

use tch::Tensor;

use super::{Context, Module, Sizes, Visit, Visitor};
use crate::{Error, Result};

/// The options of an [`LpPool`] over `N` dimensions. The defaults are those of nn.LPPool2d.
#[derive(Debug, Clone, Copy)]
pub struct LpPoolConfig<const N: usize> {
    /// The exponent p of the norm.
    pub norm_type: f64,
    /// The window's size.
    pub kernel_size: Sizes<N>,
    /// The distance between the starts of neighbouring windows, in elements of the input.
    pub stride: Sizes<N>,
    /// Whether the last window may extend beyond the end of the input.
    pub ceil_mode: bool,
}

/// The options of an [`LpPool1d`].
pub type LpPool1dConfig = LpPoolConfig<1>;
/// The options of an [`LpPool2d`].
pub type LpPool2dConfig = LpPoolConfig<2>;
/// The options of an [`LpPool3d`].
pub type LpPool3dConfig = LpPoolConfig<3>;

impl<const N: usize> LpPoolConfig<N> {
    /// Returns options for adjacent windows (a stride of `kernel_size`).
    pub fn new(norm_type: impl Into<f64>, kernel_size: impl Into<Sizes<N>>) -> Self {
        let kernel_size = kernel_size.into();
        Self { norm_type: norm_type.into(), kernel_size, stride: kernel_size, ceil_mode: false }
    }
}

/// Computes (Σ xᵖ)^(1/p) over the values x of each window, where p is `norm_type`; nn.LPPool1d,
/// nn.LPPool2d and nn.LPPool3d.
#[derive(Debug, Clone, Copy)]
pub struct LpPool<const N: usize> {
    config: LpPoolConfig<N>,
}

/// Computes the p-norm of each window of `[N, C, L]`; nn.LPPool1d.
pub type LpPool1d = LpPool<1>;
/// Computes the p-norm of each window of `[N, C, H, W]`; nn.LPPool2d.
pub type LpPool2d = LpPool<2>;
/// Computes the p-norm of each window of `[N, C, D, H, W]`; nn.LPPool3d.
pub type LpPool3d = LpPool<3>;

impl<const N: usize> LpPool<N> {
    /// Creates a pool with these options.
    ///
    /// # Errors
    /// When `norm_type` is not above 0.
    pub fn new(config: LpPoolConfig<N>) -> Result<Self> {
        match config.norm_type > 0.0 && config.norm_type.is_finite() {
            true => Ok(Self { config }),
            false => Err(Error::config(format!(
                "lp_pool{N}d: norm_type is {}, but must be a number above 0",
                config.norm_type
            ))),
        }
    }
}

impl<const N: usize> Visit for LpPool<N> {
    fn visit(&self, _: &mut dyn Visitor) {}
}

impl<const N: usize> Module for LpPool<N> {
    fn forward(&self, input: &Tensor, cx: &Context) -> Result<Tensor> {
        let LpPoolConfig { norm_type, kernel_size: size, stride: Sizes(stride), ceil_mode } =
            self.config;
        let powers = cx.within("powers", &input.f_pow_tensor_scalar(norm_type)?)?;
        let means = match N {
            1 => powers.f_avg_pool1d(size.0, stride, [0], ceil_mode, true)?,
            2 => powers.f_avg_pool2d(size.0, stride, [0, 0], ceil_mode, true, None)?,
            _ => powers.f_avg_pool3d(size.0, stride, [0, 0, 0], ceil_mode, true, None)?,
        };
        let means = cx.within("means", &means)?;
        // The sums are computed as in torch: if a sum is 0, multiplying sign(x) by relu(|x|) makes
        // its gradient 0. Otherwise the gradient of the root would be infinite.
        let sums =
            means.f_sign()?.f_mul(&means.f_abs()?.f_relu()?)?.f_mul_scalar(size.product())?;
        Ok(cx.within("sums", &sums)?.f_pow_tensor_scalar(1.0 / norm_type)?)
    }
}

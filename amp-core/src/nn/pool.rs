//! Pooling over windows of a given size, or over a given number of windows.

use tch::Tensor;

use super::{Context, Module, Sizes, Visit, Visitor, ordered};
use crate::{Error, Result, ffi};

/// The options of a [`MaxPool`] over `N` dimensions. The defaults are those of nn.MaxPool2d.
#[derive(Debug, Clone, Copy)]
pub struct MaxPoolConfig<const N: usize> {
    /// The window's size.
    pub kernel_size: Sizes<N>,
    /// The distance between the starts of neighbouring windows, in elements of the input.
    pub stride: Sizes<N>,
    /// The padding at the start and at the end of each dimension. A padded element is never the
    /// maximum.
    pub padding: Sizes<N>,
    /// The distance between neighbouring elements of a window, in elements of the input.
    pub dilation: Sizes<N>,
    /// Whether the last window may extend beyond the end of the input.
    pub ceil_mode: bool,
}

/// The options of a [`MaxPool1d`].
pub type MaxPool1dConfig = MaxPoolConfig<1>;
/// The options of a [`MaxPool2d`].
pub type MaxPool2dConfig = MaxPoolConfig<2>;
/// The options of a [`MaxPool3d`].
pub type MaxPool3dConfig = MaxPoolConfig<3>;

impl<const N: usize> MaxPoolConfig<N> {
    /// Returns options for adjacent windows (a stride of `kernel_size`), without padding.
    pub fn new(kernel_size: impl Into<Sizes<N>>) -> Self {
        let kernel_size = kernel_size.into();
        Self {
            kernel_size,
            stride: kernel_size,
            padding: Sizes([0; N]),
            dilation: Sizes([1; N]),
            ceil_mode: false,
        }
    }
}

/// Returns the largest value of each window; nn.MaxPool1d, nn.MaxPool2d and nn.MaxPool3d.
///
/// A [`MaxPool2d`] on CUDA keeps one byte per output for the backward pass, instead of the input.
/// This applies to 16-bit images in the layout channels_last with a multiple of eight channels.
#[derive(Debug, Clone, Copy)]
pub struct MaxPool<const N: usize> {
    config: MaxPoolConfig<N>,
}

/// Returns the largest value of each window of `[N, C, L]`; nn.MaxPool1d.
pub type MaxPool1d = MaxPool<1>;
/// Returns the largest value of each window of `[N, C, H, W]`; nn.MaxPool2d.
pub type MaxPool2d = MaxPool<2>;
/// Returns the largest value of each window of `[N, C, D, H, W]`; nn.MaxPool3d.
pub type MaxPool3d = MaxPool<3>;

impl<const N: usize> MaxPool<N> {
    /// Creates a layer with these options.
    ///
    /// # Errors
    /// At present this function returns no error. It returns a `Result` like the constructors of
    /// other layers.
    pub fn new(config: MaxPoolConfig<N>) -> Result<Self> {
        Ok(Self { config })
    }
}

impl<const N: usize> MaxPool<N> {
    /// Returns the windows' size, stride, padding and dilation.
    fn windows(&self) -> [[i64; N]; 4] {
        let MaxPoolConfig { kernel_size, stride, padding, dilation, .. } = self.config;
        [kernel_size.0, stride.0, padding.0, dilation.0]
    }

    /// Returns the largest value of each window, and its index as int64, as torch's layer with
    /// `return_indices` does. An index is a position in the flattened spatial dimensions. A
    /// [`MaxUnpool`](super::MaxUnpool) takes the values and the indices.
    ///
    /// # Errors
    /// When libtorch refuses the input.
    pub fn forward_with_indices(&self, input: &Tensor, _: &Context) -> Result<(Tensor, Tensor)> {
        let ([size, stride, padding, dilation], ceil) = (self.windows(), self.config.ceil_mode);
        Ok(match N {
            1 => input.f_max_pool1d_with_indices(size, stride, padding, dilation, ceil)?,
            2 => input.f_max_pool2d_with_indices(size, stride, padding, dilation, ceil)?,
            _ => input.f_max_pool3d_with_indices(size, stride, padding, dilation, ceil)?,
        })
    }
}

impl<const N: usize> Module for MaxPool<N> {
    fn forward(&self, input: &Tensor, _: &Context) -> Result<Tensor> {
        let ([size, stride, padding, dilation], ceil_mode) =
            (self.windows(), self.config.ceil_mode);
        if N == 2 && input.device().is_cuda() {
            let windows = self.windows().map(|all| [all[0], all[1]]);
            if let Some(output) = ffi::max_pool2d(input, windows, ceil_mode)? {
                return Ok(output);
            }
        }
        Ok(match N {
            1 => input.f_max_pool1d(size, stride, padding, dilation, ceil_mode)?,
            2 => input.f_max_pool2d(size, stride, padding, dilation, ceil_mode)?,
            _ => input.f_max_pool3d(size, stride, padding, dilation, ceil_mode)?,
        })
    }
}

/// The options of an [`AvgPool`] over `N` dimensions. The defaults are those of nn.AvgPool2d.
#[derive(Debug, Clone, Copy)]
pub struct AvgPoolConfig<const N: usize> {
    /// The window's size.
    pub kernel_size: Sizes<N>,
    /// The distance between the starts of neighbouring windows, in elements of the input.
    pub stride: Sizes<N>,
    /// The number of zeros that are added at the start and at the end of each dimension.
    pub padding: Sizes<N>,
    /// Whether the last window may extend beyond the end of the input.
    pub ceil_mode: bool,
    /// Whether the zeros of the padding count in the mean.
    pub count_include_pad: bool,
    /// The number by which the sum of each window is divided, instead of the window's number of
    /// elements. As in torch, it cannot be set for sequences (`AvgPool1d`).
    pub divisor_override: Option<i64>,
}

/// The options of an [`AvgPool1d`].
pub type AvgPool1dConfig = AvgPoolConfig<1>;
/// The options of an [`AvgPool2d`].
pub type AvgPool2dConfig = AvgPoolConfig<2>;
/// The options of an [`AvgPool3d`].
pub type AvgPool3dConfig = AvgPoolConfig<3>;

impl<const N: usize> AvgPoolConfig<N> {
    /// Returns options for adjacent windows (a stride of `kernel_size`), without padding.
    pub fn new(kernel_size: impl Into<Sizes<N>>) -> Self {
        let kernel_size = kernel_size.into();
        Self {
            kernel_size,
            stride: kernel_size,
            padding: Sizes([0; N]),
            ceil_mode: false,
            count_include_pad: true,
            divisor_override: None,
        }
    }
}

/// Returns the mean of each window; nn.AvgPool1d, nn.AvgPool2d and nn.AvgPool3d.
#[derive(Debug, Clone, Copy)]
pub struct AvgPool<const N: usize> {
    config: AvgPoolConfig<N>,
}

/// Returns the mean of each window of `[N, C, L]`; nn.AvgPool1d.
pub type AvgPool1d = AvgPool<1>;
/// Returns the mean of each window of `[N, C, H, W]`; nn.AvgPool2d.
pub type AvgPool2d = AvgPool<2>;
/// Returns the mean of each window of `[N, C, D, H, W]`; nn.AvgPool3d.
pub type AvgPool3d = AvgPool<3>;

impl<const N: usize> AvgPool<N> {
    /// Creates a layer with these options.
    ///
    /// # Errors
    /// When the divisor is below 1, or is set for sequences (`AvgPool1d`).
    pub fn new(config: AvgPoolConfig<N>) -> Result<Self> {
        match config.divisor_override {
            Some(divisor) if N == 1 || divisor < 1 => Err(Error::config(format!(
                "avg_pool{N}d: divisor_override is {divisor}, but must be at least 1, and cannot \
                 be set for avg_pool1d"
            ))),
            _ => Ok(Self { config }),
        }
    }
}

impl<const N: usize> Module for AvgPool<N> {
    fn forward(&self, input: &Tensor, _: &Context) -> Result<Tensor> {
        let AvgPoolConfig { kernel_size, stride, padding, ceil_mode: ceil, .. } = self.config;
        let (size, stride, padding) = (kernel_size.0, stride.0, padding.0);
        let (padded, divisor) = (self.config.count_include_pad, self.config.divisor_override);
        Ok(match N {
            1 => input.f_avg_pool1d(size, stride, padding, ceil, padded)?,
            2 => input.f_avg_pool2d(size, stride, padding, ceil, padded, divisor)?,
            _ => input.f_avg_pool3d(size, stride, padding, ceil, padded, divisor)?,
        })
    }
}

/// Divides each spatial dimension into as many windows as the output has elements along it, and
/// returns the mean of each window; nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d and
/// nn.AdaptiveAvgPool3d.
#[derive(Debug, Clone, Copy)]
pub struct AdaptiveAvgPool<const N: usize> {
    output_size: Sizes<N>,
}

/// Averages windows of `[N, C, L]` to an output `[N, C, L_out]`; nn.AdaptiveAvgPool1d.
pub type AdaptiveAvgPool1d = AdaptiveAvgPool<1>;
/// Averages windows of `[N, C, H, W]` to an output `[N, C, H_out, W_out]`; nn.AdaptiveAvgPool2d.
pub type AdaptiveAvgPool2d = AdaptiveAvgPool<2>;
/// Averages windows of `[N, C, D, H, W]` to an output `[N, C, D_out, H_out, W_out]`;
/// nn.AdaptiveAvgPool3d.
pub type AdaptiveAvgPool3d = AdaptiveAvgPool<3>;

impl<const N: usize> AdaptiveAvgPool<N> {
    /// Creates a layer whose output has this size.
    ///
    /// # Errors
    /// At present this function returns no error. It returns a `Result` like the constructors of
    /// other layers.
    pub fn new(output_size: impl Into<Sizes<N>>) -> Result<Self> {
        Ok(Self { output_size: output_size.into() })
    }
}

/// Returns the size of the windows, or `None` if `output_size` does not divide the input's size.
fn windows_of<const N: usize>(input: &Tensor, output_size: [i64; N]) -> Option<[i64; N]> {
    let size = input.size();
    let spatial: [i64; N] = size.get(size.len().checked_sub(N)?..)?.try_into().ok()?;
    let fits = |at: usize| output_size[at] > 0 && spatial[at] % output_size[at] == 0;
    (0..N).all(fits).then(|| std::array::from_fn(|at| spatial[at] / output_size[at]))
}

impl<const N: usize> Module for AdaptiveAvgPool<N> {
    fn forward(&self, input: &Tensor, _: &Context) -> Result<Tensor> {
        let size = self.output_size.0;
        if N == 2
            && ordered::applies(input)?
            && let Some(window) = windows_of(input, size)
        {
            return Ok(input.f_avg_pool2d(window, window, [0, 0], false, true, None)?);
        }
        Ok(match N {
            1 => input.f_adaptive_avg_pool1d(size)?,
            2 => input.f_adaptive_avg_pool2d(size)?,
            _ => input.f_adaptive_avg_pool3d(size)?,
        })
    }
}

/// Divides each spatial dimension into as many windows as the output has elements along it, and
/// returns the largest value of each window; nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d and
/// nn.AdaptiveMaxPool3d.
#[derive(Debug, Clone, Copy)]
pub struct AdaptiveMaxPool<const N: usize> {
    output_size: Sizes<N>,
}

/// Returns the largest value of windows of `[N, C, L]`, with the shape `[N, C, L_out]`;
/// nn.AdaptiveMaxPool1d.
pub type AdaptiveMaxPool1d = AdaptiveMaxPool<1>;
/// Returns the largest value of windows of `[N, C, H, W]`, with the shape `[N, C, H_out, W_out]`;
/// nn.AdaptiveMaxPool2d.
pub type AdaptiveMaxPool2d = AdaptiveMaxPool<2>;
/// Returns the largest value of windows of `[N, C, D, H, W]`, with the shape
/// `[N, C, D_out, H_out, W_out]`; nn.AdaptiveMaxPool3d.
pub type AdaptiveMaxPool3d = AdaptiveMaxPool<3>;

impl<const N: usize> AdaptiveMaxPool<N> {
    /// Creates a layer whose output has this size.
    ///
    /// # Errors
    /// At present this function returns no error. It returns a `Result` like the constructors of
    /// other layers.
    pub fn new(output_size: impl Into<Sizes<N>>) -> Result<Self> {
        Ok(Self { output_size: output_size.into() })
    }
}

impl<const N: usize> AdaptiveMaxPool<N> {
    /// Returns the largest value of each window, and its index as int64, as torch's layer with
    /// `return_indices` does. An index is a position in the flattened spatial dimensions.
    ///
    /// # Errors
    /// When libtorch refuses the input.
    pub fn forward_with_indices(&self, input: &Tensor, _: &Context) -> Result<(Tensor, Tensor)> {
        let size = self.output_size.0;
        Ok(match N {
            1 => input.f_adaptive_max_pool1d(size)?,
            2 => input.f_adaptive_max_pool2d(size)?,
            _ => input.f_adaptive_max_pool3d(size)?,
        })
    }
}

impl<const N: usize> Module for AdaptiveMaxPool<N> {
    fn forward(&self, input: &Tensor, cx: &Context) -> Result<Tensor> {
        self.forward_with_indices(input, cx).map(|(largest, _)| largest)
    }
}

macro_rules! without_tensors {
    ($($name:ident)*) => {$(
        impl<const N: usize> Visit for $name<N> {
            fn visit(&self, _: &mut dyn Visitor) {}
        }
    )*};
}

without_tensors!(MaxPool AvgPool AdaptiveAvgPool AdaptiveMaxPool);

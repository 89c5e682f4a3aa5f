//! Layers that rearrange elements: flatten, unflatten, channel shuffle, unfold and fold.

use tch::Tensor;

use super::{Context, Module, Sizes, Visit, Visitor};
use crate::{Error, Result};

/// The options of a [`Flatten`]; the defaults are nn.Flatten's.
#[derive(Debug, Clone, Copy)]
pub struct FlattenConfig {
    /// The first of the dimensions that are joined. A negative number counts from the last
    /// dimension.
    pub start_dim: i64,
    /// The last of the dimensions that are joined. A negative number counts from the last
    /// dimension.
    pub end_dim: i64,
}

impl FlattenConfig {
    /// Returns options that join all dimensions except the batch dimension.
    pub fn new() -> Self {
        Self { start_dim: 1, end_dim: -1 }
    }
}

impl Default for FlattenConfig {
    fn default() -> Self {
        Self::new()
    }
}

/// Joins consecutive dimensions into one, by default all except the batch dimension; nn.Flatten.
#[derive(Debug, Clone, Copy, Default)]
pub struct Flatten {
    config: FlattenConfig,
}

impl Flatten {
    /// Creates a layer with these options.
    ///
    /// # Errors
    /// At present this function returns no error. It returns a `Result` like the constructors of
    /// other layers.
    pub fn new(config: FlattenConfig) -> Result<Self> {
        Ok(Self { config })
    }
}

impl Module for Flatten {
    fn forward(&self, input: &Tensor, _: &Context) -> Result<Tensor> {
        Ok(input.f_flatten(self.config.start_dim, self.config.end_dim)?)
    }
}

/// Splits one dimension into several; nn.Unflatten.
#[derive(Debug, Clone)]
pub struct Unflatten {
    dim: i64,
    sizes: Vec<i64>,
}

impl Unflatten {
    /// Creates a layer that splits the dimension `dim` into dimensions of these sizes. `dim` may be
    /// negative. One of the sizes may be -1, and is then computed from the size of `dim`.
    ///
    /// ```
    /// use amp_core::{nn::{Context, Unflatten}, precision::{Policy, Precision}, prelude::*};
    ///
    /// let cx = Context::new(Policy::new(Precision::F32True, Device::Cpu), true);
    /// let images = Unflatten::new(1, [2, -1, 4])?.forward(&Tensor::zeros([5, 24], (Kind::Float, Device::Cpu)), &cx)?;
    /// assert_eq!(images.size(), [5, 2, 3, 4]);
    /// # Ok::<(), amp_core::Error>(())
    /// ```
    ///
    /// # Errors
    /// When there are no sizes, a size is 0 or below -1, or two sizes are -1.
    pub fn new(dim: i64, unflattened_size: impl IntoIterator<Item = i64>) -> Result<Self> {
        let sizes: Vec<i64> = unflattened_size.into_iter().collect();
        let open = sizes.iter().filter(|size| **size == -1).count();
        let fits = sizes.iter().all(|size| *size > 0 || *size == -1);
        match !sizes.is_empty() && fits && open < 2 {
            true => Ok(Self { dim, sizes }),
            false => Err(Error::config(format!(
                "unflatten: the sizes are {sizes:?}, but each must be at least 1, except that one \
                 may be -1 (computed from the others)"
            ))),
        }
    }
}

impl Module for Unflatten {
    fn forward(&self, input: &Tensor, _: &Context) -> Result<Tensor> {
        Ok(input.f_unflatten(self.dim, &self.sizes)?)
    }
}

/// Divides the channels of `[N, C, …]` into `groups` groups of equal size, and interleaves the
/// groups; nn.ChannelShuffle.
#[derive(Debug, Clone, Copy)]
pub struct ChannelShuffle {
    groups: i64,
}

impl ChannelShuffle {
    /// Creates a layer with this number of groups.
    ///
    /// # Errors
    /// When the number is not positive.
    pub fn new(groups: i64) -> Result<Self> {
        match groups {
            1.. => Ok(Self { groups }),
            _ => Err(Error::config(format!(
                "channel_shuffle: groups is {groups}, but must be at least 1"
            ))),
        }
    }
}

impl Module for ChannelShuffle {
    fn forward(&self, input: &Tensor, _: &Context) -> Result<Tensor> {
        let size = input.size();
        match size.get(1) {
            Some(channels) if size.len() > 2 && channels % self.groups == 0 => {
                Ok(input.f_channel_shuffle(self.groups)?)
            }
            _ => Err(Error::config(format!(
                "channel_shuffle: the input is {size:?}, but must be [batch, channels, …], and the \
                 number of channels must be a multiple of {}",
                self.groups
            ))),
        }
    }
}

/// The options of an [`Unfold`]; the defaults are nn.Unfold's.
#[derive(Debug, Clone, Copy)]
pub struct UnfoldConfig {
    /// The window's size.
    pub kernel_size: Sizes<2>,
    /// The distance between neighbouring elements of a window, in elements of the image.
    pub dilation: Sizes<2>,
    /// The number of zeros that are added on each side of the image.
    pub padding: Sizes<2>,
    /// The distance between the starts of neighbouring windows, in elements of the image.
    pub stride: Sizes<2>,
}

impl UnfoldConfig {
    /// Returns options for windows of this size, with stride 1, dilation 1 and no padding.
    pub fn new(kernel_size: impl Into<Sizes<2>>) -> Self {
        let [dilation, stride] = [Sizes([1; 2]); 2];
        Self { kernel_size: kernel_size.into(), dilation, padding: Sizes([0; 2]), stride }
    }
}

/// Copies each window of the images `[N, C, H, W]` to a column of the output; nn.Unfold. The output
/// has the shape `[N, C·K, L]`, where K is the number of pixels of a window and L is the number of
/// windows.
#[derive(Debug, Clone, Copy)]
pub struct Unfold {
    config: UnfoldConfig,
}

impl Unfold {
    /// Creates a layer with these options.
    ///
    /// # Errors
    /// At present this function returns no error. It returns a `Result` like the constructors of
    /// other layers.
    pub fn new(config: UnfoldConfig) -> Result<Self> {
        Ok(Self { config })
    }
}

impl Module for Unfold {
    fn forward(&self, input: &Tensor, _: &Context) -> Result<Tensor> {
        let UnfoldConfig { kernel_size, dilation, padding, stride } = self.config;
        Ok(input.f_im2col(kernel_size.0, dilation.0, padding.0, stride.0)?)
    }
}

/// The options of a [`Fold`]; the defaults are nn.Fold's.
#[derive(Debug, Clone, Copy)]
pub struct FoldConfig {
    /// The height and the width of the images.
    pub output_size: Sizes<2>,
    /// The window's size.
    pub kernel_size: Sizes<2>,
    /// The distance between neighbouring elements of a window, in elements of the image.
    pub dilation: Sizes<2>,
    /// The number of pixels of padding on each side of the image. The output does not contain the
    /// padding.
    pub padding: Sizes<2>,
    /// The distance between the starts of neighbouring windows, in elements of the image.
    pub stride: Sizes<2>,
}

impl FoldConfig {
    /// Returns options for images of this output size and windows of this kernel size, with stride
    /// 1, dilation 1 and no padding.
    pub fn new(output_size: impl Into<Sizes<2>>, kernel_size: impl Into<Sizes<2>>) -> Self {
        let UnfoldConfig { kernel_size, dilation, padding, stride } =
            UnfoldConfig::new(kernel_size);
        Self { output_size: output_size.into(), kernel_size, dilation, padding, stride }
    }
}

/// Builds images `[N, C, H, W]` from windows: adds each column of the input to the pixels of its
/// window, and sums where windows overlap; nn.Fold. The input has the shape `[N, C·K, L]`, where K
/// is the number of pixels of a window and L is the number of windows.
#[derive(Debug, Clone, Copy)]
pub struct Fold {
    config: FoldConfig,
}

impl Fold {
    /// Creates a layer with these options.
    ///
    /// # Errors
    /// At present this function returns no error. It returns a `Result` like the constructors of
    /// other layers.
    pub fn new(config: FoldConfig) -> Result<Self> {
        Ok(Self { config })
    }
}

impl Module for Fold {
    fn forward(&self, input: &Tensor, _: &Context) -> Result<Tensor> {
        let FoldConfig { output_size, kernel_size, dilation, padding, stride } = self.config;
        Ok(input.f_col2im(output_size.0, kernel_size.0, dilation.0, padding.0, stride.0)?)
    }
}

macro_rules! without_tensors {
    ($($name:ident)*) => {$(
        impl Visit for $name {
            fn visit(&self, _: &mut dyn Visitor) {}
        }
    )*};
}

without_tensors!(Flatten Unflatten ChannelShuffle Unfold Fold);

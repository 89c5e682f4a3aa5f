//! Max pooling over windows at random positions.

use tch::Tensor;

use super::{Context, Module, PerDimension, Sizes, Visit, Visitor};
use crate::{Error, Result};

/// The options of a [`FractionalMaxPool`] over `N` dimensions.
#[derive(Debug, Clone, Copy)]
pub struct FractionalMaxPoolConfig<const N: usize> {
    /// The window's size.
    pub kernel_size: Sizes<N>,
    /// The output's size in each spatial dimension. Set either `output_size` or `output_ratio`.
    pub output_size: PerDimension<i64>,
    /// The factor by which the size of each spatial dimension is multiplied, above 0 and below 1.
    /// The new size is rounded down.
    pub output_ratio: PerDimension<f64>,
}

/// The options of a [`FractionalMaxPool2d`].
pub type FractionalMaxPool2dConfig = FractionalMaxPoolConfig<2>;
/// The options of a [`FractionalMaxPool3d`].
pub type FractionalMaxPool3dConfig = FractionalMaxPoolConfig<3>;

impl<const N: usize> FractionalMaxPoolConfig<N> {
    /// Returns options with this window size. The caller must set `output_size` or `output_ratio`.
    pub fn new(kernel_size: impl Into<Sizes<N>>) -> Self {
        let kernel_size = kernel_size.into();
        Self { kernel_size, output_size: PerDimension::None, output_ratio: PerDimension::None }
    }
}

/// Returns the largest value of each window. The positions of the windows are random, and are drawn
/// separately for each channel of each example (Graham, arXiv:1412.6071); nn.FractionalMaxPool2d
/// and nn.FractionalMaxPool3d. As in torch, the positions are random in evaluation too.
#[derive(Debug, Clone, Copy)]
pub struct FractionalMaxPool<const N: usize> {
    config: FractionalMaxPoolConfig<N>,
}

/// Pools `[N, C, H, W]`; nn.FractionalMaxPool2d.
pub type FractionalMaxPool2d = FractionalMaxPool<2>;
/// Pools `[N, C, D, H, W]`; nn.FractionalMaxPool3d.
pub type FractionalMaxPool3d = FractionalMaxPool<3>;

impl<const N: usize> FractionalMaxPool<N> {
    /// Creates a pool with these options.
    ///
    /// # Errors
    /// When `output_size` and `output_ratio` are both set or both missing, or one of their values
    /// is out of range.
    pub fn new(config: FractionalMaxPoolConfig<N>) -> Result<Self> {
        let FractionalMaxPoolConfig { output_size, output_ratio, .. } = config;
        let refused = |why: &str| Err(Error::config(format!("fractional_max_pool{N}d: {why}")));
        if output_size.is_given() == output_ratio.is_given() {
            return refused("set exactly one of output_size and output_ratio");
        }
        if !output_size.all(|size| size > 0)
            || !output_ratio.all(|ratio| ratio > 0.0 && ratio < 1.0)
        {
            return refused("output_size must be at least 1, and output_ratio above 0 and below 1");
        }
        if [output_size.of(N).is_some(), output_ratio.of(N).is_some()] == [false, false] {
            return refused(&format!(
                "give output_size or output_ratio as one number, or as one number for each of {N} dimensions"
            ));
        }
        Ok(Self { config })
    }

    /// Returns the largest value of each window, and its index as int64, as torch's layer with
    /// `return_indices` does. An index is a position in the flattened spatial dimensions.
    ///
    /// # Errors
    /// When the input's shape is invalid.
    pub fn forward_with_indices(&self, input: &Tensor, _: &Context) -> Result<(Tensor, Tensor)> {
        let size = self.spatial(input)?;
        let (examples, channels) = (input.size()[0], input.size()[1]);
        let options = (input.kind(), input.device());
        self.at(input, &size, &Tensor::f_rand([examples, channels, N as i64], options)?)
    }

    /// Does the same as [`forward_with_indices`](Self::forward_with_indices), with the random
    /// numbers `samples` for the positions of the windows. Like torch's `_random_samples`,
    /// `samples` contains numbers from 0 to 1, and has the shape `[N, C, number of spatial
    /// dimensions]`.
    ///
    /// # Errors
    /// When a shape is invalid.
    pub fn forward_with_samples(
        &self,
        input: &Tensor,
        samples: &Tensor,
        _: &Context,
    ) -> Result<(Tensor, Tensor)> {
        self.at(input, &self.spatial(input)?, samples)
    }

    /// Returns the sizes of the input's spatial dimensions.
    fn spatial(&self, input: &Tensor) -> Result<Vec<i64>> {
        let size = input.size();
        match size.get(2..) {
            Some(spatial) if spatial.len() == N => Ok(spatial.to_vec()),
            _ => Err(Error::config(format!(
                "fractional_max_pool{N}d: the input is {size:?}, but must be [batch, channels, …] \
                 with {N} more dimensions"
            ))),
        }
    }

    fn at(&self, input: &Tensor, spatial: &[i64], samples: &Tensor) -> Result<(Tensor, Tensor)> {
        let FractionalMaxPoolConfig { kernel_size, output_size, output_ratio } = self.config;
        let scaled = |ratios: Vec<f64>| -> Vec<i64> {
            let of = spatial.iter().zip(ratios);
            of.map(|(size, ratio)| (*size as f64 * ratio) as i64).collect()
        };
        let output = output_size.of(N).or_else(|| output_ratio.of(N).map(scaled));
        let output = output.expect("`new` checked output_size and output_ratio");
        Ok(match N {
            2 => input.f_fractional_max_pool2d(kernel_size.0, output, samples)?,
            _ => input.f_fractional_max_pool3d(kernel_size.0, output, samples)?,
        })
    }
}

impl<const N: usize> Visit for FractionalMaxPool<N> {
    fn visit(&self, _: &mut dyn Visitor) {}
}

impl<const N: usize> Module for FractionalMaxPool<N> {
    fn forward(&self, input: &Tensor, cx: &Context) -> Result<Tensor> {
        self.forward_with_indices(input, cx).map(|(largest, _)| largest)
    }
}

//! The inverse of max pooling.

use tch::Tensor;

use super::{Context, Forward, Sizes, Visit, Visitor};
use crate::{Error, Result};

/// The options of a [`MaxUnpool`] over `N` dimensions. The options must equal those of the
/// [`MaxPool`](super::MaxPool) whose output the layer inverts.
#[derive(Debug, Clone, Copy)]
pub struct MaxUnpoolConfig<const N: usize> {
    /// The window's size.
    pub kernel_size: Sizes<N>,
    /// The distance between the starts of neighbouring windows, in elements of the output.
    pub stride: Sizes<N>,
    /// The padding of the max pooling at the start and at the end of each dimension. The output
    /// does not contain it.
    pub padding: Sizes<N>,
}

/// The options of a [`MaxUnpool1d`].
pub type MaxUnpool1dConfig = MaxUnpoolConfig<1>;
/// The options of a [`MaxUnpool2d`].
pub type MaxUnpool2dConfig = MaxUnpoolConfig<2>;
/// The options of a [`MaxUnpool3d`].
pub type MaxUnpool3dConfig = MaxUnpoolConfig<3>;

impl<const N: usize> MaxUnpoolConfig<N> {
    /// Returns options for adjacent windows of this size (a stride of `kernel_size`), without
    /// padding.
    pub fn new(kernel_size: impl Into<Sizes<N>>) -> Self {
        let kernel_size = kernel_size.into();
        Self { kernel_size, stride: kernel_size, padding: Sizes([0; N]) }
    }
}

/// Inverts a [`MaxPool`](super::MaxPool): puts each value at the index at which the pool found it,
/// and 0 everywhere else; nn.MaxUnpool1d, nn.MaxUnpool2d and nn.MaxUnpool3d.
///
/// The inputs are the values and indices that
/// [`MaxPool::forward_with_indices`](super::MaxPool::forward_with_indices) returns, and optionally
/// the spatial size of the output. Max pooling gives the same output size for several input sizes;
/// without a given size, the smallest of these is restored. If windows overlap, two values may have
/// the same index. Only one of the two is then kept, and on CUDA not always the same one.
///
/// ```
/// use amp_core::{
///     nn::{Context, Forward, MaxPool1d, MaxPool1dConfig, MaxUnpool1d, MaxUnpool1dConfig},
///     precision::{Policy, Precision},
///     prelude::*,
/// };
///
/// let cx = Context::new(Policy::new(Precision::F32True, Device::Cpu), true);
/// let x = Tensor::from_slice(&[1.0_f32, 3.0, 5.0, 2.0, 4.0]).view([1, 1, 5]);
/// let pool = MaxPool1d::new(MaxPool1dConfig::new(2))?;
/// let (largest, places) = pool.forward_with_indices(&x, &cx)?;
/// let back = MaxUnpool1d::new(MaxUnpool1dConfig::new(2))?.forward_with((&largest, &places, Some(&[5])), &cx)?;
/// assert_eq!(Vec::<f32>::try_from(back.view(-1)).unwrap(), [0.0, 3.0, 5.0, 0.0, 0.0]);
/// # Ok::<(), amp_core::Error>(())
/// ```
#[derive(Debug, Clone, Copy)]
pub struct MaxUnpool<const N: usize> {
    config: MaxUnpoolConfig<N>,
}

/// Inverts a [`MaxPool1d`](super::MaxPool1d), with an output `[N, C, L]`; nn.MaxUnpool1d.
pub type MaxUnpool1d = MaxUnpool<1>;
/// Inverts a [`MaxPool2d`](super::MaxPool2d), with an output `[N, C, H, W]`; nn.MaxUnpool2d.
pub type MaxUnpool2d = MaxUnpool<2>;
/// Inverts a [`MaxPool3d`](super::MaxPool3d), with an output `[N, C, D, H, W]`; nn.MaxUnpool3d.
pub type MaxUnpool3d = MaxUnpool<3>;

impl<const N: usize> MaxUnpool<N> {
    /// Creates a layer with these options.
    ///
    /// # Errors
    /// At present this function returns no error. It returns a `Result` like the constructors of
    /// other layers.
    pub fn new(config: MaxUnpoolConfig<N>) -> Result<Self> {
        Ok(Self { config })
    }

    /// Returns the spatial size of the output. If the caller gives no size, this is the smallest
    /// size from which max pooling gives the size of `input`.
    fn output_size(&self, input: &Tensor, given: Option<&[i64]>) -> Result<[i64; N]> {
        let MaxUnpoolConfig { kernel_size, stride, padding } = self.config;
        let size = input.size();
        let refused = |why: String| Error::config(format!("max_unpool{N}d: {why}"));
        let spatial = size.get(2..).and_then(|spatial| <[i64; N]>::try_from(spatial).ok());
        let spatial = spatial.ok_or_else(|| {
            refused(format!(
                "the input is {size:?}, but must be [batch, channels, …] with {N} more dimensions"
            ))
        })?;
        let least: [i64; N] = std::array::from_fn(|at| {
            (spatial[at] - 1) * stride.0[at] - 2 * padding.0[at] + kernel_size.0[at]
        });
        let Some(given) = given else { return Ok(least) };
        // As in torch, a given size must differ from the smallest possible size by less than a
        // stride.
        let fits = |at: usize| (given[at] - least[at]).abs() < stride.0[at];
        match <[i64; N]>::try_from(given) {
            Ok(output) if (0..N).all(fits) => Ok(output),
            _ => Err(refused(format!(
                "the output size is {given:?}, but must differ from the default size {least:?} by \
                 less than the stride {:?}",
                stride.0
            ))),
        }
    }
}

impl<const N: usize> Visit for MaxUnpool<N> {
    fn visit(&self, _: &mut dyn Visitor) {}
}

impl<const N: usize> Forward for MaxUnpool<N> {
    /// The values, their indices, and the spatial size of the output.
    type Input = (&'static Tensor, &'static Tensor, Option<&'static [i64]>);
    type Output = Tensor;

    fn forward_with(
        &self,
        (input, places, output_size): (&Tensor, &Tensor, Option<&[i64]>),
        _: &Context,
    ) -> Result<Tensor> {
        let size = self.output_size(input, output_size)?;
        Ok(match N {
            1 => {
                // `[N, C, L]` is processed as the images `[N, C, L, 1]`.
                let [input, places] = [input.f_unsqueeze(-1)?, places.f_unsqueeze(-1)?];
                input.f_max_unpool2d(&places, [size[0], 1])?.f_squeeze_dim(-1)?
            }
            2 => input.f_max_unpool2d(places, size)?,
            _ => input.f_max_unpool3d(places, size, self.config.stride.0, self.config.padding.0)?,
        })
    }
}

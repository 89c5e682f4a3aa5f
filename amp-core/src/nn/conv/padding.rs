//! How a convolution pads its input.

use tch::Tensor;

use crate::{
    Error, Result,
    nn::{Sizes, ordered},
};

/// How many elements are added at the start and at the end of each dimension.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Padding<const N: usize> {
    /// The given number of elements on each side.
    Sizes(Sizes<N>),
    /// As many elements as are needed for an output of the input's size. The stride must be 1. If
    /// the number for a dimension is odd, the end gets one element more than the start.
    Same,
}

impl<const N: usize, S: Into<Sizes<N>>> From<S> for Padding<N> {
    fn from(sizes: S) -> Self {
        Self::Sizes(sizes.into())
    }
}

impl<const N: usize> Padding<N> {
    pub(super) fn check(self, stride: Sizes<N>) -> Result<()> {
        match (self, stride.common()) {
            (Self::Same, Some(1)) | (Self::Sizes(_), _) => Ok(()),
            (Self::Same, _) => Err(Error::config(
                "conv: padding `same` is supported only for stride 1: give the padding as a number",
            )),
        }
    }

    /// Returns the numbers of elements that are added at the start and at the end of each
    /// dimension.
    pub(super) fn sides(self, kernel_size: Sizes<N>, dilation: Sizes<N>) -> [Sizes<N>; 2] {
        match self {
            Self::Sizes(sizes) => [sizes, sizes],
            Self::Same => {
                let total: [i64; N] =
                    std::array::from_fn(|at| dilation.0[at] * (kernel_size.0[at] - 1));
                [Sizes(total.map(|total| total / 2)), Sizes(total.map(|total| total - total / 2))]
            }
        }
    }
}

/// The values with which the input of a convolution is padded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PaddingMode {
    /// Zeros.
    #[default]
    Zeros,
    /// The input, mirrored at its edge. The element at the edge is not repeated.
    Reflect,
    /// The value at the nearest edge of the input.
    Replicate,
    /// The values from the opposite end of the input.
    Circular,
}

impl PaddingMode {
    pub(in crate::nn) fn pad<const N: usize>(
        self,
        input: &Tensor,
        before: Sizes<N>,
        after: Sizes<N>,
    ) -> Result<Tensor> {
        if ordered::applies(input)?
            && let Some(padded) = ordered::padded(input, self, &before.0, &after.0)?
        {
            return Ok(padded);
        }
        let mode = match self {
            Self::Zeros => "constant",
            Self::Reflect => "reflect",
            Self::Replicate => "replicate",
            Self::Circular => "circular",
        };
        Ok(input.f_pad(sides(before, after), mode, None)?)
    }
}

/// Returns the padding in the order of torch.nn.functional.pad: first the start and the end of the
/// last dimension, then those of the dimension before it, and so on.
pub(in crate::nn) fn sides<const N: usize>(before: Sizes<N>, after: Sizes<N>) -> Vec<i64> {
    (0..N).rev().flat_map(|at| [before.0[at], after.0[at]]).collect()
}

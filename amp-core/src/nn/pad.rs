//! Padding layers.

use tch::Tensor;

use super::{Context, Module, PaddingMode, Sizes, Visit, Visitor, conv::sides};
use crate::{Error, Result};

/// How many elements a layer adds at the start and at the end of each dimension. `1` adds one
/// element on every side. `[1, 2]` adds one element on each side of the first padded dimension, and
/// two on each side of the second. `[[0, 1], [2, 0]]` gives each dimension one number for its start
/// and one for its end. The dimensions are in the order of the input, whereas torch's tuples begin
/// with the last dimension.
///
/// ```
/// use amp_core::nn::Sides;
///
/// assert_eq!(Sides::<2>::from(1), Sides::from([[1, 1], [1, 1]]));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sides<const N: usize> {
    before: Sizes<N>,
    behind: Sizes<N>,
}

impl<const N: usize> Sides<N> {
    fn checked(self) -> Result<Self> {
        match self.before.0.iter().chain(&self.behind.0).find(|size| **size < 0) {
            Some(size) => Err(Error::config(format!("padding is {size}, but must be at least 0"))),
            None => Ok(self),
        }
    }
}

macro_rules! from_sizes {
    ($($sizes:ty)*) => {$(
        impl<const N: usize> From<$sizes> for Sides<N> {
            fn from(both: $sizes) -> Self {
                let both = Sizes::from(both);
                Self { before: both, behind: both }
            }
        }
    )*};
}

from_sizes!(i64 i32 [i64; N] [i32; N] Sizes<N>);

macro_rules! from_pairs {
    ($($integer:ty)*) => {$(
        impl<const N: usize> From<[[$integer; 2]; N]> for Sides<N> {
            fn from(sides: [[$integer; 2]; N]) -> Self {
                let [before, behind] =
                    [0, 1].map(|side| Sizes(sides.map(|both| i64::from(both[side]))));
                Self { before, behind }
            }
        }
    )*};
}

from_pairs!(i64 i32);

/// Defines layers, each of which pads the last `$n` dimensions of `[N, C, …]` in the padding mode
/// `$mode`.
macro_rules! pads {
    ($($(#[$doc:meta])* $name:ident $n:literal $mode:ident;)*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Copy)]
        pub struct $name {
            padding: Sides<$n>,
        }

        impl $name {
            /// Creates the layer. `padding` is one number for all sides, a number for each
            /// dimension, or a number for each side of each dimension.
            ///
            /// # Errors
            /// When a size is negative.
            pub fn new(padding: impl Into<Sides<$n>>) -> Result<Self> {
                padding.into().checked().map(|padding| Self { padding })
            }
        }

        impl Visit for $name {
            fn visit(&self, _: &mut dyn Visitor) {}
        }

        impl Module for $name {
            fn forward(&self, input: &Tensor, _: &Context) -> Result<Tensor> {
                PaddingMode::$mode.pad(input, self.padding.before, self.padding.behind)
            }
        }
    )*};
}

pads! {
    /// Pads `[N, C, L]` with zeros; nn.ZeroPad1d.
    ZeroPad1d 1 Zeros;
    /// Pads `[N, C, H, W]` with zeros; nn.ZeroPad2d.
    ZeroPad2d 2 Zeros;
    /// Pads `[N, C, D, H, W]` with zeros; nn.ZeroPad3d.
    ZeroPad3d 3 Zeros;
    /// Pads `[N, C, L]` with the input mirrored at its edges; the elements at the edges are not
    /// repeated. nn.ReflectionPad1d.
    ReflectionPad1d 1 Reflect;
    /// Pads `[N, C, H, W]` with the input mirrored at its edges; the elements at the edges are not
    /// repeated. nn.ReflectionPad2d.
    ReflectionPad2d 2 Reflect;
    /// Pads `[N, C, D, H, W]` with the input mirrored at its edges; the elements at the edges are
    /// not repeated. nn.ReflectionPad3d.
    ReflectionPad3d 3 Reflect;
    /// Pads `[N, C, L]` with the nearest value of the input; nn.ReplicationPad1d.
    ReplicationPad1d 1 Replicate;
    /// Pads `[N, C, H, W]` with the nearest value of the input; nn.ReplicationPad2d.
    ReplicationPad2d 2 Replicate;
    /// Pads `[N, C, D, H, W]` with the nearest value of the input; nn.ReplicationPad3d.
    ReplicationPad3d 3 Replicate;
    /// Pads `[N, C, L]` with values from the opposite end; nn.CircularPad1d.
    CircularPad1d 1 Circular;
    /// Pads `[N, C, H, W]` with values from the opposite end of each dimension; nn.CircularPad2d.
    CircularPad2d 2 Circular;
    /// Pads `[N, C, D, H, W]` with values from the opposite end of each dimension;
    /// nn.CircularPad3d.
    CircularPad3d 3 Circular;
}

/// Pads the last `N` dimensions of `[N, C, …]` with a constant; nn.ConstantPad1d, nn.ConstantPad2d
/// and nn.ConstantPad3d.
#[derive(Debug, Clone, Copy)]
pub struct ConstantPad<const N: usize> {
    padding: Sides<N>,
    value: f64,
}

/// Pads `[N, C, L]` with a constant; nn.ConstantPad1d.
pub type ConstantPad1d = ConstantPad<1>;
/// Pads `[N, C, H, W]` with a constant; nn.ConstantPad2d.
pub type ConstantPad2d = ConstantPad<2>;
/// Pads `[N, C, D, H, W]` with a constant; nn.ConstantPad3d.
pub type ConstantPad3d = ConstantPad<3>;

impl<const N: usize> ConstantPad<N> {
    /// Creates a layer that pads these sides with the constant `value`.
    ///
    /// # Errors
    /// When a size is negative.
    pub fn new(padding: impl Into<Sides<N>>, value: impl Into<f64>) -> Result<Self> {
        Ok(Self { padding: padding.into().checked()?, value: value.into() })
    }
}

impl<const N: usize> Visit for ConstantPad<N> {
    fn visit(&self, _: &mut dyn Visitor) {}
}

impl<const N: usize> Module for ConstantPad<N> {
    fn forward(&self, input: &Tensor, _: &Context) -> Result<Tensor> {
        let Sides { before, behind } = self.padding;
        Ok(input.f_pad(sides(before, behind), "constant", self.value)?)
    }
}

//! Padding as a layer.

use tch::Tensor;

use super::{Context, Module, PaddingMode, Sizes, Visit, Visitor};
use crate::{Error, Result};

/// A layer that pads the last `$n` dimensions of `[N, C, …]` by one mode.
macro_rules! pads {
    ($($(#[$doc:meta])* $name:ident $n:literal $mode:ident;)*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Copy)]
        pub struct $name {
            padding: Sizes<$n>,
        }

        impl $name {
            /// So much on both sides of all dimensions, or of each.
            ///
            /// # Errors
            /// When a size is negative.
            pub fn new(padding: impl Into<Sizes<$n>>) -> Result<Self> {
                let padding = padding.into();
                match padding.0.iter().find(|size| **size < 0) {
                    Some(size) => Err(Error::config(format!("padding is {size}, but must be at least 0"))),
                    None => Ok(Self { padding }),
                }
            }
        }

        impl Visit for $name {
            fn visit(&self, _: &mut dyn Visitor) {}
        }

        impl Module for $name {
            fn forward(&self, input: &Tensor, _: &Context) -> Result<Tensor> {
                PaddingMode::$mode.pad(input, self.padding, self.padding)
            }
        }
    )*};
}

pads! {
    /// Zeros around `[N, C, L]`; nn.ZeroPad1d.
    ZeroPad1d 1 Zeros;
    /// Zeros around `[N, C, H, W]`; nn.ZeroPad2d.
    ZeroPad2d 2 Zeros;
    /// Zeros around `[N, C, D, H, W]`; nn.ZeroPad3d.
    ZeroPad3d 3 Zeros;
    /// The input mirrored at its edges, without them, around `[N, C, L]`; nn.ReflectionPad1d.
    ReflectionPad1d 1 Reflect;
    /// The input mirrored at its edges, without them, around `[N, C, H, W]`; nn.ReflectionPad2d.
    ReflectionPad2d 2 Reflect;
    /// The input mirrored at its edges, without them, around `[N, C, D, H, W]`; nn.ReflectionPad3d.
    ReflectionPad3d 3 Reflect;
    /// The input's edges around `[N, C, L]`; nn.ReplicationPad1d.
    ReplicationPad1d 1 Replicate;
    /// The input's edges around `[N, C, H, W]`; nn.ReplicationPad2d.
    ReplicationPad2d 2 Replicate;
    /// The input's edges around `[N, C, D, H, W]`; nn.ReplicationPad3d.
    ReplicationPad3d 3 Replicate;
    /// The input's other ends around `[N, C, L]`; nn.CircularPad1d.
    CircularPad1d 1 Circular;
    /// The input's other ends around `[N, C, H, W]`; nn.CircularPad2d.
    CircularPad2d 2 Circular;
    /// The input's other ends around `[N, C, D, H, W]`; nn.CircularPad3d.
    CircularPad3d 3 Circular;
}

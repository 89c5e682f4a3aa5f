//! Layers without parameters.

use tch::Tensor;

use super::{Context, Module, Visitor};
use crate::Result;

macro_rules! stateless {
    ($($(#[$doc:meta])* $name:ident => |$input:ident| $body:expr;)*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, Default)]
        pub struct $name;

        impl Module for $name {
            fn forward(&self, $input: &Tensor, _: &Context) -> Result<Tensor> {
                Ok($body)
            }

            fn visit(&self, _: &mut dyn Visitor) {}
        }
    )*};
}

stateless! {
    /// max(x, 0).
    Relu => |x| x.f_relu()?;
    /// x·Φ(x), exact; nn.GELU.
    Gelu => |x| x.f_gelu("none")?;
    /// tanh(x).
    Tanh => |x| x.f_tanh()?;
    /// 1 / (1 + e⁻ˣ).
    Sigmoid => |x| x.f_sigmoid()?;
    /// x·σ(x).
    Silu => |x| x.f_silu()?;
    /// x.
    Identity => |x| x.shallow_clone();
    /// `[N, …]` to `[N, product]`.
    Flatten => |x| x.f_flatten(1, -1)?;
}

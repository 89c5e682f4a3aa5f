//! Layers without parameters.

use tch::Tensor;

use super::{Context, Fusable, Module, Visit, Visitor};
use crate::Result;

/// max(x, 0).
#[derive(Debug, Clone, Copy, Default)]
pub struct Relu;

impl Visit for Relu {
    fn visit(&self, _: &mut dyn Visitor) {}
}

impl Module for Relu {
    fn forward(&self, input: &Tensor, _: &Context) -> Result<Tensor> {
        Ok(input.f_relu()?)
    }

    fn fusable(&self) -> Fusable<'_> {
        Fusable::Relu
    }
}

/// x·Φ(x), exact; nn.GELU.
#[derive(Debug, Clone, Copy, Default)]
pub struct Gelu;

impl Visit for Gelu {
    fn visit(&self, _: &mut dyn Visitor) {}
}

impl Module for Gelu {
    fn forward(&self, input: &Tensor, _: &Context) -> Result<Tensor> {
        Ok(input.f_gelu("none")?)
    }

    fn fusable(&self) -> Fusable<'_> {
        Fusable::Gelu
    }
}

macro_rules! stateless {
    ($($(#[$doc:meta])* $name:ident => |$input:ident| $body:expr;)*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, Default)]
        pub struct $name;

        impl Visit for $name {
            fn visit(&self, _: &mut dyn Visitor) {}
        }

        impl Module for $name {
            fn forward(&self, $input: &Tensor, _: &Context) -> Result<Tensor> {
                Ok($body)
            }
        }
    )*};
}

stateless! {
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

//! Activation layers, and other layers without parameters.

mod options;
mod rrelu;
mod saturating;

pub use options::{
    Celu, CeluConfig, Elu, EluConfig, Glu, GluConfig, Hardshrink, HardshrinkConfig, Hardtanh,
    HardtanhConfig, LeakyRelu, LeakyReluConfig, LogSoftmax, Prelu, PreluConfig, Softmax, Softmin,
    Softplus, SoftplusConfig, Softshrink, SoftshrinkConfig, Threshold,
};
pub use rrelu::{Rrelu, RreluConfig};
pub(in crate::nn) use saturating::Saturating;

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

/// 0.5·x·(1 + tanh(√(2/π)·(x + 0.044715·x³))); nn.GELU(approximate="tanh").
#[derive(Debug, Clone, Copy, Default)]
pub struct GeluTanh;

impl Visit for GeluTanh {
    fn visit(&self, _: &mut dyn Visitor) {}
}

impl Module for GeluTanh {
    fn forward(&self, input: &Tensor, _: &Context) -> Result<Tensor> {
        Ok(input.f_gelu("tanh")?)
    }

    fn fusable(&self) -> Fusable<'_> {
        Fusable::GeluTanh
    }
}

macro_rules! stateless {
    ($($(#[$doc:meta])* $name:ident => |$input:ident $(, $cx:ident)?| $body:expr;)*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, Default)]
        pub struct $name;

        impl Visit for $name {
            fn visit(&self, _: &mut dyn Visitor) {}
        }

        impl Module for $name {
            fn forward(&self, $input: &Tensor, _cx: &Context) -> Result<Tensor> {
                $(let $cx = _cx;)?
                Ok($body)
            }
        }
    )*};
}

stateless! {
    /// tanh(x).
    Tanh => |x, cx| Saturating::Tanh.run("output", x, cx)?;
    /// 1 / (1 + e⁻ˣ).
    Sigmoid => |x, cx| Saturating::Sigmoid.run("output", x, cx)?;
    /// x·σ(x).
    Silu => |x| x.f_silu()?;
    /// min(max(x, 0), 6); nn.ReLU6.
    Relu6 => |x| x.f_relu6()?;
    /// x·tanh(softplus(x)); nn.Mish.
    Mish => |x| x.f_mish()?;
    /// x·min(max(x + 3, 0), 6)/6; nn.Hardswish.
    Hardswish => |x| x.f_hardswish()?;
    /// min(max(x + 3, 0), 6)/6; nn.Hardsigmoid.
    Hardsigmoid => |x| x.f_hardsigmoid()?;
    /// 1.0507·(max(x, 0) + min(1.6733·(eˣ - 1), 0)); nn.SELU.
    Selu => |x| x.f_selu()?;
    /// log(σ(x)); nn.LogSigmoid.
    LogSigmoid => |x| x.f_log_sigmoid()?;
    /// x/(1 + |x|); nn.Softsign.
    Softsign => |x, cx| {
        let divisor = cx.next_use(x)?.f_abs()?.f_add_scalar(1.0)?;
        cx.next_use(x)?.f_div(&cx.within("divisor", &divisor)?)?
    };
    /// x − tanh(x); nn.Tanhshrink.
    Tanhshrink => |x, cx| x.f_sub(&Saturating::Tanh.run("tanh", &cx.next_use(x)?, cx)?)?;
    /// Returns x; nn.Identity.
    Identity => |x| x.shallow_clone();
}

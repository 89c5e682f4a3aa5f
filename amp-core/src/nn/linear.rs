use tch::Tensor;

use super::{Child, Context, Fusable, Module, Op, Role, Visit, Visitor, init, output};
use crate::{Error, Result, ffi};

/// The options of a [`Linear`].
#[derive(Debug, Clone, Copy)]
pub struct LinearConfig {
    /// The number of input features, which is the size of the input's last dimension.
    pub in_features: i64,
    /// The number of output features, which is the size of the output's last dimension.
    pub out_features: i64,
    /// Whether the layer adds a bias.
    pub bias: bool,
}

impl LinearConfig {
    /// Returns options with a bias.
    pub fn new(in_features: i64, out_features: i64) -> Self {
        Self { in_features, out_features, bias: true }
    }
}

/// y = x·Wᵀ + b, for x of shape `[…, in_features]`; nn.Linear. Under autocast on CUDA, the gradient
/// of the weight is computed in f32. PyTorch instead computes it in 16 bits and then converts it to
/// f32.
#[derive(Debug)]
pub struct Linear {
    weight: Tensor,
    bias: Option<Tensor>,
}

impl Linear {
    /// Creates the layer. Draws the weight, and then the bias, from U(±1/√in_features).
    ///
    /// # Errors
    /// When a size is not positive.
    pub fn new(config: LinearConfig) -> Result<Self> {
        let LinearConfig { in_features, out_features, bias } = config;
        if in_features < 1 || out_features < 1 {
            return Err(Error::config(format!(
                "linear({in_features}, {out_features}): both sizes must be positive"
            )));
        }
        let weight = init::uniform(&[out_features, in_features], init::kaiming_bound(in_features))?;
        let bias = match bias {
            true => Some(init::uniform(&[out_features], init::bias_bound(in_features))?),
            false => None,
        };
        Ok(Self { weight, bias })
    }

    /// Returns the weight, `[out_features, in_features]`.
    pub fn weight(&self) -> &Tensor {
        &self.weight
    }

    pub(super) fn bias(&self) -> Option<&Tensor> {
        self.bias.as_ref()
    }

    /// Computes the layer, then the activation `behind`, and then dropout with probability `p`, in
    /// one fused operation. Returns `None` outside training, on the CPU, or if `p` is 1.
    pub(super) fn forward_activated(
        &self,
        input: &Tensor,
        cx: &Context,
        behind: ffi::FollowingOp,
        p: f64,
    ) -> Result<Option<Tensor>> {
        if !cx.is_training() || p >= 1.0 || !input.device().is_cuda() {
            return Ok(None);
        }
        ffi::linear_activated(input, &self.weight, self.bias.as_ref(), behind, p).map(Some)
    }

    /// Returns a copy of the layer: new parameters with the same values.
    pub(super) fn copied(&self) -> Result<Self> {
        let bias = self.bias.as_ref().map(init::copied).transpose()?;
        Ok(Self { weight: init::copied(&self.weight)?, bias })
    }

    /// Sets the bias to zero, as nn.MultiheadAttention does for its output projection.
    pub(super) fn with_zero_bias(mut self) -> Result<Self> {
        if let Some(bias) = &self.bias {
            self.bias = Some(init::constant(&bias.size(), 0.0)?);
        }
        Ok(self)
    }
}

/// Computes x·Wᵀ + b for tensors that do not belong to a layer; torch.nn.functional.linear. For
/// example, `nn::linear(&x, self.embedding.weight(), None)` is an output layer whose weight is the
/// table of an embedding. On CUDA this function is as fast as a [`Linear`], and gives the same
/// gradients.
///
/// | tensor | shape |
/// | --- | --- |
/// | `input` | `[…, in_features]` |
/// | `weight` | `[out_features, in_features]` |
/// | `bias` | `[out_features]` |
/// | output | `[…, out_features]` |
///
/// # Errors
/// When the shapes do not match.
pub fn linear(input: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    if output::is_deferred(input, weight, bias)? {
        return Ok(Tensor::new());
    }
    ffi::linear(input, weight, bias)
}

/// An activation that can be fused with the linear layer before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// max(x, 0).
    Relu,
    /// x·Φ(x), exact.
    Gelu,
    /// GELU approximated by tanh, as in GPT-2.
    GeluTanh,
}

impl Child<'_, Linear> {
    /// Computes the layer and then an activation. In training on CUDA, one fused operation
    /// computes the gradients of the activation and of the bias. With GELU, double backward works
    /// only on the CPU.
    ///
    /// ```no_run,standalone_crate
    /// use amp_core::{nn::Activation, prelude::*};
    ///
    /// #[derive(Module)]
    /// #[forward(|x| outer(&self.inner.activated(x, Activation::Gelu, cx)?))]
    /// struct Perceptron {
    ///     #[layer(linear(64, 256))]
    ///     inner: Linear,
    ///     #[layer(linear(256, 64))]
    ///     outer: Linear,
    /// }
    /// # fn main() {}
    /// ```
    ///
    /// # Errors
    /// When the layer fails; the error contains the layer's path.
    pub fn activated(
        &self,
        input: &Tensor,
        activation: Activation,
        cx: &Context,
    ) -> Result<Tensor> {
        let behind = match activation {
            Activation::Relu => ffi::FollowingOp::Relu,
            Activation::Gelu => ffi::FollowingOp::Gelu,
            Activation::GeluTanh => ffi::FollowingOp::GeluTanh,
        };
        let together =
            |[x]: [&Tensor; 1], cx: &Context| self.module().forward_activated(x, cx, behind, 0.0);
        let apart = |[x]: [&Tensor; 1], cx: &Context| {
            let output = self.forward(x, cx)?;
            Ok(match activation {
                Activation::Relu => output.f_relu()?,
                Activation::Gelu => output.f_gelu("none")?,
                Activation::GeluTanh => output.f_gelu("tanh")?,
            })
        };
        self.run_with(cx, [input], together, apart)
    }
}

impl Visit for Linear {
    fn visit(&self, visitor: &mut dyn Visitor) {
        visitor.tensor("weight", &self.weight, Role::Parameter);
        if let Some(bias) = &self.bias {
            visitor.tensor("bias", bias, Role::Parameter);
        }
    }
}

impl Module for Linear {
    fn forward(&self, input: &Tensor, cx: &Context) -> Result<Tensor> {
        let (weight, bias) = cx.weight_and_bias(&self.weight, self.bias.as_ref())?;
        ffi::linear(input, &weight, bias.as_deref())
    }

    fn op(&self) -> Op {
        Op::Matmul
    }

    fn fusable(&self) -> Fusable<'_> {
        Fusable::Linear(self)
    }
}

use tch::Tensor;

use super::{Context, Fusable, Module, Op, Role, Visit, Visitor, init};
use crate::{Error, Result, ffi};

/// The options of a [`Linear`].
#[derive(Debug, Clone, Copy)]
pub struct LinearConfig {
    /// Size of the last input dimension.
    pub in_features: i64,
    /// Size of the last output dimension.
    pub out_features: i64,
    /// Whether to add a bias.
    pub bias: bool,
}

impl LinearConfig {
    /// With a bias.
    pub fn new(in_features: i64, out_features: i64) -> Self {
        Self { in_features, out_features, bias: true }
    }
}

/// y = x·Wᵀ + b, for x of shape `[…, in_features]`; nn.Linear. Under autocast on CUDA the weight's
/// gradient is not rounded to 16 bits on its way to f32, as it is in PyTorch.
#[derive(Debug)]
pub struct Linear {
    weight: Tensor,
    bias: Option<Tensor>,
}

impl Linear {
    /// Draws weight, then bias, from U(±1/√in_features).
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

    /// The weight, `[out_features, in_features]`.
    pub fn weight(&self) -> &Tensor {
        &self.weight
    }

    /// With ReLU behind it, and dropout of probability `p`, in a training pass on CUDA; `None` elsewhere.
    pub(super) fn forward_relu(
        &self,
        input: &Tensor,
        cx: &Context,
        p: f64,
    ) -> Result<Option<Tensor>> {
        if !cx.is_training() || p >= 1.0 || !input.device().is_cuda() {
            return Ok(None);
        }
        ffi::linear_relu(input, &self.weight, self.bias.as_ref(), p).map(Some)
    }

    /// A layer of the same values.
    pub(super) fn copied(&self) -> Result<Self> {
        let bias = self.bias.as_ref().map(init::copied).transpose()?;
        Ok(Self { weight: init::copied(&self.weight)?, bias })
    }

    /// Sets the bias to zero, as nn.MultiheadAttention does to its projection.
    pub(super) fn with_zero_bias(mut self) -> Result<Self> {
        if let Some(bias) = &self.bias {
            self.bias = Some(init::constant(&bias.size(), 0.0)?);
        }
        Ok(self)
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
    fn forward(&self, input: &Tensor, _: &Context) -> Result<Tensor> {
        ffi::linear(input, &self.weight, self.bias.as_ref())
    }

    fn op(&self) -> Op {
        Op::Matmul
    }

    fn fusable(&self) -> Fusable<'_> {
        Fusable::Linear(self)
    }
}

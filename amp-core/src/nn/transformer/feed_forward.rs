use tch::Tensor;

use super::TransformerLayerConfig;
use crate::{
    Result,
    ffi::FollowingOp,
    nn::{Context, Dropout, Linear, LinearConfig, Module, Visit, Visitor, visit_child},
};

/// The activation function of a transformer's feed-forward network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FeedForward {
    /// max(x, 0).
    #[default]
    Relu,
    /// x·Φ(x), exact.
    Gelu,
    /// GELU, approximated by means of tanh, as in GPT-2.
    GeluTanh,
    /// silu(a)·b (Shazeer, arXiv:2002.05202; not in torch.nn). `linear1` has 2·dim_feedforward
    /// outputs. The first half of the outputs is a (the gate), and the second half is b.
    SwiGlu,
}

/// Computes linear2(dropout(activation(linear1(x)))). As in torch, its parameters are named as if
/// `linear1` and `linear2` were fields of the transformer layer.
#[derive(Debug)]
pub(super) struct Perceptron {
    linear1: Linear,
    dropout: Dropout,
    linear2: Linear,
    activation: FeedForward,
}

impl Perceptron {
    pub(super) fn new(config: &TransformerLayerConfig) -> Result<Self> {
        let TransformerLayerConfig { d_model, dim_feedforward, dropout, activation, bias, .. } =
            *config;
        let outputs = match activation {
            FeedForward::SwiGlu => 2 * dim_feedforward,
            _ => dim_feedforward,
        };
        let linear = |from, to| Linear::new(LinearConfig { bias, ..LinearConfig::new(from, to) });
        Ok(Self {
            linear1: linear(d_model, outputs)?,
            dropout: Dropout::new(dropout)?,
            linear2: linear(dim_feedforward, d_model)?,
            activation,
        })
    }

    pub(super) fn copied(&self) -> Result<Self> {
        let Self { dropout, activation, .. } = *self;
        Ok(Self {
            linear1: self.linear1.copied()?,
            linear2: self.linear2.copied()?,
            dropout,
            activation,
        })
    }

    /// Runs the network. `cx` must have the path of the transformer layer, so that `linear1` and
    /// `linear2` run as children of that layer.
    pub(super) fn forward(&self, x: &Tensor, cx: &Context) -> Result<Tensor> {
        cx.call("linear2", None, &self.linear2, &self.expand(x, cx)?)
    }

    /// Computes the first linear layer and the activation function.
    fn expand(&self, x: &Tensor, cx: &Context) -> Result<Tensor> {
        let p = self.dropout.active(cx);
        let behind = match self.activation {
            FeedForward::Relu => Some(FollowingOp::Relu),
            FeedForward::Gelu => Some(FollowingOp::Gelu),
            FeedForward::GeluTanh => Some(FollowingOp::GeluTanh),
            FeedForward::SwiGlu => None,
        };
        let together = |[x]: [&Tensor; 1], cx: &Context| match behind {
            Some(behind) => self.linear1.forward_activated(x, cx, behind, p),
            None => Ok(None),
        };
        let apart = |[x]: [&Tensor; 1], cx: &Context| self.expand_apart(x, cx);
        cx.call_with("linear1", &self.linear1, [x], together, apart)
    }

    fn expand_apart(&self, x: &Tensor, cx: &Context) -> Result<Tensor> {
        let inner = cx.call("linear1", None, &self.linear1, x)?;
        let inner = match self.activation {
            FeedForward::Relu => inner.f_relu()?,
            FeedForward::Gelu => inner.f_gelu("none")?,
            FeedForward::GeluTanh => inner.f_gelu("tanh")?,
            FeedForward::SwiGlu => {
                let halves = inner.f_chunk(2, -1)?;
                cx.within("gate", &halves[0].f_silu()?)?.f_mul(&halves[1])?
            }
        };
        self.dropout.forward(&inner, cx)
    }
}

impl Visit for Perceptron {
    fn visit(&self, visitor: &mut dyn Visitor) {
        visit_child(visitor, "linear1", None, &self.linear1);
        visit_child(visitor, "linear2", None, &self.linear2);
    }
}

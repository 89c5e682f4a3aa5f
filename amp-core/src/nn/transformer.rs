use std::sync::Arc;

use tch::Tensor;

use super::{
    Context, Dropout, LayerNorm, LayerNormConfig, Linear, LinearConfig, Module, MultiheadAttention,
    MultiheadAttentionConfig, Visit, Visitor, visit_child,
};
use crate::Result;

/// The options of a [`TransformerEncoderLayer`]; the defaults are PyTorch's.
#[derive(Debug, Clone, Copy)]
pub struct TransformerEncoderLayerConfig {
    /// Model width.
    pub d_model: i64,
    /// Attention heads.
    pub nhead: i64,
    /// Width of the feed-forward part.
    pub dim_feedforward: i64,
    /// Dropout in attention, feed-forward and on both residual branches.
    pub dropout: f64,
    /// The activation of the feed-forward part.
    pub activation: FeedForward,
    /// Whether the norms come before attention and feed-forward (pre-norm, as in GPT-2) instead of after
    /// the residuals.
    pub norm_first: bool,
    /// Whether attention is causal.
    pub causal: bool,
}

/// The activation of a transformer's feed-forward part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FeedForward {
    /// max(x, 0).
    #[default]
    Relu,
    /// x·Φ(x), exact.
    Gelu,
    /// GELU by tanh, as GPT-2 has it.
    GeluTanh,
}

impl TransformerEncoderLayerConfig {
    /// Feed-forward 2048, dropout 0.1, ReLU, norms behind the residuals, not causal.
    pub fn new(d_model: i64, nhead: i64) -> Self {
        Self {
            d_model,
            nhead,
            dim_feedforward: 2048,
            dropout: 0.1,
            activation: FeedForward::Relu,
            norm_first: false,
            causal: false,
        }
    }
}

/// Attention and feed-forward, each with a residual and a layer norm behind it or before it;
/// nn.TransformerEncoderLayer with batch_first, on `[N, L, d_model]`.
#[derive(Debug)]
pub struct TransformerEncoderLayer(Arc<Parts>);

#[derive(Debug)]
struct Parts {
    self_attn: MultiheadAttention,
    linear1: Linear,
    dropout: Dropout,
    linear2: Linear,
    norm1: LayerNorm,
    norm2: LayerNorm,
    activation: FeedForward,
    norm_first: bool,
}

impl TransformerEncoderLayer {
    /// Draws its parts in PyTorch's order.
    ///
    /// # Errors
    /// When `nhead` does not divide `d_model`, or `dropout` is not a probability.
    #[expect(
        clippy::arc_with_non_send_sync,
        reason = "the autograd graph may be freed on a thread of libtorch's"
    )]
    pub fn new(config: TransformerEncoderLayerConfig) -> Result<Self> {
        let TransformerEncoderLayerConfig {
            d_model,
            nhead,
            dim_feedforward,
            dropout,
            activation,
            norm_first,
            causal,
        } = config;
        Ok(Self(Arc::new(Parts {
            self_attn: MultiheadAttention::new(MultiheadAttentionConfig {
                dropout,
                causal,
                ..MultiheadAttentionConfig::new(d_model, nhead)
            })?,
            linear1: Linear::new(LinearConfig::new(d_model, dim_feedforward))?,
            dropout: Dropout::new(dropout)?,
            linear2: Linear::new(LinearConfig::new(dim_feedforward, d_model))?,
            norm1: LayerNorm::new(LayerNormConfig::new(d_model))?,
            norm2: LayerNorm::new(LayerNormConfig::new(d_model))?,
            activation,
            norm_first,
        })))
    }
}

impl Visit for TransformerEncoderLayer {
    fn visit(&self, visitor: &mut dyn Visitor) {
        self.0.visit(visitor);
    }
}

impl Module for TransformerEncoderLayer {
    fn forward(&self, input: &Tensor, cx: &Context) -> Result<Tensor> {
        self.0.forward(input, cx)
    }

    fn shared(&self) -> Option<Arc<dyn Module>> {
        Some(self.0.clone())
    }
}

impl Parts {
    /// The first half of the feed-forward part.
    fn expand(&self, x: &Tensor, cx: &Context) -> Result<Tensor> {
        let p = self.dropout.active(cx);
        let together = || match self.activation {
            FeedForward::Relu => self.linear1.forward_relu(x, cx, p),
            FeedForward::Gelu | FeedForward::GeluTanh => Ok(None),
        };
        if let Some(inner) = cx.call_with("linear1", &self.linear1, together)? {
            return Ok(inner);
        }
        let inner = cx.call("linear1", None, &self.linear1, x)?;
        let inner = match self.activation {
            FeedForward::Relu => inner.f_relu()?,
            FeedForward::Gelu => inner.f_gelu("none")?,
            FeedForward::GeluTanh => inner.f_gelu("tanh")?,
        };
        self.dropout.forward(&inner, cx)
    }

    /// x + dropout(attention(norm(x))), then the same with the feed-forward part.
    fn forward_norm_first(&self, input: &Tensor, cx: &Context) -> Result<Tensor> {
        let normalised = cx.call("norm1", None, &self.norm1, input)?;
        let attended = cx.call("self_attn", None, &self.self_attn, &normalised)?;
        let x = input.f_add(&self.dropout.forward(&attended, cx)?)?;
        let normalised = cx.call("norm2", None, &self.norm2, &x)?;
        let inner = self.expand(&normalised, cx)?;
        let outer = cx.call("linear2", None, &self.linear2, &inner)?;
        Ok(x.f_add(&self.dropout.forward(&outer, cx)?)?)
    }

    /// norm(residual + dropout(branch)), where `name` is the norm's.
    fn add_and_normalise(
        &self,
        name: &str,
        norm: &LayerNorm,
        residual: &Tensor,
        branch: &Tensor,
        cx: &Context,
    ) -> Result<Tensor> {
        let p = self.dropout.active(cx);
        let together = || norm.forward_sum(residual, branch, cx, p);
        match cx.call_with(name, norm, together)? {
            Some(output) => Ok(output),
            None => {
                let branch = self.dropout.forward(branch, cx)?;
                cx.call(name, None, norm, &residual.f_add(&branch)?)
            }
        }
    }
}

impl Visit for Parts {
    fn visit(&self, visitor: &mut dyn Visitor) {
        visit_child(visitor, "self_attn", None, &self.self_attn);
        visit_child(visitor, "linear1", None, &self.linear1);
        visit_child(visitor, "linear2", None, &self.linear2);
        visit_child(visitor, "norm1", None, &self.norm1);
        visit_child(visitor, "norm2", None, &self.norm2);
    }
}

impl Module for Parts {
    fn forward(&self, input: &Tensor, cx: &Context) -> Result<Tensor> {
        if self.norm_first {
            return self.forward_norm_first(input, cx);
        }
        let attended = cx.call("self_attn", None, &self.self_attn, input)?;
        let x = self.add_and_normalise("norm1", &self.norm1, input, &attended, cx)?;
        let inner = self.expand(&x, cx)?;
        let outer = cx.call("linear2", None, &self.linear2, &inner)?;
        self.add_and_normalise("norm2", &self.norm2, &x, &outer, cx)
    }
}

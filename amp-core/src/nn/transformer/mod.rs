//! Transformer layers, stacks of such layers, and the complete transformer of encoder and decoder.

mod decoder;
mod encoder;
mod feed_forward;
#[cfg(test)]
mod tests;
mod whole;

pub use decoder::{TransformerDecoder, TransformerDecoderLayer};
pub use encoder::{TransformerEncoder, TransformerEncoderLayer};
pub use feed_forward::FeedForward;
pub use whole::{Transformer, TransformerConfig};

use tch::Tensor;

use super::{
    Context, Dropout, LayerNorm, LayerNormConfig, Module, MultiheadAttention,
    MultiheadAttentionConfig,
};
use crate::{Error, Result};

/// The options of a transformer layer; the defaults are PyTorch's.
#[derive(Debug, Clone, Copy)]
pub struct TransformerLayerConfig {
    /// The number of features of each position.
    pub d_model: i64,
    /// The number of attention heads.
    pub nhead: i64,
    /// The number of hidden features of the feed-forward network.
    pub dim_feedforward: i64,
    /// The probability of dropout in the attention, in the feed-forward network and at the end of
    /// each residual branch.
    pub dropout: f64,
    /// The activation function of the feed-forward network.
    pub activation: FeedForward,
    /// The number that layer norms add to the variance, so that the divisor is not zero.
    pub layer_norm_eps: f64,
    /// Whether the layer norms come before the attention and the feed-forward network (pre-norm, as
    /// in GPT-2). Otherwise the layer norms come after the residual connections.
    pub norm_first: bool,
    /// Whether a position attends only to itself and earlier positions of its own sequence.
    pub causal: bool,
    /// Whether the attention, the linear layers and the layer norms have biases.
    pub bias: bool,
}

/// The options of a [`TransformerEncoderLayer`].
pub type TransformerEncoderLayerConfig = TransformerLayerConfig;
/// The options of a [`TransformerDecoderLayer`].
pub type TransformerDecoderLayerConfig = TransformerLayerConfig;

impl TransformerLayerConfig {
    /// Returns options with 2048 hidden features in the feed-forward network, dropout 0.1, ReLU,
    /// `layer_norm_eps` 1e-5, norms after the residual connections, biases, and attention that is
    /// not causal.
    pub fn new(d_model: i64, nhead: i64) -> Self {
        Self {
            d_model,
            nhead,
            dim_feedforward: 2048,
            dropout: 0.1,
            activation: FeedForward::Relu,
            layer_norm_eps: 1e-5,
            norm_first: false,
            causal: false,
            bias: true,
        }
    }

    fn attention(&self, causal: bool) -> Result<MultiheadAttention> {
        MultiheadAttention::new(MultiheadAttentionConfig {
            dropout: self.dropout,
            causal,
            bias: self.bias,
            ..MultiheadAttentionConfig::new(self.d_model, self.nhead)
        })
    }

    fn layer_norm(&self) -> Result<LayerNorm> {
        LayerNorm::new(LayerNormConfig {
            eps: self.layer_norm_eps,
            bias: self.bias,
            ..LayerNormConfig::new(self.d_model)
        })
    }
}

/// The options of a [`TransformerEncoder`] or [`TransformerDecoder`]. The defaults are those of
/// PyTorch's layers.
#[derive(Debug, Clone, Copy)]
pub struct TransformerStackConfig {
    /// The number of features of each position.
    pub d_model: i64,
    /// The number of attention heads.
    pub nhead: i64,
    /// The number of layers.
    pub num_layers: i64,
    /// The number of hidden features of the feed-forward networks.
    pub dim_feedforward: i64,
    /// See [`TransformerLayerConfig`].
    pub dropout: f64,
    /// See [`TransformerLayerConfig`].
    pub activation: FeedForward,
    /// The number that layer norms add to the variance, so that the divisor is not zero.
    pub layer_norm_eps: f64,
    /// See [`TransformerLayerConfig`].
    pub norm_first: bool,
    /// See [`TransformerLayerConfig`].
    pub causal: bool,
    /// As [`TransformerLayerConfig::bias`]. The option also applies to the final layer norm.
    pub bias: bool,
    /// Whether a layer norm follows the last layer. Set this option if `norm_first` is set, because
    /// in this case the last layer does not normalize its output.
    pub norm: bool,
}

/// The options of a [`TransformerEncoder`].
pub type TransformerEncoderConfig = TransformerStackConfig;
/// The options of a [`TransformerDecoder`].
pub type TransformerDecoderConfig = TransformerStackConfig;

impl TransformerStackConfig {
    /// Returns options with the defaults of [`TransformerLayerConfig::new`] for each layer, and
    /// without a layer norm after the last layer.
    pub fn new(d_model: i64, nhead: i64, num_layers: i64) -> Self {
        let layer = TransformerLayerConfig::new(d_model, nhead);
        Self {
            d_model,
            nhead,
            num_layers,
            dim_feedforward: layer.dim_feedforward,
            dropout: layer.dropout,
            activation: layer.activation,
            layer_norm_eps: layer.layer_norm_eps,
            norm_first: layer.norm_first,
            causal: layer.causal,
            bias: layer.bias,
            norm: false,
        }
    }

    fn layer(&self) -> TransformerLayerConfig {
        TransformerLayerConfig {
            d_model: self.d_model,
            nhead: self.nhead,
            dim_feedforward: self.dim_feedforward,
            dropout: self.dropout,
            activation: self.activation,
            layer_norm_eps: self.layer_norm_eps,
            norm_first: self.norm_first,
            causal: self.causal,
            bias: self.bias,
        }
    }

    /// Builds `num_layers` layers and, if the options ask for it, a final layer norm. As in torch,
    /// all layers after the first are copies of it, with equal weights.
    fn build<L>(
        &self,
        layer: impl FnOnce(TransformerLayerConfig) -> Result<L>,
        copied: impl Fn(&L) -> Result<L>,
    ) -> Result<(Vec<L>, Option<LayerNorm>)> {
        if self.num_layers < 1 {
            return Err(Error::config(format!(
                "transformer: {} layers, but there must be at least 1",
                self.num_layers
            )));
        }
        let first = layer(self.layer())?;
        let mut layers = Vec::new();
        for _ in 1..self.num_layers {
            layers.push(copied(&first)?);
        }
        layers.insert(0, first);
        Ok((layers, self.norm.then(|| self.layer().layer_norm()).transpose()?))
    }
}

/// Computes norm(residual + dropout(branch)). `name` is the name of the norm.
fn add_and_normalise(
    name: &str,
    norm: &LayerNorm,
    dropout: &Dropout,
    residual: &Tensor,
    branch: &Tensor,
    cx: &Context,
) -> Result<Tensor> {
    let p = dropout.active(cx);
    let together =
        |[residual, branch]: [&Tensor; 2], cx: &Context| norm.forward_sum(residual, branch, cx, p);
    let apart = |[residual, branch]: [&Tensor; 2], cx: &Context| {
        let branch = dropout.forward(branch, cx)?;
        cx.call(name, None, norm, &residual.f_add(&branch)?)
    };
    cx.call_with(name, norm, [residual, branch], together, apart)
}

use tch::Tensor;

use super::{
    FeedForward, TransformerDecoder, TransformerEncoder, TransformerLayerConfig,
    TransformerStackConfig,
};
use crate::{
    Result,
    nn::{AttentionMask, Child, Context, Forward, Init, Visit, Visitor, parameters, visit_child},
};

/// The options of a [`Transformer`]. The defaults are those of nn.Transformer.
#[derive(Debug, Clone, Copy)]
pub struct TransformerConfig {
    /// The number of features of each position.
    pub d_model: i64,
    /// The number of attention heads.
    pub nhead: i64,
    /// The number of layers of the encoder.
    pub num_encoder_layers: i64,
    /// The number of layers of the decoder.
    pub num_decoder_layers: i64,
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
    /// Whether a position of the target attends only to itself and to earlier positions (torch's
    /// tgt_is_causal). This applies in addition to the target's mask.
    pub causal: bool,
    /// See [`TransformerLayerConfig`].
    pub bias: bool,
}

impl TransformerConfig {
    /// Returns options with 512 features, 8 heads, 6 layers each in the encoder and the decoder,
    /// and PyTorch's defaults for the layers.
    pub fn new() -> Self {
        let TransformerLayerConfig {
            d_model,
            nhead,
            dim_feedforward,
            dropout,
            activation,
            layer_norm_eps,
            norm_first,
            causal,
            bias,
        } = TransformerLayerConfig::new(512, 8);
        Self {
            d_model,
            nhead,
            num_encoder_layers: 6,
            num_decoder_layers: 6,
            dim_feedforward,
            dropout,
            activation,
            layer_norm_eps,
            norm_first,
            causal,
            bias,
        }
    }

    /// Returns the options of the encoder or the decoder. The encoder and the decoder end with a
    /// layer norm.
    fn stack(&self, num_layers: i64, causal: bool) -> TransformerStackConfig {
        TransformerStackConfig {
            d_model: self.d_model,
            nhead: self.nhead,
            num_layers,
            dim_feedforward: self.dim_feedforward,
            dropout: self.dropout,
            activation: self.activation,
            layer_norm_eps: self.layer_norm_eps,
            norm_first: self.norm_first,
            causal,
            bias: self.bias,
            norm: true,
        }
    }
}

impl Default for TransformerConfig {
    fn default() -> Self {
        Self::new()
    }
}

/// An encoder that reads a source, and a decoder that reads a target and attends to the encoder's
/// output (Vaswani et al., arXiv:1706.03762); nn.Transformer with batch_first. The encoder and the
/// decoder end with a layer norm. The parameters have torch's names:
/// `encoder.layers.0.self_attn.in_proj_weight`, `decoder.norm.bias` and so on.
///
/// | input | shape |
/// | --- | --- |
/// | source | `[N, S, d_model]` |
/// | target | `[N, T, d_model]` |
/// | mask of the source (src_mask, src_key_padding_mask) | [`AttentionMask`] |
/// | mask of the target (tgt_mask, tgt_key_padding_mask) | [`AttentionMask`] |
/// | mask of the encoder's output (memory_mask, memory_key_padding_mask) | [`AttentionMask`] |
/// | output | `[N, T, d_model]` |
///
/// ```no_run,standalone_crate
/// use amp_core::{
///     nn::{AttentionMask, Transformer},
///     prelude::*,
/// };
///
/// /// Translates sentences of which some words are padding.
/// #[derive(Module)]
/// #[forward(|sentence, translation: &Tensor, padding: &Tensor| {
///     let padding = AttentionMask::padding(padding);
///     let (source, target) = (words(sentence)?, words(translation)?);
///     head(&transformer(&source, &target, &padding, &AttentionMask::none(), &padding)?)
/// })]
/// struct Translate {
///     #[layer(embedding(10_000, 64))]
///     words: Embedding,
///     #[layer(transformer(d_model = 64, nhead = 4, num_encoder_layers = 2, num_decoder_layers = 2, causal = true))]
///     transformer: Transformer,
///     #[layer(linear(64, 10_000))]
///     head: Linear,
/// }
/// # fn main() {}
/// ```
///
/// To generate text, run the encoder and the decoder separately: `self.transformer.encoder()` once,
/// and `self.transformer.decoder()` for each new token.
#[derive(Debug)]
pub struct Transformer {
    encoder: TransformerEncoder,
    decoder: TransformerDecoder,
}

impl Transformer {
    /// Builds the encoder and the decoder. Then draws all parameters with at least two dimensions
    /// again from Xavier's uniform distribution, as torch does. The layers therefore have different
    /// initial weights, unlike the layers of a [`TransformerEncoder`] outside of a `Transformer`.
    ///
    /// # Errors
    /// When `nhead` does not divide `d_model`, `dropout` is not a probability, or the encoder or
    /// the decoder has no layers.
    pub fn new(config: TransformerConfig) -> Result<Self> {
        let transformer = Self {
            encoder: TransformerEncoder::new(config.stack(config.num_encoder_layers, false))?,
            decoder: TransformerDecoder::new(
                config.stack(config.num_decoder_layers, config.causal),
            )?,
        };
        for parameter in parameters(&transformer) {
            if parameter.tensor.dim() > 1 {
                Init::XavierUniform { gain: 1.0 }.fill(&parameter.tensor)?;
            }
        }
        Ok(transformer)
    }

    /// Returns the encoder.
    pub fn encoder(&self) -> &TransformerEncoder {
        &self.encoder
    }

    /// Returns the decoder.
    pub fn decoder(&self) -> &TransformerDecoder {
        &self.decoder
    }
}

impl<'m> Child<'m, Transformer> {
    /// Returns the encoder as a child module: a call adds `encoder` to the module path and applies
    /// the encoder's precision region.
    pub fn encoder(&self) -> Child<'m, TransformerEncoder> {
        self.part("encoder", |transformer| &transformer.encoder)
    }

    /// Returns the decoder as a child module: a call adds `decoder` to the module path and applies
    /// the decoder's precision region.
    pub fn decoder(&self) -> Child<'m, TransformerDecoder> {
        self.part("decoder", |transformer| &transformer.decoder)
    }
}

impl Visit for Transformer {
    fn visit(&self, visitor: &mut dyn Visitor) {
        visit_child(visitor, "encoder", None, &self.encoder);
        visit_child(visitor, "decoder", None, &self.decoder);
    }
}

/// The source, the target, the mask of the source, the mask of the target, and the mask of the
/// encoder's output.
type Inputs<'a> = (&'a Tensor, &'a Tensor, &'a AttentionMask, &'a AttentionMask, &'a AttentionMask);

impl Forward for Transformer {
    type Input = Inputs<'static>;
    type Output = Tensor;

    fn forward_with(
        &self,
        (source, target, source_mask, target_mask, memory_mask): Inputs<'_>,
        cx: &Context,
    ) -> Result<Tensor> {
        let encoder = Child::new("encoder", None, &self.encoder);
        let memory = encoder.forward_masked(source, source_mask, cx)?;
        let decoder = Child::new("decoder", None, &self.decoder);
        decoder.forward_with((target, &memory, target_mask, memory_mask), cx)
    }
}

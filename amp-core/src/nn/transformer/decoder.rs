use tch::Tensor;

use super::{
    TransformerDecoderConfig, TransformerDecoderLayerConfig, add_and_normalise,
    feed_forward::Perceptron,
};
use crate::{
    Result,
    nn::{
        AttentionMask, Child, Context, Dropout, Forward, LayerNorm, Module, MultiheadAttention,
        Visit, Visitor, visit_child,
    },
};

/// A decoder layer: self-attention of the target, attention of the target to the memory (the
/// encoder's output), and a feed-forward network. Each of the three has a residual connection and a
/// layer norm, whose place the option `norm_first` selects; nn.TransformerDecoderLayer with
/// batch_first.
///
/// | input | shape |
/// | --- | --- |
/// | target | `[N, L, d_model]` |
/// | memory, an encoder's output | `[N, S, d_model]` |
/// | mask of the target's self-attention (tgt_mask, tgt_key_padding_mask) | [`AttentionMask`] |
/// | mask of the memory (memory_mask, memory_key_padding_mask) | [`AttentionMask`] |
/// | output | `[N, L, d_model]` |
///
/// The option `causal` applies only to the target's self-attention, in addition to the mask of that
/// attention.
///
/// ```no_run,standalone_crate
/// use amp_core::{
///     nn::{AttentionMask, TransformerDecoderLayer},
///     prelude::*,
/// };
///
/// /// Decodes a translation so far and the sentence, in which some words are padding.
/// #[derive(Module)]
/// #[forward(|target, sentence: &Tensor, padding: &Tensor| {
///     decoder(target, sentence, &AttentionMask::none(), &AttentionMask::padding(padding))
/// })]
/// struct Translate {
///     #[layer(transformer_decoder_layer(64, 8, causal = true))]
///     decoder: TransformerDecoderLayer,
/// }
/// # fn main() {}
/// ```
#[derive(Debug)]
pub struct TransformerDecoderLayer {
    self_attn: MultiheadAttention,
    multihead_attn: MultiheadAttention,
    feed_forward: Perceptron,
    dropout: Dropout,
    norm1: LayerNorm,
    norm2: LayerNorm,
    norm3: LayerNorm,
    norm_first: bool,
}

impl TransformerDecoderLayer {
    /// Creates the layer. Draws the weights of the attentions and of the feed-forward network in
    /// PyTorch's order, so that the same seed gives the same weights as in PyTorch.
    ///
    /// # Errors
    /// When `nhead` does not divide `d_model`, or `dropout` is not a probability.
    pub fn new(config: TransformerDecoderLayerConfig) -> Result<Self> {
        Ok(Self {
            self_attn: config.attention(config.causal)?,
            multihead_attn: config.attention(false)?,
            feed_forward: Perceptron::new(&config)?,
            dropout: Dropout::new(config.dropout)?,
            norm1: config.layer_norm()?,
            norm2: config.layer_norm()?,
            norm3: config.layer_norm()?,
            norm_first: config.norm_first,
        })
    }

    fn copied(&self) -> Result<Self> {
        let Self { dropout, norm_first, .. } = *self;
        Ok(Self {
            self_attn: self.self_attn.copied()?,
            multihead_attn: self.multihead_attn.copied()?,
            feed_forward: self.feed_forward.copied()?,
            dropout,
            norm1: self.norm1.copied()?,
            norm2: self.norm2.copied()?,
            norm3: self.norm3.copied()?,
            norm_first,
        })
    }
}

impl Visit for TransformerDecoderLayer {
    fn visit(&self, visitor: &mut dyn Visitor) {
        visit_child(visitor, "self_attn", None, &self.self_attn);
        visit_child(visitor, "multihead_attn", None, &self.multihead_attn);
        self.feed_forward.visit(visitor);
        visit_child(visitor, "norm1", None, &self.norm1);
        visit_child(visitor, "norm2", None, &self.norm2);
        visit_child(visitor, "norm3", None, &self.norm3);
    }
}

/// The target, the memory, the mask of the target, and the mask of the memory.
type Inputs<'a> = (&'a Tensor, &'a Tensor, &'a AttentionMask, &'a AttentionMask);

impl Forward for TransformerDecoderLayer {
    type Input = Inputs<'static>;
    type Output = Tensor;

    fn forward_with(
        &self,
        (target, memory, target_mask, memory_mask): Inputs<'_>,
        cx: &Context,
    ) -> Result<Tensor> {
        let attend = |x: &Tensor| match target_mask.is_none() {
            true => cx.call("self_attn", None, &self.self_attn, x),
            false => {
                Child::new("self_attn", None, &self.self_attn).attend(x, x, x, target_mask, cx)
            }
        };
        let cross_attend = |x: &Tensor| {
            let child = Child::new("multihead_attn", None, &self.multihead_attn);
            child.attend(x, memory, memory, memory_mask, cx)
        };
        if self.norm_first {
            let [norm1, norm2, norm3] =
                [("norm1", &self.norm1), ("norm2", &self.norm2), ("norm3", &self.norm3)]
                    .map(|(name, norm)| Child::new(name, None, norm));
            let dropped = |branch: Result<Tensor>| self.dropout.forward(&branch?, cx);
            let x = norm1.residual_of_products(target, |x| dropped(attend(x)), cx)?;
            let x = norm2.residual_of_products(&x, |x| dropped(cross_attend(x)), cx)?;
            return norm3.residual_of_products(
                &x,
                |x| dropped(self.feed_forward.forward(x, cx)),
                cx,
            );
        }
        let add = |name: &str, norm, x: &Tensor, branch: &Tensor| {
            add_and_normalise(name, norm, &self.dropout, x, branch, cx)
        };
        let x = add("norm1", &self.norm1, target, &attend(target)?)?;
        let x = add("norm2", &self.norm2, &x, &cross_attend(&x)?)?;
        add("norm3", &self.norm3, &x, &self.feed_forward.forward(&x, cx)?)
    }
}

/// Several [`TransformerDecoderLayer`]s one after the other, and optionally a layer norm;
/// nn.TransformerDecoder with batch_first. The inputs are those of a single
/// [`TransformerDecoderLayer`]. As in torch, all layers have the same initial weights.
#[derive(Debug)]
pub struct TransformerDecoder {
    layers: Vec<TransformerDecoderLayer>,
    norm: Option<LayerNorm>,
}

impl TransformerDecoder {
    /// Creates the layers. Draws the weights of the first layer, and copies them to the other
    /// layers.
    ///
    /// # Errors
    /// When [`TransformerDecoderLayer::new`] would fail, or when there are no layers.
    pub fn new(config: TransformerDecoderConfig) -> Result<Self> {
        let (layers, norm) =
            config.build(TransformerDecoderLayer::new, TransformerDecoderLayer::copied)?;
        Ok(Self { layers, norm })
    }
}

impl Visit for TransformerDecoder {
    fn visit(&self, visitor: &mut dyn Visitor) {
        visit_child(visitor, "layers", None, &self.layers);
        if let Some(norm) = &self.norm {
            visit_child(visitor, "norm", None, norm);
        }
    }
}

impl Forward for TransformerDecoder {
    type Input = Inputs<'static>;
    type Output = Tensor;

    fn forward_with(
        &self,
        (target, memory, target_mask, memory_mask): Inputs<'_>,
        cx: &Context,
    ) -> Result<Tensor> {
        let mut x = target.shallow_clone();
        let (target_mask, memory_mask) = (&target_mask.for_layers(), &memory_mask.for_layers());
        for layer in Child::list("layers", None, &self.layers) {
            x = layer.forward_with((&x, memory, target_mask, memory_mask), cx)?;
        }
        match &self.norm {
            Some(norm) => cx.call("norm", None, norm, &x),
            None => Ok(x),
        }
    }
}

use std::sync::Arc;

use tch::Tensor;

use super::{
    TransformerEncoderConfig, TransformerEncoderLayerConfig, add_and_normalise,
    feed_forward::Perceptron,
};
use crate::{
    Result,
    nn::{
        AttentionMask, Checkpoint, Child, Context, Dropout, Forward, LayerNorm, Module,
        MultiheadAttention, Visit, Visitor, visit_child,
    },
};

/// An encoder layer: self-attention and a feed-forward network on `[N, L, d_model]`. Each of the
/// two has a residual connection and a layer norm, whose place the option `norm_first` selects;
/// nn.TransformerEncoderLayer with batch_first.
///
/// [`Module::forward`] runs the layer without a mask. To pass a mask, call
/// [`forward_masked`](Self::forward_masked):
///
/// ```no_run,standalone_crate
/// use amp_core::{nn::AttentionMask, prelude::*};
///
/// #[derive(Module)]
/// #[forward(|x, padding: &Tensor| {
///     let (mut x, mask) = (x.shallow_clone(), AttentionMask::padding(padding).for_layers());
///     for layer in &self.layers {
///         x = layer.forward_masked(&x, &mask, cx)?;
///     }
///     Ok(x)
/// })]
/// struct Encoder {
///     #[layer(repeat(6, |_| transformer_encoder_layer(64, 8, activation = gelu)))]
///     layers: Vec<TransformerEncoderLayer>,
/// }
/// # fn main() {}
/// ```
#[derive(Debug)]
pub struct TransformerEncoderLayer(Arc<Parts>);

#[derive(Debug)]
struct Parts {
    self_attn: MultiheadAttention,
    feed_forward: Perceptron,
    dropout: Dropout,
    norm1: LayerNorm,
    norm2: LayerNorm,
    norm_first: bool,
}

impl TransformerEncoderLayer {
    /// Creates the layer. Draws the weights of the attention and of the feed-forward network in
    /// PyTorch's order, so that the same seed gives the same weights as in PyTorch.
    ///
    /// # Errors
    /// When `nhead` does not divide `d_model`, or `dropout` is not a probability.
    pub fn new(config: TransformerEncoderLayerConfig) -> Result<Self> {
        Ok(Self::of(Parts {
            self_attn: config.attention(config.causal)?,
            feed_forward: Perceptron::new(&config)?,
            dropout: Dropout::new(config.dropout)?,
            norm1: config.layer_norm()?,
            norm2: config.layer_norm()?,
            norm_first: config.norm_first,
        }))
    }

    #[expect(
        clippy::arc_with_non_send_sync,
        reason = "the autograd graph may be freed on one of libtorch's threads"
    )]
    fn of(parts: Parts) -> Self {
        Self(Arc::new(parts))
    }

    fn copied(&self) -> Result<Self> {
        let Parts { self_attn, feed_forward, dropout, norm1, norm2, norm_first } = &*self.0;
        Ok(Self::of(Parts {
            self_attn: self_attn.copied()?,
            feed_forward: feed_forward.copied()?,
            dropout: *dropout,
            norm1: norm1.copied()?,
            norm2: norm2.copied()?,
            norm_first: *norm_first,
        }))
    }

    /// Returns a module with one input, which runs this layer with `mask`.
    fn masked(&self, mask: &AttentionMask) -> Masked {
        Masked { parts: self.0.clone(), mask: mask.shared() }
    }

    /// Runs the layer with `mask` in its attention. The mask combines torch's src_mask and
    /// src_key_padding_mask. In a model, call `forward_masked` of the layer's [`Child`] instead. It
    /// adds the layer's name to the module path and applies the layer's precision region.
    ///
    /// # Errors
    /// When the input is not `[N, L, d_model]`, or the mask's shape does not match the input.
    pub fn forward_masked(
        &self,
        input: &Tensor,
        mask: &AttentionMask,
        cx: &Context,
    ) -> Result<Tensor> {
        self.0.run(input, mask, cx)
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
    fn run(&self, input: &Tensor, mask: &AttentionMask, cx: &Context) -> Result<Tensor> {
        let attend = |x: &Tensor| match mask.is_none() {
            true => cx.call("self_attn", None, &self.self_attn, x),
            false => Child::new("self_attn", None, &self.self_attn).attend(x, x, x, mask, cx),
        };
        if self.norm_first {
            let [norm1, norm2] = [("norm1", &self.norm1), ("norm2", &self.norm2)]
                .map(|(name, norm)| Child::new(name, None, norm));
            let x =
                norm1.residual_of_products(input, |x| self.dropout.forward(&attend(x)?, cx), cx)?;
            let expanded = |x: &Tensor| self.feed_forward.forward(x, cx);
            return norm2.residual_of_products(&x, |x| self.dropout.forward(&expanded(x)?, cx), cx);
        }
        let attended = attend(input)?;
        let x = add_and_normalise("norm1", &self.norm1, &self.dropout, input, &attended, cx)?;
        let outer = self.feed_forward.forward(&x, cx)?;
        add_and_normalise("norm2", &self.norm2, &self.dropout, &x, &outer, cx)
    }
}

impl Visit for Parts {
    fn visit(&self, visitor: &mut dyn Visitor) {
        visit_child(visitor, "self_attn", None, &self.self_attn);
        self.feed_forward.visit(visitor);
        visit_child(visitor, "norm1", None, &self.norm1);
        visit_child(visitor, "norm2", None, &self.norm2);
    }
}

impl Module for Parts {
    fn forward(&self, input: &Tensor, cx: &Context) -> Result<Tensor> {
        self.run(input, &AttentionMask::none(), cx)
    }
}

/// An encoder layer together with its mask, as a module with one input, so that the backward pass
/// can run it again to recompute its activations.
struct Masked {
    parts: Arc<Parts>,
    mask: AttentionMask,
}

impl Visit for Masked {
    fn visit(&self, visitor: &mut dyn Visitor) {
        self.parts.visit(visitor);
    }
}

impl Module for Masked {
    fn forward(&self, input: &Tensor, cx: &Context) -> Result<Tensor> {
        self.parts.run(input, &self.mask, cx)
    }

    fn type_name(&self) -> &'static str {
        std::any::type_name::<TransformerEncoderLayer>()
    }

    fn shared(&self) -> Option<Arc<dyn Module>> {
        #[expect(
            clippy::arc_with_non_send_sync,
            reason = "the autograd graph may be freed on one of libtorch's threads"
        )]
        let shared = Arc::new(Self { parts: self.parts.clone(), mask: self.mask.shared() });
        Some(shared)
    }
}

impl Checkpoint<TransformerEncoderLayer> {
    /// Runs [`TransformerEncoderLayer::forward_masked`] with activation checkpointing. In a model,
    /// call `forward_masked` of the [`Child`] instead.
    ///
    /// # Errors
    /// When [`TransformerEncoderLayer::forward_masked`] would fail.
    pub fn forward_masked(
        &self,
        input: &Tensor,
        mask: &AttentionMask,
        cx: &Context,
    ) -> Result<Tensor> {
        self.viewed(|layer| layer.masked(mask)).forward(input, cx)
    }
}

/// Several [`TransformerEncoderLayer`]s one after the other on `[N, L, d_model]`, and optionally a
/// layer norm; nn.TransformerEncoder with batch_first. As in torch, all layers have the same
/// initial weights. For layers with different initial weights use
/// `repeat(6, |_| transformer_encoder_layer(…))`.
#[derive(Debug)]
pub struct TransformerEncoder {
    layers: Vec<TransformerEncoderLayer>,
    norm: Option<LayerNorm>,
}

impl TransformerEncoder {
    /// Creates the layers. Draws the weights of the first layer, and copies them to the other
    /// layers.
    ///
    /// # Errors
    /// When [`TransformerEncoderLayer::new`] would fail, or when there are no layers.
    pub fn new(config: TransformerEncoderConfig) -> Result<Self> {
        let (layers, norm) =
            config.build(TransformerEncoderLayer::new, TransformerEncoderLayer::copied)?;
        Ok(Self { layers, norm })
    }

    /// Runs the layers with `mask` in the attention of each layer. The mask combines torch's mask
    /// and src_key_padding_mask. In a model, call `forward_masked` of the [`Child`] instead.
    ///
    /// # Errors
    /// When the input is not `[N, L, d_model]`, or the mask's shape does not match the input.
    pub fn forward_masked(
        &self,
        input: &Tensor,
        mask: &AttentionMask,
        cx: &Context,
    ) -> Result<Tensor> {
        let x = if mask.is_none() {
            cx.call("layers", None, &self.layers, input)?
        } else {
            let mask = mask.for_layers();
            let masked = |layer: &TransformerEncoderLayer| layer.masked(&mask);
            cx.call("layers", None, &self.layers.iter().map(masked).collect::<Vec<_>>(), input)?
        };
        match &self.norm {
            Some(norm) => cx.call("norm", None, norm, &x),
            None => Ok(x),
        }
    }
}

impl Visit for TransformerEncoder {
    fn visit(&self, visitor: &mut dyn Visitor) {
        visit_child(visitor, "layers", None, &self.layers);
        if let Some(norm) = &self.norm {
            visit_child(visitor, "norm", None, norm);
        }
    }
}

impl Module for TransformerEncoder {
    fn forward(&self, input: &Tensor, cx: &Context) -> Result<Tensor> {
        self.forward_masked(input, &AttentionMask::none(), cx)
    }
}

/// Defines `forward_masked` for a [`Child`] that contains a layer of the given type. For this, also
/// defines a module `$view` with two inputs, a tensor and a mask, that calls the layer's own
/// `forward_masked`.
macro_rules! masked {
    ($($layer:ty, $view:ident;)*) => {$(
        struct $view<'m>(&'m $layer);

        impl Visit for $view<'_> {
            fn visit(&self, visitor: &mut dyn Visitor) {
                self.0.visit(visitor);
            }
        }

        impl Forward for $view<'_> {
            type Input = (&'static Tensor, &'static AttentionMask);
            type Output = Tensor;

            fn forward_with(
                &self,
                (input, mask): (&Tensor, &AttentionMask),
                cx: &Context,
            ) -> Result<Tensor> {
                self.0.forward_masked(input, mask, cx)
            }

            fn own_type_name(&self) -> &'static str {
                self.0.own_type_name()
            }
        }

        impl Child<'_, $layer> {
            /// Calls `forward_masked` of the layer as a child module: adds the child's name to the
            /// module path, and applies the child's precision region.
            ///
            /// # Errors
            /// When the layer fails; the error contains the path of the innermost module that
            /// failed.
            pub fn forward_masked(
                &self,
                input: &Tensor,
                mask: &AttentionMask,
                cx: &Context,
            ) -> Result<Tensor> {
                self.run_as(&$view(self.module()), (input, mask), cx)
            }
        }
    )*};
}

masked! {
    TransformerEncoderLayer, LayerWithMask;
    Checkpoint<TransformerEncoderLayer>, CheckpointWithMask;
    TransformerEncoder, StackWithMask;
}

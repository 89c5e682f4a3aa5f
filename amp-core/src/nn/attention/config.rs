use super::RotaryPairing;
use crate::{Error, Result};

/// The options of a [`MultiheadAttention`](super::MultiheadAttention); the defaults are nn.MultiheadAttention's.
#[derive(Debug, Clone, Copy)]
pub struct MultiheadAttentionConfig {
    /// Width of queries and of the output.
    pub embed_dim: i64,
    /// Heads; must divide `embed_dim`.
    pub num_heads: i64,
    /// Dropout on the attention weights while training.
    pub dropout: f64,
    /// Whether the projections add biases.
    pub bias: bool,
    /// Whether a learned key and value, `bias_k` and `bias_v`, come behind those of the input.
    pub add_bias_kv: bool,
    /// Whether a key and a value of zeros are appended to the sequence, after `bias_k` and `bias_v`.
    pub add_zero_attn: bool,
    /// Width of the keys' input.
    pub kdim: i64,
    /// Width of the values' input.
    pub vdim: i64,
    /// Heads of keys and values, which neighbouring heads of queries share (grouped-query attention, not in
    /// torch.nn); must divide `num_heads`.
    pub num_kv_heads: i64,
    /// Whether a position attends only to itself and earlier ones.
    pub causal: bool,
    /// Whether queries and keys are rotated by their places, and which elements together
    /// ([`RotaryEmbedding`](super::RotaryEmbedding), not in torch.nn).
    pub rotary: Option<RotaryPairing>,
    /// The base of the rotary embedding.
    pub rotary_base: f64,
}

impl MultiheadAttentionConfig {
    /// Sets biases, no dropout, the width `embed_dim` for queries, keys and values, and attention
    /// that is not causal.
    pub fn new(embed_dim: i64, num_heads: i64) -> Self {
        Self {
            embed_dim,
            num_heads,
            dropout: 0.0,
            bias: true,
            add_bias_kv: false,
            add_zero_attn: false,
            kdim: embed_dim,
            vdim: embed_dim,
            num_kv_heads: num_heads,
            causal: false,
            rotary: None,
            rotary_base: 10_000.0,
        }
    }

    pub(super) fn check(&self) -> Result<()> {
        let Self { embed_dim, num_heads, dropout, kdim, vdim, num_kv_heads, .. } = *self;
        let refused = |why: String| {
            Err(Error::config(format!("multihead_attention({embed_dim}, {num_heads}): {why}")))
        };
        if num_heads < 1 || embed_dim < 1 || embed_dim % num_heads != 0 {
            return refused("the heads must divide the width".to_owned());
        }
        if num_kv_heads < 1 || num_heads % num_kv_heads != 0 {
            return refused(format!("{num_kv_heads} heads of keys do not divide those of queries"));
        }
        if kdim < 1 || vdim < 1 {
            return refused(format!("kdim is {kdim} and vdim {vdim}, but 1 is least"));
        }
        if self.causal && (self.add_bias_kv || self.add_zero_attn) {
            return refused(
                "added keys have no place for `causal`: give a mask instead".to_owned(),
            );
        }
        if !(0.0..=1.0).contains(&dropout) {
            return refused(format!("dropout {dropout} is not a probability"));
        }
        Ok(())
    }

    /// Returns the width of a head.
    pub(super) fn head_dim(&self) -> i64 {
        self.embed_dim / self.num_heads
    }

    /// Returns the width of projected keys and values.
    pub(super) fn kv_width(&self) -> i64 {
        self.num_kv_heads * self.head_dim()
    }
}

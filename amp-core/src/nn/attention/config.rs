use super::RotaryPairing;
use crate::{Error, Result};

/// The options of a [`MultiheadAttention`](super::MultiheadAttention). The defaults are those of
/// nn.MultiheadAttention.
#[derive(Debug, Clone, Copy)]
pub struct MultiheadAttentionConfig {
    /// The number of features of the queries and of the output.
    pub embed_dim: i64,
    /// The number of heads. It must divide `embed_dim`.
    pub num_heads: i64,
    /// The probability of dropout on the attention weights in training.
    pub dropout: f64,
    /// Whether the linear projections of queries, keys, values and output add biases.
    pub bias: bool,
    /// Whether a learned key (`bias_k`) and a learned value (`bias_v`) are appended to the keys and
    /// values of the input.
    pub add_bias_kv: bool,
    /// Whether a key of zeros and a value of zeros are appended, after `bias_k` and `bias_v`.
    pub add_zero_attn: bool,
    /// The number of features of the input from which keys are computed.
    pub kdim: i64,
    /// The number of features of the input from which values are computed.
    pub vdim: i64,
    /// The number of heads of keys and values. It must divide `num_heads`. Several neighbouring
    /// heads of queries use the same head of keys and values (grouped-query attention, which
    /// torch.nn does not have).
    pub num_kv_heads: i64,
    /// Whether a position attends only to itself and to earlier positions.
    pub causal: bool,
    /// Which two elements of a query or key a [`RotaryEmbedding`](super::RotaryEmbedding) rotates
    /// as a pair. `None` means no rotary embedding. torch.nn has no rotary embeddings.
    pub rotary: Option<RotaryPairing>,
    /// The base of the rotary embedding's angles: pair i of a head of width D is rotated by the
    /// angle position·base^(−2i/D).
    pub rotary_base: f64,
}

impl MultiheadAttentionConfig {
    /// Returns options with biases, without dropout, with `embed_dim` features for queries, keys
    /// and values, and with attention that is not causal.
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
            return refused("num_heads must divide embed_dim".to_owned());
        }
        if num_kv_heads < 1 || num_heads % num_kv_heads != 0 {
            return refused(format!("num_kv_heads is {num_kv_heads}, but must divide num_heads"));
        }
        if kdim < 1 || vdim < 1 {
            return refused(format!("kdim is {kdim} and vdim {vdim}, but both must be at least 1"));
        }
        if self.causal && (self.add_bias_kv || self.add_zero_attn) {
            return refused(
                "add_bias_kv and add_zero_attn add keys without a position, but `causal` needs the \
                 position of each key: use a mask instead of `causal`"
                    .to_owned(),
            );
        }
        if !(0.0..=1.0).contains(&dropout) {
            return refused(format!(
                "dropout is {dropout}, but must be a probability, from 0 to 1"
            ));
        }
        Ok(())
    }

    /// Returns the number of elements of a query in one head.
    pub(super) fn head_dim(&self) -> i64 {
        self.embed_dim / self.num_heads
    }

    /// Returns the number of features of all key heads together. All value heads together have the
    /// same number of features.
    pub(super) fn kv_width(&self) -> i64 {
        self.num_kv_heads * self.head_dim()
    }
}

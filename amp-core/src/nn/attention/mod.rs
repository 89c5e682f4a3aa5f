//! Multi-head attention, its masks, position embeddings and cache.

mod attended_keys;
mod child;
mod config;
mod kv_cache;
mod mask;
mod one_token;
mod position;
mod projection;
mod scores;

pub use attended_keys::causal_attention;
pub use config::MultiheadAttentionConfig;
pub(in crate::nn) use kv_cache::Entries;
pub use kv_cache::KvCache;
pub use mask::AttentionMask;
pub use position::{
    RotaryEmbedding, RotaryEmbeddingConfig, RotaryPairing, alibi_bias, alibi_slopes,
};
pub use scores::{AttentionOptions, scaled_dot_product_attention, split_heads};

use attended_keys::AttendedKeys;
use projection::{Projected, Projection};
use scores::Shapes;
use tch::{Kind, Tensor};

use super::{
    Context, Init, Linear, LinearConfig, Module, Op, Role, Visit, Visitor, init, visit_child,
};
use crate::{Error, Result, ffi};

/// Multi-head attention: nn.MultiheadAttention with batch_first and torch's fused kernels.
///
/// As a [`Module`] it is self-attention on `[N, L, embed_dim]`. For other inputs or with a mask,
/// call [`attend`](Self::attend): in a derived `#[forward]`, `self.attention.attend(…, cx)`.
///
/// The parameters have torch's names: `in_proj_weight`, `in_proj_bias`, `bias_k`, `bias_v`,
/// `out_proj.weight` and `out_proj.bias`. If `kdim` or `vdim` differs from `embed_dim`, or
/// `num_kv_heads` differs from `num_heads`, there are `q_proj_weight`, `k_proj_weight` and
/// `v_proj_weight` instead of `in_proj_weight`.
///
/// ```no_run,standalone_crate
/// use amp_core::{
///     nn::{AttentionMask, LayerNorm},
///     prelude::*,
/// };
///
/// /// Lets words attend to the patches of an image. Some patches are padding.
/// #[derive(Module)]
/// #[forward(|words, image: &Tensor, padding: &Tensor| {
///     let mask = AttentionMask::padding(padding);
///     let attended = self.attention.attend(words, image, image, &mask, cx)?;
///     norm(&words.f_add(&attended)?)
/// })]
/// struct CrossAttention {
///     #[layer(multihead_attention(64, 8, kdim = 32, vdim = 32))]
///     attention: MultiheadAttention,
///     #[layer(layer_norm(64))]
///     norm: LayerNorm,
/// }
/// # fn main() {}
/// ```
#[derive(Debug)]
pub struct MultiheadAttention {
    projection: Projection,
    in_proj_bias: Option<Tensor>,
    /// The learned key and value that are appended to the input's keys and values, `[1, 1, width]`
    /// each.
    bias_kv: Option<[Tensor; 2]>,
    out_proj: Linear,
    rotary: Option<RotaryEmbedding>,
    config: MultiheadAttentionConfig,
}

impl MultiheadAttention {
    /// Creates the layer. Draws initial values in PyTorch's order: the weight of `out_proj`, the
    /// projections' weights (Xavier uniform), `bias_k` and `bias_v` (Xavier normal). Biases are 0.
    ///
    /// # Errors
    /// - When `num_heads` does not divide `embed_dim`, or `num_kv_heads` not `num_heads`.
    /// - When a number of features or heads is not positive, or `dropout` is not in [0, 1].
    /// - When `causal` is set together with `add_bias_kv` or `add_zero_attn`.
    /// - When `rotary` is set and a head's number of features, `embed_dim / num_heads`, is odd.
    pub fn new(config: MultiheadAttentionConfig) -> Result<Self> {
        config.check()?;
        let MultiheadAttentionConfig { embed_dim: d, bias, kdim, vdim, rotary, .. } = config;
        let kv = config.kv_width();
        let rotary = rotary
            .map(|pairing| {
                RotaryEmbedding::new(RotaryEmbeddingConfig {
                    base: config.rotary_base,
                    ..RotaryEmbeddingConfig::new(config.head_dim(), pairing)
                })
            })
            .transpose()?;
        let out_proj = Linear::new(LinearConfig { bias, ..LinearConfig::new(d, d) })?;
        let projection = match [kdim, vdim, kv] == [d; 3] {
            true => Projection::Packed(init::xavier(3 * d, d)?),
            false => Projection::Apart([
                init::xavier(d, d)?,
                init::xavier(kv, kdim)?,
                init::xavier(kv, vdim)?,
            ]),
        };
        let drawn = || Init::XavierNormal { gain: 1.0 }.tensor(&[1, 1, kv], Role::Parameter);
        Ok(Self {
            projection,
            in_proj_bias: bias.then(|| init::constant(&[d + 2 * kv], 0.0)).transpose()?,
            bias_kv: match config.add_bias_kv {
                true => Some([drawn()?, drawn()?]),
                false => None,
            },
            out_proj: out_proj.with_zero_bias()?,
            rotary,
            config,
        })
    }

    /// Returns a copy of the layer: new parameters with the same values.
    pub(super) fn copied(&self) -> Result<Self> {
        let copied = |[k, v]: &[Tensor; 2]| -> Result<[Tensor; 2]> {
            Ok([init::copied(k)?, init::copied(v)?])
        };
        let projection = match &self.projection {
            Projection::Packed(weight) => Projection::Packed(init::copied(weight)?),
            Projection::Apart([q, k, v]) => {
                Projection::Apart([init::copied(q)?, init::copied(k)?, init::copied(v)?])
            }
        };
        Ok(Self {
            projection,
            in_proj_bias: self.in_proj_bias.as_ref().map(init::copied).transpose()?,
            bias_kv: self.bias_kv.as_ref().map(copied).transpose()?,
            out_proj: self.out_proj.copied()?,
            rotary: self.rotary,
            config: self.config,
        })
    }

    /// Computes the attention of `query` to `key` and `value`, with a mask, as torch's
    /// `forward(query, key, value)` does with need_weights = false. The option `causal` applies in
    /// addition to the mask. If the model runs through a [`KvCache`], the masks cover the cached
    /// keys too, and a rotary embedding counts positions from the first cached token.
    ///
    /// | tensor | shape |
    /// | --- | --- |
    /// | `query` | `[N, L, embed_dim]` |
    /// | `key` | `[N, S, kdim]` |
    /// | `value` | `[N, S, vdim]` |
    /// | output | `[N, L, embed_dim]` |
    ///
    /// If `query`, `key` and `value` are the same tensor, one matrix product projects them. In a
    /// hand-written `forward`, call `Child::new("attn", None, &self.attn).attend(…, cx)`:
    /// [`Child`](crate::nn::Child) adds `attn` to the module path and applies its precision.
    ///
    /// # Errors
    /// When the shapes do not match, or a mask has an integer dtype.
    pub fn attend(
        &self,
        query: &Tensor,
        key: &Tensor,
        value: &Tensor,
        mask: &AttentionMask,
        cx: &Context,
    ) -> Result<Tensor> {
        let (q, seen) = self.heads(query, key, value, mask, cx)?;
        let (k, v, options) = (&seen.keys, &seen.values, self.options(&seen, cx));
        let open = seen.open.as_ref();
        let attended = match cx.has_substitutes() {
            true => scores::attend_with_weights(&q, k, v, &options, open, cx)?.0,
            false => scores::attend(&q, k, v, &options, open)?,
        };
        self.join(&attended, cx)
    }

    /// Computes [`attend`](Self::attend), and also returns the attention weights, `[N, heads, L,
    /// S]`, as torch does with need_weights and average_attn_weights = false. In training the
    /// weights include dropout. No fused kernel is used, so all weights are in memory.
    ///
    /// # Errors
    /// When [`attend`](Self::attend) would fail.
    pub fn attend_with_weights(
        &self,
        query: &Tensor,
        key: &Tensor,
        value: &Tensor,
        mask: &AttentionMask,
        cx: &Context,
    ) -> Result<(Tensor, Tensor)> {
        let (q, seen) = self.heads(query, key, value, mask, cx)?;
        let options = self.options(&seen, cx);
        let (k, v, open) = (&seen.keys, &seen.values, seen.open.as_ref());
        let (attended, weights) = scores::attend_with_weights(&q, k, v, &options, open, cx)?;
        Ok((self.join(&attended, cx)?, weights))
    }

    fn options<'a>(&self, seen: &'a AttendedKeys, cx: &Context) -> AttentionOptions<'a> {
        AttentionOptions {
            attn_mask: seen.mask.as_ref(),
            dropout_p: if cx.drops_out() { self.config.dropout } else { 0.0 },
            is_causal: seen.is_causal,
            scale: None,
        }
    }

    /// Joins the heads `[N, heads, L, width]` and applies the output projection.
    fn join(&self, attended: &Tensor, cx: &Context) -> Result<Tensor> {
        let size = attended.size();
        let joined = [size[0], size[2], self.config.embed_dim];
        let joined = attended.f_transpose(1, 2)?.f_reshape(joined)?;
        cx.call("out_proj", None, &self.out_proj, &joined)
    }

    /// Projects queries, keys and values, splits them into heads, and prepares the mask.
    fn heads(
        &self,
        query: &Tensor,
        key: &Tensor,
        value: &Tensor,
        mask: &AttentionMask,
        cx: &Context,
    ) -> Result<(Tensor, AttendedKeys)> {
        let MultiheadAttentionConfig { num_heads, num_kv_heads, causal, .. } = self.config;
        if cx.cache().is_some() && !causal {
            return Err(Error::config(
                "attention: only causal attention runs with a KV cache, because later tokens would change earlier outputs: set \
                 `causal = true`, or run the model without a cache",
            ));
        }
        let (n, queries, keys) = self.sizes(query, key, value)?;
        let first = if causal { cx.cache().map_or(0, Entries::tokens) } else { 0 };
        let adds_keys = self.bias_kv.is_some() || self.config.add_zero_attn;
        let is_shared = !causal && mask.is_shared() && !adds_keys;
        let joined = match is_shared {
            true => None,
            false => mask.joined([n, num_heads, queries, first + keys])?,
        };
        let width = self.config.head_dim();
        let heads = |x: &Tensor, length: i64, count: i64| -> Result<Tensor> {
            Ok(x.f_reshape([n, length, count, width])?.f_transpose(1, 2)?)
        };
        let [q, k, v] = match self.project(query, key, value, cx)? {
            Projected::Together(product) => split_heads(&product, num_heads)?,
            Projected::Apart([q, k, v]) => [
                heads(&q, queries, num_heads)?,
                heads(&k, keys, num_kv_heads)?,
                heads(&v, keys, num_kv_heads)?,
            ],
        };
        let rotated = |x: Tensor| match &self.rotary {
            Some(rotary) => rotary.rotate(&cx.within("before rotation", &x)?, cx.past()),
            None => Ok(x),
        };
        let (q, k) = (rotated(q)?, rotated(k)?);
        if causal {
            let seen = AttendedKeys::extend(&q, k, v, joined, cx)?;
            return Ok((q, seen));
        }
        if is_shared {
            let open = mask.opened(&Shapes::of(&q, &k, &v)?, q.kind())?;
            return Ok((q, AttendedKeys { open, ..AttendedKeys::all(k, v) }));
        }
        let (keys, values, mask) = self.with_added_keys(k, v, joined)?;
        Ok((q, AttendedKeys { mask, ..AttendedKeys::all(keys, values) }))
    }

    /// Appends the keys and values for which `add_bias_kv` and `add_zero_attn` ask. Extends the
    /// mask so that every query attends to these keys.
    fn with_added_keys(
        &self,
        mut k: Tensor,
        mut v: Tensor,
        mut mask: Option<Tensor>,
    ) -> Result<(Tensor, Tensor, Option<Tensor>)> {
        let (size, options) = (k.size(), (k.kind(), k.device()));
        let added = [size[0], size[1], 1, size[3]];
        let mut append = |key: &Tensor, value: &Tensor| -> Result<()> {
            k = Tensor::f_cat(&[&k, &key.f_to_kind(k.kind())?], 2)?;
            v = Tensor::f_cat(&[&v, &value.f_to_kind(v.kind())?], 2)?;
            if let Some(mask) = &mut mask {
                let mut column = mask.size();
                column[3] = 1;
                let options = (mask.kind(), mask.device());
                let column = match mask.kind() {
                    Kind::Bool => Tensor::f_ones(column, options)?,
                    _ => Tensor::f_zeros(column, options)?,
                };
                *mask = Tensor::f_cat(&[&*mask, &column], 3)?;
            }
            Ok(())
        };
        if let Some([key, value]) = &self.bias_kv {
            let heads = |x: &Tensor| x.f_view([1, size[1], 1, size[3]])?.f_expand(added, false);
            append(&heads(key)?, &heads(value)?)?;
        }
        if self.config.add_zero_attn {
            let zeros = Tensor::f_zeros(added, options)?;
            append(&zeros, &zeros)?;
        }
        Ok((k, v, mask))
    }

    /// Returns the batch size and the numbers of queries and keys.
    fn sizes(&self, query: &Tensor, key: &Tensor, value: &Tensor) -> Result<(i64, i64, i64)> {
        let MultiheadAttentionConfig { embed_dim, kdim, vdim, .. } = self.config;
        let (q, k, v) = (query.size(), key.size(), value.size());
        if let (&[n, l, e], &[nk, s, ek], &[nv, sv, ev]) = (&q[..], &k[..], &v[..])
            && [e, ek, ev] == [embed_dim, kdim, vdim]
            && [nk, nv, sv] == [n, n, s]
        {
            return Ok((n, l, s));
        }
        Err(Error::config(format!(
            "attention: queries {q:?}, keys {k:?} and values {v:?} do not match: they must be \
             [N, L, {embed_dim}], [N, S, {kdim}] and [N, S, {vdim}]"
        )))
    }
}

impl Visit for MultiheadAttention {
    fn visit(&self, visitor: &mut dyn Visitor) {
        match &self.projection {
            Projection::Packed(weight) => {
                visitor.tensor("in_proj_weight", weight, Role::Parameter);
            }
            Projection::Apart(weights) => {
                let names = ["q_proj_weight", "k_proj_weight", "v_proj_weight"];
                for (name, weight) in names.into_iter().zip(weights) {
                    visitor.tensor(name, weight, Role::Parameter);
                }
            }
        }
        if let Some(bias) = &self.in_proj_bias {
            visitor.tensor("in_proj_bias", bias, Role::Parameter);
        }
        if let Some([key, value]) = &self.bias_kv {
            visitor.tensor("bias_k", key, Role::Parameter);
            visitor.tensor("bias_v", value, Role::Parameter);
        }
        visit_child(visitor, "out_proj", None, &self.out_proj);
    }
}

impl Module for MultiheadAttention {
    fn forward(&self, input: &Tensor, cx: &Context) -> Result<Tensor> {
        let MultiheadAttentionConfig { embed_dim, num_heads, dropout, causal, .. } = self.config;
        let (n, length) = (input.size()[0], input.size()[1]);
        let dropout = if cx.drops_out() { dropout } else { 0.0 };
        let adds_keys = self.bias_kv.is_some() || self.config.add_zero_attn;
        // A pass with substitutes computes weights, too, unless it must drop the same values as a
        // pass without.
        let needs_weights = cx.has_substitutes() && !(length == 1 && dropout > 0.0);
        let apart = adds_keys || needs_weights || cx.cache().is_some();
        let (Projection::Packed(weight), None, false) = (&self.projection, &self.rotary, apart)
        else {
            return self.attend(input, input, input, &AttentionMask::none(), cx);
        };
        let joined = if length == 1 {
            self.attend_to_itself(input, weight, dropout, cx)?
        } else {
            let projected = ffi::linear(input, weight, self.in_proj_bias.as_ref())?;
            let [q, k, v] = split_heads(&projected, num_heads)?;
            let options =
                AttentionOptions { dropout_p: dropout, is_causal: causal, ..Default::default() };
            let attended = scores::by_libtorch([&q, &k, &v], &options)?;
            attended.f_transpose(1, 2)?.f_reshape([n, length, embed_dim])?
        };
        cx.call("out_proj", None, &self.out_proj, &joined)
    }

    fn op(&self) -> Op {
        Op::Matmul
    }
}

//! The keys and values to which the queries of a forward pass attend. With a cache, they include
//! the cached keys and values.

use tch::{Kind, Tensor};

use super::{
    AttentionOptions, kv_cache::refused, mask::OpenMask, scaled_dot_product_attention,
    scores::attend_with_weights,
};
use crate::{Result, nn::Context};

/// The keys and values to which the queries of one forward pass attend, and the mask that applies.
pub(super) struct AttendedKeys {
    pub(super) keys: Tensor,
    pub(super) values: Tensor,
    /// See [`AttentionOptions::attn_mask`].
    pub(super) mask: Option<Tensor>,
    /// The prepared mask, if several layers share one mask (see `AttentionMask::for_layers`). The
    /// field `mask` is then `None`.
    pub(super) open: Option<OpenMask>,
    /// Whether libtorch applies its causal mask, so that a query attends only to the keys up to its
    /// own position. Requires as many keys as queries.
    pub(super) is_causal: bool,
}

impl AttendedKeys {
    /// Returns keys and values without a mask, so that every query attends to every key.
    pub(super) fn all(keys: Tensor, values: Tensor) -> Self {
        Self { keys, values, mask: None, open: None, is_causal: false }
    }

    /// Returns the keys and values for causal attention, and combines `mask` with the causal mask.
    /// If `cx` has a cache, first appends the given keys and values `[N, heads, L, E]` to the
    /// cached ones, and returns all of them. `mask` is as in [`AttentionOptions::attn_mask`], and
    /// covers all keys, including the cached ones.
    pub(super) fn extend(
        query: &Tensor,
        keys: Tensor,
        values: Tensor,
        mask: Option<Tensor>,
        cx: &Context,
    ) -> Result<Self> {
        let Some(cache) = cx.cache() else {
            return Ok(Self { mask, is_causal: true, ..Self::all(keys, values) });
        };
        let queries = match (query.size().as_slice(), keys.size().as_slice()) {
            ([_, _, queries, _], [_, _, keys, _]) if queries == keys => *queries,
            (queries, keys) => {
                return Err(refused(format!(
                    "causal attention needs as many keys as queries, but the queries are \
                     {queries:?} and the keys {keys:?}"
                )));
            }
        };
        let [keys, values] = cache.append(&cx.path(), [&keys, &values])?;
        let all = keys.size()[2];
        if all == queries {
            return Ok(Self { mask, is_causal: true, ..Self::all(keys, values) });
        }
        // A single new query comes after all cached tokens, so it attends to all keys.
        let seen = match queries {
            1 => None,
            _ => Some(
                Tensor::f_ones([queries, all], (Kind::Bool, query.device()))?
                    .f_tril(all - queries)?,
            ),
        };
        let mask = match (mask, seen) {
            (mask, None) => mask,
            (None, seen) => seen,
            (Some(mask), Some(seen)) if mask.kind() == Kind::Bool => {
                Some(mask.f_logical_and(&seen)?)
            }
            (Some(mask), Some(seen)) => {
                Some(mask.f_masked_fill(&seen.f_logical_not()?, f64::NEG_INFINITY)?)
            }
        };
        Ok(Self { mask, ..Self::all(keys, values) })
    }
}

/// Computes causal [`scaled_dot_product_attention`] without dropout. Call it in attention layers
/// that you write yourself. A query attends to the keys up to its own position. If the model runs
/// with a [`KvCache`](super::KvCache), a query also attends to the cached keys of all earlier
/// tokens.
///
/// | tensor | shape |
/// | --- | --- |
/// | `query` | `[N, heads, L, E]` |
/// | `key` | `[N, kv_heads, L, E]` |
/// | `value` | `[N, kv_heads, L, V]` |
/// | output | `[N, heads, L, V]` |
///
/// With a cache, a module can call this function only once in a forward pass, because the cache
/// stores the keys and values under the module's path.
///
/// ```no_run,standalone_crate
/// use amp_core::{
///     nn::{causal_attention, split_heads},
///     prelude::*,
/// };
///
/// #[derive(Module)]
/// #[forward(|x| {
///     let [q, k, v] = split_heads(&qkv(x)?, 4)?;
///     out(&causal_attention(&q, &k, &v, cx)?.f_transpose(1, 2)?.f_flatten(2, 3)?)
/// })]
/// struct Attention {
///     #[layer(linear(64, 3 * 64))]
///     qkv: Linear,
///     #[layer(linear(64, 64))]
///     out: Linear,
/// }
/// # fn main() {}
/// ```
///
/// # Errors
/// When the shapes of the arguments do not match, or do not fit the keys and values that the cache
/// has stored for this module.
pub fn causal_attention(
    query: &Tensor,
    key: &Tensor,
    value: &Tensor,
    cx: &Context,
) -> Result<Tensor> {
    let seen = AttendedKeys::extend(query, key.shallow_clone(), value.shallow_clone(), None, cx)?;
    let options = AttentionOptions {
        attn_mask: seen.mask.as_ref(),
        is_causal: seen.is_causal,
        ..AttentionOptions::default()
    };
    let (keys, values) = (&seen.keys, &seen.values);
    match cx.has_substitutes() {
        true => Ok(attend_with_weights(query, keys, values, &options, None, cx)?.0),
        false => scaled_dot_product_attention(query, keys, values, &options),
    }
}

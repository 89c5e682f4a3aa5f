//! Scaled dot-product attention and its masks.

use tch::{Kind, Tensor};

use crate::{
    Error, Result, ffi,
    nn::Context,
    precision::{dtype_name, is_floating},
};

/// The options of [`scaled_dot_product_attention`], with torch's names and defaults.
#[derive(Debug, Clone, Copy, Default)]
pub struct AttentionOptions<'a> {
    /// A mask that broadcasts to `[…, heads, L, S]`. If it is boolean, **true lets a query attend
    /// to a key**, as in torch's function; [`AttentionMask`] has the opposite meaning. If it is
    /// floating-point, it is added to the scores.
    pub attn_mask: Option<&'a Tensor>,
    /// The probability of dropout on the attention weights, also outside training: give 0 if
    /// [`Context::drops_out`](crate::nn::Context::drops_out) is false.
    pub dropout_p: f64,
    /// Whether a query attends only to the keys up to its own position. It needs as many keys as
    /// queries.
    pub is_causal: bool,
    /// The factor of the products of queries and keys; `None` means 1/√E.
    pub scale: Option<f64>,
}

/// Computes softmax(scale · Q·Kᵀ + mask) · V, as torch.nn.functional.scaled_dot_product_attention,
/// for attention layers of your own.
///
/// | tensor | shape |
/// | --- | --- |
/// | `query` | `[…, heads, L, E]` |
/// | `key` | `[…, kv_heads, S, E]` |
/// | `value` | `[…, kv_heads, S, V]` |
/// | output | `[…, heads, L, V]` |
///
/// If there are fewer heads of keys than of queries, neighbouring heads of queries share a head of
/// keys (grouped-query attention). For a query without any key the output and the gradients are
/// zero. torch returns zeros or NaN there, depending on its kernel.
///
/// Under autocast the products run in 16 bits.
///
/// ```
/// use amp_core::{
///     nn::{AttentionOptions, scaled_dot_product_attention},
///     tch::{Device, Kind, Tensor},
/// };
///
/// let x = Tensor::ones([2, 4, 3, 8], (Kind::Float, Device::Cpu));
/// // Of the second sentence, the first word alone.
/// let allowed = Tensor::from_slice(&[true, true, true, true, false, false]).view([2, 1, 1, 3]);
/// let options = AttentionOptions { attn_mask: Some(&allowed), ..AttentionOptions::default() };
/// assert_eq!(scaled_dot_product_attention(&x, &x, &x, &options)?.size(), [2, 4, 3, 8]);
/// # Ok::<(), amp_core::Error>(())
/// ```
///
/// # Errors
/// When the shapes do not match, the mask has integers, `is_causal` is set with different numbers
/// of keys and queries, or `dropout_p` is not a probability.
pub fn scaled_dot_product_attention(
    query: &Tensor,
    key: &Tensor,
    value: &Tensor,
    options: &AttentionOptions<'_>,
) -> Result<Tensor> {
    let AttentionOptions { dropout_p, is_causal, scale, .. } = *options;
    let shapes = Shapes::of(query, key, value)?;
    let attend = |key: &Tensor, value: &Tensor, mask: Option<&Tensor>, causal, grouped| {
        let dropout = dropout_p;
        Tensor::f_scaled_dot_product_attention(
            query, key, value, mask, dropout, causal, scale, grouped,
        )
    };
    let Some((mask, masked)) = shapes.mask(query, options)? else {
        return Ok(attend(key, value, None, is_causal, shapes.heads != shapes.kv_heads)?);
    };
    // libtorch's fused kernels accept either a mask or grouped queries.
    let (key, value) = (shapes.shared(key)?, shapes.shared(value)?);
    let output = attend(&key, &value, Some(&mask), false, false)?;
    match ffi::masked_rows(&output, &masked)? {
        Some(output) => Ok(output),
        None => Ok(output.f_masked_fill(&masked, 0.0)?),
    }
}

/// Splits a product `[N, L, 3·heads·width]` into queries, keys and values, each `[N, heads, L,
/// width]`, for [`scaled_dot_product_attention`]. They are views. On CUDA one kernel joins their
/// gradients and computes the gradient of the product's bias.
///
/// # Errors
/// When the product does not have three dimensions, or the last dimension is not a multiple of
/// `3·heads`.
pub fn split_heads(product: &Tensor, heads: i64) -> Result<[Tensor; 3]> {
    match product.size().as_slice() {
        [_, _, width] if heads > 0 && width % (3 * heads) == 0 => ffi::split_heads(product, heads),
        size => Err(refused(format!(
            "a product {size:?} has no queries, keys and values of {heads} heads: it must be \
             [N, L, 3·heads·width]"
        ))),
    }
}

/// Computes [`scaled_dot_product_attention`], and returns the attention weights after dropout too.
pub(super) fn attend_with_weights(
    query: &Tensor,
    key: &Tensor,
    value: &Tensor,
    options: &AttentionOptions<'_>,
    cx: &Context,
) -> Result<(Tensor, Tensor)> {
    let (query, key, value) = (&cx.within(query)?, &cx.within(key)?, &cx.within(value)?);
    let shapes = Shapes::of(query, key, value)?;
    let (key, value) = (shapes.shared(key)?, shapes.shared(value)?);
    let width = query.size().last().copied().unwrap_or(1);
    let scale = options.scale.unwrap_or_else(|| 1.0 / (width as f64).sqrt());
    let mut scores = query.f_matmul(&key.f_transpose(-2, -1)?)?.f_mul_scalar(scale)?;
    let mut masked = None;
    match shapes.mask(query, options)? {
        Some((mask, queries)) => {
            scores = match mask.kind() {
                Kind::Bool => scores.f_masked_fill(&mask.f_logical_not()?, f64::NEG_INFINITY)?,
                _ => scores.f_add(&mask)?,
            };
            masked = Some(queries);
        }
        None if options.is_causal => {
            let later = shapes.up_to_own_place(query)?.f_logical_not()?;
            scores = scores.f_masked_fill(&later, f64::NEG_INFINITY)?;
        }
        None => {}
    }
    let mut weights = scores.f_softmax(-1, scores.kind())?;
    if let Some(masked) = masked {
        weights = weights.f_masked_fill(&masked, 0.0)?;
    }
    let weights = cx.within(&weights)?.f_dropout(options.dropout_p, true)?;
    Ok((weights.f_matmul(&value)?, weights))
}

/// Opens rows in which all keys are masked. Returns the mask in the scores' dtype, in which every
/// query attends to some key, and a mask of the queries whose keys were all masked. For such
/// queries libtorch's kernels return different values, such as NaN.
fn open_masked_rows(mask: &Tensor, kind: Kind) -> Result<(Tensor, Tensor)> {
    if mask.kind() == Kind::Bool {
        let masked = mask.f_any_dim(-1, true)?.f_logical_not()?;
        return Ok((mask.f_logical_or(&masked)?, masked));
    }
    let masked = mask.f_eq(f64::NEG_INFINITY)?.f_all_dim(-1, true)?;
    Ok((mask.f_to_kind(kind)?.f_masked_fill(&masked, 0.0)?, masked))
}

/// The sizes of queries, keys and values.
struct Shapes {
    batch: Vec<i64>,
    heads: i64,
    kv_heads: i64,
    queries: i64,
    keys: i64,
}

impl Shapes {
    fn of(query: &Tensor, key: &Tensor, value: &Tensor) -> Result<Self> {
        let (q, k, v) = (query.size(), key.size(), value.size());
        let parts = |size: &[i64]| match size {
            [batch @ .., heads, length, width] => Some((batch.to_vec(), *heads, *length, *width)),
            _ => None,
        };
        let all = (parts(&q), parts(&k), parts(&v));
        if let (Some(q), Some(k), Some(v)) = all
            && q.0 == k.0
            && k.0 == v.0
            && q.3 == k.3
            && (k.1, k.2) == (v.1, v.2)
            && k.1 > 0
            && q.1 % k.1 == 0
        {
            return Ok(Self { batch: q.0, heads: q.1, kv_heads: k.1, queries: q.2, keys: k.2 });
        }
        Err(refused(format!(
            "queries {q:?}, keys {k:?} and values {v:?} do not match: they must be […, heads, L, E], \
             […, kv_heads, S, E] and […, kv_heads, S, V], and kv_heads must divide heads"
        )))
    }

    /// Returns a mask `[L, L]` that is true where a query attends to a key.
    fn up_to_own_place(&self, query: &Tensor) -> Result<Tensor> {
        let square = [self.queries, self.keys];
        Ok(Tensor::f_ones(square, (Kind::Bool, query.device()))?.f_tril(0)?)
    }

    /// Repeats the heads of keys or values for the heads of queries that share them.
    fn shared(&self, heads: &Tensor) -> Result<Tensor> {
        match self.heads / self.kv_heads {
            1 => Ok(heads.shallow_clone()),
            share => Ok(heads.f_repeat_interleave_self_int(share, -3, None)?),
        }
    }

    /// Combines the mask of the options with the causal mask. Returns it with every query attending
    /// to some key, and a mask of the queries whose keys were all masked; `None` if nothing is
    /// masked. Checks the options too.
    fn mask(
        &self,
        query: &Tensor,
        options: &AttentionOptions<'_>,
    ) -> Result<Option<(Tensor, Tensor)>> {
        let AttentionOptions { attn_mask, dropout_p, is_causal, .. } = *options;
        if !(0.0..=1.0).contains(&dropout_p) {
            return Err(refused(format!(
                "dropout_p is {dropout_p}, but a probability is in [0, 1]"
            )));
        }
        if is_causal && self.queries != self.keys {
            return Err(refused(format!(
                "{} queries and {} keys: `causal` needs equal numbers, or give a mask instead",
                self.queries, self.keys
            )));
        }
        let Some(mask) = attn_mask else { return Ok(None) };
        self.take(mask)?;
        let mask = match (mask.kind(), is_causal) {
            (_, false) => mask.shallow_clone(),
            (Kind::Bool, true) => mask.f_logical_and(&self.up_to_own_place(query)?)?,
            (_, true) => {
                let later = self.up_to_own_place(query)?.f_logical_not()?;
                mask.f_masked_fill(&later, f64::NEG_INFINITY)?
            }
        };
        open_masked_rows(&mask, query.kind()).map(Some)
    }

    /// Checks the rule: a mask has the scores' shape, and its dtype is unambiguous.
    fn take(&self, mask: &Tensor) -> Result<()> {
        is_mask("attn_mask", mask)?;
        let (size, mut scores) = (mask.size(), self.batch.clone());
        scores.extend([self.heads, self.queries, self.keys]);
        let fits = size.len() <= scores.len()
            && size.iter().rev().zip(scores.iter().rev()).all(|(own, all)| own == all || *own == 1);
        match fits {
            true => Ok(()),
            false => Err(refused(format!(
                "attn_mask is {size:?}, which does not broadcast to the scores {scores:?}"
            ))),
        }
    }
}

/// Checks the rule: a mask is boolean, or floating-point values that are added to the scores.
fn is_mask(name: &str, mask: &Tensor) -> Result<()> {
    let kind = mask.kind();
    if kind == Kind::Bool || is_floating(kind) {
        return Ok(());
    }
    Err(refused(format!(
        "{name} is {}: compare it with a number to make it boolean, or convert it to a floating dtype if \
         it is added to the scores",
        dtype_name(kind)
    )))
}

fn refused(why: String) -> Error {
    Error::config(format!("attention: {why}"))
}

/// The keys that are masked out for a query in a [`MultiheadAttention`](super::MultiheadAttention)
/// or a transformer layer. As in torch.nn **true means masked out**, the opposite of
/// [`scaled_dot_product_attention`]. For a query whose keys are all masked out, the attention's
/// output and its gradients are zero.
#[derive(Debug, Default)]
pub struct AttentionMask {
    /// `[L, S]`, `[N·heads, L, S]`, or a 4-D shape that broadcasts to `[N, heads, L, S]`. If it is
    /// boolean, true masks a key out for a query. If it is floating-point, it is added to the
    /// scores, for example [`alibi_bias`](super::alibi_bias).
    pub attn_mask: Option<Tensor>,
    /// `[N, S]`. If it is boolean, true marks a key as padding. If it is floating-point, it is
    /// added to the scores.
    pub key_padding_mask: Option<Tensor>,
}

impl AttentionMask {
    /// Lets every query attend to every key.
    pub fn none() -> Self {
        Self::default()
    }

    /// Masks the keys where `[N, S]` is true, which are padding.
    pub fn padding(key_padding_mask: &Tensor) -> Self {
        Self { key_padding_mask: Some(key_padding_mask.shallow_clone()), ..Self::none() }
    }

    /// Uses this mask of queries and keys.
    pub fn of(attn_mask: &Tensor) -> Self {
        Self { attn_mask: Some(attn_mask.shallow_clone()), ..Self::none() }
    }

    /// Returns handles of the same masks.
    pub(in crate::nn) fn shared(&self) -> Self {
        let handle = |mask: &Option<Tensor>| mask.as_ref().map(Tensor::shallow_clone);
        Self {
            attn_mask: handle(&self.attn_mask),
            key_padding_mask: handle(&self.key_padding_mask),
        }
    }

    /// Returns whether nothing is masked out.
    pub(in crate::nn) fn is_none(&self) -> bool {
        self.attn_mask.is_none() && self.key_padding_mask.is_none()
    }

    /// Combines both masks into one for [`scaled_dot_product_attention`] of scores `[n, heads,
    /// queries, keys]`.
    pub(super) fn joined(&self, scores: [i64; 4]) -> Result<Option<Tensor>> {
        let [n, heads, queries, keys] = scores;
        let attn_mask = self.attn_mask.as_ref().map(|mask| {
            is_mask("attn_mask", mask)?;
            match mask.size().as_slice() {
                [l, s] if [*l, *s] == [queries, keys] => Ok(mask.f_view([1, 1, queries, keys])?),
                [all, l, s] if [*all, *l, *s] == [n * heads, queries, keys] => {
                    Ok(mask.f_reshape([n, heads, queries, keys])?)
                }
                // The broadcast of 4-D masks is checked together with the scores.
                [_, _, _, _] => Ok(mask.shallow_clone()),
                other => Err(refused(format!(
                    "attn_mask is {other:?}, but must be [{queries}, {keys}], [{}, {queries}, {keys}] or 4-D \
                     for the scores {scores:?}",
                    n * heads
                ))),
            }
        });
        let padding = self.key_padding_mask.as_ref().map(|mask| {
            is_mask("key_padding_mask", mask)?;
            match mask.size().as_slice() {
                [batch, s] if [*batch, *s] == [n, keys] => Ok(mask.f_view([n, 1, 1, keys])?),
                other => Err(refused(format!(
                    "key_padding_mask is {other:?}, but must be [batch, keys], [{n}, {keys}]"
                ))),
            }
        });
        Ok(match (attn_mask.transpose()?, padding.transpose()?) {
            (None, None) => None,
            (Some(one), None) | (None, Some(one)) => Some(match one.kind() {
                Kind::Bool => one.f_logical_not()?,
                _ => one,
            }),
            (Some(one), Some(other)) if one.kind() == Kind::Bool && other.kind() == Kind::Bool => {
                Some(one.f_logical_or(&other)?.f_logical_not()?)
            }
            (Some(one), Some(other)) => Some(added(&one)?.f_add(&added(&other)?)?),
        })
    }
}

/// Returns the values that a mask adds to the scores.
fn added(mask: &Tensor) -> Result<Tensor> {
    if mask.kind() != Kind::Bool {
        return Ok(mask.shallow_clone());
    }
    let zeros = Tensor::f_zeros(mask.size(), (Kind::Float, mask.device()))?;
    Ok(zeros.f_masked_fill(mask, f64::NEG_INFINITY)?)
}

impl crate::precision::Tensors for AttentionMask {
    fn each(&self, change: &mut dyn FnMut(&Tensor) -> Result<Tensor>) -> Result<Self> {
        let attn_mask = self.attn_mask.each(change)?;
        Ok(Self { attn_mask, key_padding_mask: self.key_padding_mask.each(change)? })
    }
}

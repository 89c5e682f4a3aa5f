//! Scaled dot-product attention, and how its masks are applied.

use tch::{Kind, Tensor};

use super::mask::OpenMask;
use crate::{
    Error, Result, ffi,
    nn::Context,
    precision::{dtype_name, is_floating},
};

/// The options of [`scaled_dot_product_attention`], with torch's names and defaults.
#[derive(Debug, Clone, Copy, Default)]
pub struct AttentionOptions<'a> {
    /// A mask that broadcasts to `[…, heads, L, S]`. If the mask is boolean, **true lets a query
    /// attend to a key**, as in torch's function. In [`AttentionMask`](super::AttentionMask) true
    /// has the opposite meaning. If the mask is floating-point, it is added to the scores.
    pub attn_mask: Option<&'a Tensor>,
    /// The probability of dropout on the attention weights. Dropout applies also outside of
    /// training, so give 0 if [`Context::drops_out`](crate::nn::Context::drops_out) is false.
    pub dropout_p: f64,
    /// Whether a query attends only to the keys up to its own position. Requires as many keys as
    /// queries.
    pub is_causal: bool,
    /// The factor by which the products of queries and keys are multiplied; `None` means 1/√E.
    pub scale: Option<f64>,
}

/// Computes softmax(scale · Q·Kᵀ + mask) · V, as torch.nn.functional.scaled_dot_product_attention
/// does. Call it in attention layers that you write yourself.
///
/// | tensor | shape |
/// | --- | --- |
/// | `query` | `[…, heads, L, E]` |
/// | `key` | `[…, kv_heads, S, E]` |
/// | `value` | `[…, kv_heads, S, V]` |
/// | output | `[…, heads, L, V]` |
///
/// If keys and values have fewer heads than queries, several neighbouring heads of queries use the
/// same head of keys and values (grouped-query attention). If all keys are masked out for a query,
/// the output for this query and its gradients are zero. torch returns zeros or NaN in this case,
/// depending on its kernel.
///
/// Under autocast the matrix products are computed in 16 bits.
///
/// ```
/// use amp_core::{
///     nn::{AttentionOptions, scaled_dot_product_attention},
///     tch::{Device, Kind, Tensor},
/// };
///
/// let x = Tensor::ones([2, 4, 3, 8], (Kind::Float, Device::Cpu));
/// // In the second sentence every query attends to the first word only.
/// let allowed = Tensor::from_slice(&[true, true, true, true, false, false]).view([2, 1, 1, 3]);
/// let options = AttentionOptions { attn_mask: Some(&allowed), ..AttentionOptions::default() };
/// assert_eq!(scaled_dot_product_attention(&x, &x, &x, &options)?.size(), [2, 4, 3, 8]);
/// # Ok::<(), amp_core::Error>(())
/// ```
///
/// # Errors
/// When the shapes do not match, the mask has an integer dtype, `is_causal` is set with different
/// numbers of keys and queries, or `dropout_p` is not a probability.
pub fn scaled_dot_product_attention(
    query: &Tensor,
    key: &Tensor,
    value: &Tensor,
    options: &AttentionOptions<'_>,
) -> Result<Tensor> {
    attend(query, key, value, options, None)
}

/// Computes [`scaled_dot_product_attention`]. If `open` is given, it is a mask that
/// [`OpenMask::of`] has prepared, and replaces the mask of `options`.
pub(super) fn attend(
    query: &Tensor,
    key: &Tensor,
    value: &Tensor,
    options: &AttentionOptions<'_>,
    open: Option<&OpenMask>,
) -> Result<Tensor> {
    let shapes = Shapes::of(query, key, value)?;
    let Some(OpenMask { mask, masked }) = shapes.mask(query, options, open)? else {
        return by_libtorch([query, key, value], &AttentionOptions { attn_mask: None, ..*options });
    };
    // Repeats each head of keys and values for the heads of queries that use it, because libtorch's
    // fused kernels do not accept a mask together with grouped queries.
    let (key, value) = (shapes.shared(key)?, shapes.shared(value)?);
    let masked_scores = AttentionOptions { attn_mask: Some(&mask), is_causal: false, ..*options };
    let output = by_libtorch([query, &key, &value], &masked_scores)?;
    match ffi::masked_rows(&output, &masked)? {
        Some(output) => Ok(output),
        None => Ok(output.f_masked_fill(&masked, 0.0)?),
    }
}

/// Calls libtorch's attention. The caller has checked the arguments: query, key and value have at
/// least four dimensions, `[…, N, heads, L, E]`. If keys have fewer heads than queries, `attn_mask`
/// must be `None`.
pub(super) fn by_libtorch(
    [query, key, value]: [&Tensor; 3],
    options: &AttentionOptions<'_>,
) -> Result<Tensor> {
    let AttentionOptions { attn_mask: mask, dropout_p, is_causal, scale } = *options;
    let heads = |x: &Tensor| x.size().iter().rev().nth(2).copied();
    let grouped = heads(query) != heads(key);
    let output = Tensor::f_scaled_dot_product_attention(
        query, key, value, mask, dropout_p, is_causal, scale, grouped,
    )?;
    ffi::attention_gradient_layout(&output)?;
    Ok(output)
}

/// Splits the output `[N, L, 3·heads·width]` of one linear layer into queries, keys and values for
/// [`scaled_dot_product_attention`], each `[N, heads, L, width]`. The results are views of the
/// output. In the backward pass on CUDA, one kernel joins the gradients of the three results and
/// computes the gradient of the layer's bias.
///
/// # Errors
/// When `product` does not have three dimensions, or the size of its last dimension is not a
/// multiple of `3·heads`.
pub fn split_heads(product: &Tensor, heads: i64) -> Result<[Tensor; 3]> {
    match product.size().as_slice() {
        [_, _, width] if heads > 0 && width % (3 * heads) == 0 => ffi::split_heads(product, heads),
        size => Err(refused(format!(
            "a tensor of shape {size:?} cannot be split into queries, keys and values of {heads} \
             heads: the output of the linear layer must have the shape [N, L, 3·heads·width]"
        ))),
    }
}

/// Computes [`scaled_dot_product_attention`] one operation at a time, and passes the intermediate
/// tensors to [`Context::within`]. Also returns the attention weights, after dropout.
pub(super) fn attend_with_weights(
    query: &Tensor,
    key: &Tensor,
    value: &Tensor,
    options: &AttentionOptions<'_>,
    open: Option<&OpenMask>,
    cx: &Context,
) -> Result<(Tensor, Tensor)> {
    let (query, key, value) =
        (&cx.within("queries", query)?, &cx.within("keys", key)?, &cx.within("values", value)?);
    let shapes = Shapes::of(query, key, value)?;
    let (key, value) = (shapes.shared(key)?, shapes.shared(value)?);
    let width = query.size().last().copied().unwrap_or(1);
    let scale = options.scale.unwrap_or_else(|| 1.0 / (width as f64).sqrt());
    let scores = query.f_matmul(&key.f_transpose(-2, -1)?)?.f_mul_scalar(scale)?;
    let mut scores = cx.within("scores", &scores)?;
    let mut masked = None;
    match shapes.mask(query, options, open)? {
        Some(OpenMask { mask, masked: queries }) => {
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
    if let Some(masked) = &masked {
        weights = weights.f_masked_fill(masked, 0.0)?;
    }
    let weights = cx.within("weights", &weights)?;
    let weights = ffi::weights_dropout(&weights, options.dropout_p)?;
    let exact = weights.f_matmul(&value)?;
    let output = cx.within("attended", &exact)?;
    let output = match cx.has_substitutes() {
        true => with_kernel_gradient(&output, &exact, &scores, masked.as_ref())?,
        false => output,
    };
    Ok((output, weights))
}

/// Returns `output`, which is `exact` after rounding, with the gradient that a fused kernel
/// computes. The gradient of a score is weight · (∇output · value − Σ ∇output · output), where Σ is
/// a sum over the width of a head (D in algorithm 4 of Dao et al., arXiv:2205.14135). A fused
/// kernel computes this sum from the rounded output, but autograd would compute it from the exact
/// output. The two gradients differ by −weight · Σ ∇output · (output − exact). This function adds
/// to `output` a term whose value is 0 and whose gradient is this difference.
fn with_kernel_gradient(
    output: &Tensor,
    exact: &Tensor,
    scores: &Tensor,
    masked: Option<&Tensor>,
) -> Result<Tensor> {
    let rounding = output.f_sub(exact)?.f_detach()?;
    let scores = match masked {
        Some(masked) => &scores.f_masked_fill(masked, 0.0)?,
        None => scores,
    };
    let sum = scores.f_logsumexp([-1], true)?;
    Ok(output.f_sub(&sum.f_sub(&sum.f_detach()?)?.f_mul(&rounding)?)?)
}

/// The sizes of queries, keys and values in one call of attention.
pub(super) struct Shapes {
    batch: Vec<i64>,
    heads: i64,
    kv_heads: i64,
    queries: i64,
    keys: i64,
}

impl Shapes {
    pub(super) fn of(query: &Tensor, key: &Tensor, value: &Tensor) -> Result<Self> {
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

    /// Returns the causal mask `[L, L]`, which is true where a query attends to a key.
    fn up_to_own_place(&self, query: &Tensor) -> Result<Tensor> {
        let square = [self.queries, self.keys];
        Ok(Tensor::f_ones(square, (Kind::Bool, query.device()))?.f_tril(0)?)
    }

    /// Repeats each head of keys or values, once for each head of queries that uses it.
    fn shared(&self, heads: &Tensor) -> Result<Tensor> {
        match self.heads / self.kv_heads {
            1 => Ok(heads.shallow_clone()),
            share => Ok(heads.f_repeat_interleave_self_int(share, -3, None)?),
        }
    }

    /// Combines the mask of the options with the causal mask, and unmasks rows in which every key
    /// is masked. Returns `None` if no mask tensor is needed. If `open`, an already prepared mask,
    /// is given, returns it. Also checks the options.
    fn mask(
        &self,
        query: &Tensor,
        options: &AttentionOptions<'_>,
        open: Option<&OpenMask>,
    ) -> Result<Option<OpenMask>> {
        let AttentionOptions { attn_mask, dropout_p, is_causal, .. } = *options;
        if !(0.0..=1.0).contains(&dropout_p) {
            return Err(refused(format!("dropout_p is {dropout_p}, but must be in [0, 1]")));
        }
        if is_causal && self.queries != self.keys {
            return Err(refused(format!(
                "there are {} queries and {} keys, but `causal` needs equal numbers: use a mask \
                 instead of `causal`",
                self.queries, self.keys
            )));
        }
        if let Some(open) = open {
            return Ok(Some(open.shared()));
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
        OpenMask::of(&mask, query.kind()).map(Some)
    }

    /// Returns the shape of the attention scores: batch, heads, queries and keys.
    pub(super) fn of_scores(&self) -> Vec<i64> {
        let mut scores = self.batch.clone();
        scores.extend([self.heads, self.queries, self.keys]);
        scores
    }

    /// Checks that a mask broadcasts to the scores, and that it is boolean or floating-point.
    pub(super) fn take(&self, mask: &Tensor) -> Result<()> {
        is_mask("attn_mask", mask)?;
        let (size, scores) = (mask.size(), self.of_scores());
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

/// Checks that a mask is boolean, or that it contains floating-point values to be added to the
/// scores.
pub(super) fn is_mask(name: &str, mask: &Tensor) -> Result<()> {
    let kind = mask.kind();
    if kind == Kind::Bool || is_floating(kind) {
        return Ok(());
    }
    Err(refused(format!(
        "{name} is {}, but must be boolean or floating-point: compare it with a number to make it \
         boolean, or convert it to a floating-point dtype to add it to the scores",
        dtype_name(kind)
    )))
}

pub(super) fn refused(why: String) -> Error {
    Error::config(format!("attention: {why}"))
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;

    /// Checks that the gradient of the scores is weight · (∇output · value − Σ ∇output · output),
    /// where `output` is the rounded output, and that it is 0 in a row whose keys are all masked.
    #[test]
    fn the_gradient_of_scores_is_computed_from_the_rounded_output() -> Result<()> {
        let wave = |rows: i64, columns: i64, phase: f64| {
            let x = Tensor::arange(rows * columns, (Kind::Double, Device::Cpu)) * 0.7 + phase;
            x.sin().reshape([rows, columns])
        };
        let (values, gradient) = (wave(5, 8, 1.0), wave(4, 8, 2.0));
        let given = wave(4, 5, 0.0).set_requires_grad(true);
        let masked = Tensor::from_slice(&[false, false, true, false]).reshape([4, 1]);
        let scores = given.masked_fill(&masked, f64::NEG_INFINITY);
        let weights = scores.softmax(-1, Kind::Double).masked_fill(&masked, 0.0);
        let exact = weights.matmul(&values);
        let rounding = exact.to_kind(Kind::BFloat16).to_kind(Kind::Double) - &exact;
        let rounded = &exact + rounding.detach();
        let output = with_kernel_gradient(&rounded, &exact, &scores, Some(&masked))?;
        assert!(output.equal(&rounded), "the values do not change");
        (&output * &gradient).sum(Kind::Double).backward();
        let sum = (&gradient * &rounded).sum_dim_intlist(-1, true, Kind::Double);
        let expected = weights * (gradient.matmul(&values.tr()) - sum);
        let difference = (given.grad() - expected).abs().max().double_value(&[]);
        assert!(difference < 1e-14, "{difference}");
        assert!(rounding.abs().max().double_value(&[]) > 1e-4, "the output is rounded");
        Ok(())
    }
}

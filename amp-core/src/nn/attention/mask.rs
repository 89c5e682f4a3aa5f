//! Masks of the keys to which a query does not attend.

use std::sync::{Arc, Mutex, PoisonError};

use tch::{Kind, Tensor};

use super::scores::{Shapes, is_mask, refused};
use crate::Result;

/// A mask without fully masked rows, for libtorch's kernels: if a mask masks all keys of a query,
/// the result depends on the kernel, and some kernels return NaN. Therefore such rows of the user's
/// mask are unmasked, and the output for these queries is set to zero afterwards.
#[derive(Debug)]
pub(super) struct OpenMask {
    /// The mask, in which no row is fully masked. It is boolean, or floating-point in the dtype of
    /// the scores. A floating-point mask is added to the scores.
    pub(super) mask: Tensor,
    /// True for the queries whose keys were all masked, of shape `[…, 1]`. The caller sets the
    /// output for these queries to zero.
    pub(super) masked: Tensor,
}

impl OpenMask {
    /// Unmasks the rows of `mask` in which every key is masked, and stores which rows these are.
    /// `mask` is as in [`scaled_dot_product_attention`](super::scaled_dot_product_attention);
    /// `kind` is the dtype of the scores.
    pub(super) fn of(mask: &Tensor, kind: Kind) -> Result<Self> {
        if mask.kind() == Kind::Bool {
            let masked = mask.f_any_dim(-1, true)?.f_logical_not()?;
            return Ok(Self { mask: mask.f_logical_or(&masked)?, masked });
        }
        let masked = mask.f_eq(f64::NEG_INFINITY)?.f_all_dim(-1, true)?;
        let mask = mask.f_to_kind(kind)?.f_masked_fill(&masked, 0.0)?;
        Ok(Self { mask, masked })
    }

    /// Returns a shallow clone, which shares the tensors.
    pub(super) fn shared(&self) -> Self {
        Self { mask: self.mask.shallow_clone(), masked: self.masked.shallow_clone() }
    }
}

/// The keys to which a query does not attend in a [`MultiheadAttention`](super::MultiheadAttention)
/// or a transformer layer. As in torch.nn **true means masked out**. In
/// [`scaled_dot_product_attention`](super::scaled_dot_product_attention) true has the opposite
/// meaning. If all keys are masked out for a query, the attention output for this query is zero,
/// and so are its gradients.
///
/// If you call several layers in a loop that you write yourself, give all of them the result of
/// [`for_layers`](Self::for_layers), so that the mask is prepared only once.
#[derive(Debug, Default)]
pub struct AttentionMask {
    /// A mask for single pairs of query and key. Its shape is `[L, S]`, `[N·heads, L, S]`, or a 4-D
    /// shape that broadcasts to `[N, heads, L, S]`. If the mask is boolean, true masks a key out
    /// for a query. If the mask is floating-point, it is added to the scores, as
    /// [`alibi_bias`](super::alibi_bias) is.
    pub attn_mask: Option<Tensor>,
    /// A mask for whole keys, `[N, S]`. If it is boolean, true marks a key as padding. If it is
    /// floating-point, it is added to the scores of all queries.
    pub key_padding_mask: Option<Tensor>,
    /// The prepared mask (see [`OpenMask`]), if several layers share this mask. The first layer
    /// that runs stores it. `None` if each layer prepares the mask itself.
    opened: Option<Arc<Mutex<Option<Opened>>>>,
}

/// A mask that was prepared for scores of a certain shape and dtype.
#[derive(Debug)]
struct Opened {
    scores: Vec<i64>,
    kind: Kind,
    open: OpenMask,
}

impl AttentionMask {
    /// Returns a mask that masks nothing, so that every query attends to every key.
    pub fn none() -> Self {
        Self::default()
    }

    /// Returns a mask for padding. `key_padding_mask` has the shape `[N, S]`, and is true where a
    /// key is padding.
    pub fn padding(key_padding_mask: &Tensor) -> Self {
        Self { key_padding_mask: Some(key_padding_mask.shallow_clone()), ..Self::none() }
    }

    /// Returns a mask for pairs of query and key; see [`attn_mask`](Self::attn_mask).
    pub fn of(attn_mask: &Tensor) -> Self {
        Self { attn_mask: Some(attn_mask.shallow_clone()), ..Self::none() }
    }

    /// Returns the same mask for use in several layers of one forward pass. The first layer checks
    /// and prepares the mask. Each later layer reuses the prepared mask, which saves four kernels
    /// per layer. [`TransformerEncoder`](crate::nn::TransformerEncoder) calls this function itself.
    /// Do not write to the mask's tensors between the calls of the layers, because later layers
    /// would ignore the change.
    ///
    /// ```
    /// use amp_core::{nn::AttentionMask, tch::Tensor};
    ///
    /// // The second text has one word.
    /// let padding = Tensor::from_slice(&[false, false, false, true]).view([2, 2]);
    /// let mask = AttentionMask::padding(&padding).for_layers();
    /// // for layer in &self.layers { x = layer.forward_masked(&x, &mask, cx)?; }
    /// # assert!(mask.key_padding_mask.is_some());
    /// ```
    #[must_use]
    pub fn for_layers(&self) -> Self {
        Self { opened: Some(self.opened.clone().unwrap_or_default()), ..self.shared() }
    }

    /// Returns a shallow clone, which shares the tensors and the prepared mask.
    pub(in crate::nn) fn shared(&self) -> Self {
        let handle = |mask: &Option<Tensor>| mask.as_ref().map(Tensor::shallow_clone);
        Self {
            attn_mask: handle(&self.attn_mask),
            key_padding_mask: handle(&self.key_padding_mask),
            opened: self.opened.clone(),
        }
    }

    /// Returns the prepared mask for scores of these shapes and this dtype. If no earlier layer has
    /// prepared the mask, prepares it. Returns `None` if this mask is not shared between layers, or
    /// if there is neither `attn_mask` nor `key_padding_mask`.
    pub(super) fn opened(&self, shapes: &Shapes, kind: Kind) -> Result<Option<OpenMask>> {
        let Some(opened) = &self.opened else { return Ok(None) };
        let scores = shapes.of_scores();
        let &[n, heads, queries, keys] = scores.as_slice() else { return Ok(None) };
        let mut opened = opened.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(same) = opened.as_ref().filter(|one| one.scores == scores && one.kind == kind) {
            return Ok(Some(same.open.shared()));
        }
        let Some(mask) = self.joined([n, heads, queries, keys])? else { return Ok(None) };
        shapes.take(&mask)?;
        let open = OpenMask::of(&mask, kind)?;
        *opened = Some(Opened { scores, kind, open: open.shared() });
        Ok(Some(open))
    }

    /// Returns whether several layers share this mask.
    pub(super) fn is_shared(&self) -> bool {
        self.opened.is_some()
    }

    /// Returns whether there is neither `attn_mask` nor `key_padding_mask`, so that no key is
    /// masked out.
    pub(in crate::nn) fn is_none(&self) -> bool {
        self.attn_mask.is_none() && self.key_padding_mask.is_none()
    }

    /// Combines `attn_mask` and `key_padding_mask` into one mask for scores `[n, heads, queries,
    /// keys]`. In a boolean result, true lets a query attend to a key, as in
    /// [`scaled_dot_product_attention`](super::scaled_dot_product_attention).
    pub(super) fn joined(&self, scores: [i64; 4]) -> Result<Option<Tensor>> {
        let [n, heads, queries, keys] = scores;
        let attn_mask = self.attn_mask.as_ref().map(|mask| {
            is_mask("attn_mask", mask)?;
            match mask.size().as_slice() {
                [l, s] if [*l, *s] == [queries, keys] => Ok(mask.f_view([1, 1, queries, keys])?),
                [all, l, s] if [*all, *l, *s] == [n * heads, queries, keys] => {
                    Ok(mask.f_reshape([n, heads, queries, keys])?)
                }
                // If the mask has four dimensions, `Shapes::take` checks later whether it
                // broadcasts to the scores.
                [_, _, _, _] => Ok(mask.shallow_clone()),
                other => Err(refused(format!(
                    "attn_mask is {other:?}, but for scores of shape {scores:?} it must be \
                     [{queries}, {keys}], [{}, {queries}, {keys}] or 4-D",
                    n * heads
                ))),
            }
        });
        let padding = self.key_padding_mask.as_ref().map(|mask| {
            is_mask("key_padding_mask", mask)?;
            match mask.size().as_slice() {
                [batch, s] if [*batch, *s] == [n, keys] => Ok(mask.f_view([n, 1, 1, keys])?),
                other => Err(refused(format!(
                    "key_padding_mask is {other:?}, but must be [batch, keys], which is [{n}, {keys}]"
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

/// Converts a mask to values that are added to the scores: −∞ where a boolean mask is true.
fn added(mask: &Tensor) -> Result<Tensor> {
    if mask.kind() != Kind::Bool {
        return Ok(mask.shallow_clone());
    }
    let zeros = Tensor::f_zeros(mask.size(), (Kind::Float, mask.device()))?;
    Ok(zeros.f_masked_fill(mask, f64::NEG_INFINITY)?)
}

impl crate::precision::Tensors for AttentionMask {
    fn each(&self, change: &mut dyn FnMut(&Tensor) -> Result<Tensor>) -> Result<Self> {
        let (attn_mask, key_padding_mask) =
            (self.attn_mask.each(change)?, self.key_padding_mask.each(change)?);
        let is_same = is_same(&attn_mask, &self.attn_mask)
            && is_same(&key_padding_mask, &self.key_padding_mask);
        let opened = self.opened.clone().filter(|_| is_same);
        Ok(Self { attn_mask, key_padding_mask, opened })
    }
}

/// Returns whether two masks are the same tensor: the same memory, dtype and shape.
fn is_same(one: &Option<Tensor>, other: &Option<Tensor>) -> bool {
    let place = |mask: &Tensor| (mask.data_ptr(), mask.kind(), mask.size());
    one.as_ref().map(place) == other.as_ref().map(place)
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;
    use crate::precision::Tensors;

    /// Checks that a second layer reuses the mask that the first layer prepared, but not if its
    /// scores have another dtype than those of the first layer, and not if the mask's values
    /// changed between the layers. Scores with another batch size than the mask are an error.
    #[test]
    fn layers_open_a_shared_mask_once() -> Result<()> {
        let scores = |batch: i64| -> Result<Shapes> {
            let x = Tensor::f_zeros([batch, 2, 3, 4], (Kind::Float, Device::Cpu))?;
            Shapes::of(&x, &x, &x)
        };
        let padding = Tensor::f_zeros([2, 3], (Kind::Float, Device::Cpu))?;
        let mask = AttentionMask::padding(&padding);
        assert!(mask.opened(&scores(2)?, Kind::Half)?.is_none());
        let mask = mask.for_layers();
        let first = |mask: &AttentionMask, kind| -> Result<Tensor> {
            Ok(mask.opened(&scores(2)?, kind)?.expect("layers share it").mask)
        };
        let half = first(&mask, Kind::Half)?;
        assert_eq!(first(&mask, Kind::Half)?.data_ptr(), half.data_ptr());
        assert_eq!(first(&mask.shared(), Kind::Half)?.data_ptr(), half.data_ptr());
        let same = mask.each(&mut |mask| Ok(mask.shallow_clone()))?;
        assert_eq!(first(&same, Kind::Half)?.data_ptr(), half.data_ptr());
        let other = mask.each(&mut |mask| Ok(mask.f_sub_scalar(1)?))?;
        assert!(!other.is_shared());
        assert_eq!(first(&mask, Kind::Float)?.kind(), Kind::Float);
        assert!(mask.opened(&scores(3)?, Kind::Half).is_err());
        Ok(())
    }
}

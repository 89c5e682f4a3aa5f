//! A cache of the keys and values of earlier tokens, so that generation runs the model only on new
//! tokens.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, btree_map::Entry},
    fmt,
    rc::Rc,
};

use tch::{Tensor, no_grad};

use crate::{
    Error, Result,
    nn::{Context, Forward},
    precision::dtype_name,
};

/// The keys and values that each attention layer of a causal model computed for earlier tokens.
/// [`extend`](Self::extend) runs the model on the next tokens only. The output for these tokens
/// equals, up to rounding, the output for the same tokens when the model runs on the whole
/// sequence.
///
/// [`MultiheadAttention`](super::MultiheadAttention) with `causal` uses the cache automatically,
/// and so does every layer that contains it. Grouped queries and rotary embeddings are supported.
/// An attention layer that you write yourself calls [`causal_attention`](super::causal_attention)
/// to use the cache. A model with position embeddings gets the positions of its tokens from
/// [`Context::places`].
///
/// For each attention layer the cache stores keys `[N, kv_heads, room, E]` and values of the same
/// shape. `room` is the number of tokens for which memory is allocated. When the memory is full,
/// `room` at least doubles. In total the cache stores 2 · layers · N · kv_heads · room · E
/// elements.
///
/// ```
/// use amp_core::{
///     nn::{Context, KvCache, MultiheadAttention, MultiheadAttentionConfig, place},
///     precision::Policy,
///     prelude::*,
/// };
///
/// let config = MultiheadAttentionConfig { causal: true, ..MultiheadAttentionConfig::new(8, 2) };
/// let attention = MultiheadAttention::new(config)?;
/// let policy = Policy::new(Precision::F64True, Device::Cpu);
/// place(&attention, policy, &Default::default())?;
/// let tokens = Tensor::f_randn([1, 5, 8], (Kind::Double, Device::Cpu))?;
///
/// let mut cache = KvCache::new();
/// let pass = |cache: &mut KvCache, first: i64, length: i64| {
///     let part = tokens.f_narrow(1, first, length)?;
///     // A model must ask for the positions of its tokens. This attention needs none, so ask here.
///     cache.extend_with(length, Context::new(policy, false), |cx| {
///         let _ = cx.past();
///         attention.forward(&part, cx)
///     })
/// };
/// let parts = [pass(&mut cache, 0, 3)?, pass(&mut cache, 3, 1)?, pass(&mut cache, 4, 1)?];
/// let whole = attention.forward(&tokens, &Context::new(policy, false))?;
/// assert!(Tensor::f_cat(&parts, 1)?.allclose(&whole, 1e-12, 1e-12, false));
/// assert_eq!(cache.tokens(), 5);
/// # Ok::<(), Error>(())
/// ```
#[derive(Default)]
pub struct KvCache(Rc<Entries>);

/// The contents of a cache, shared by the cache and the context of a forward pass.
#[derive(Default)]
pub(in crate::nn) struct Entries {
    /// The number of tokens whose keys and values are cached.
    past: Cell<i64>,
    /// The number of tokens that the running forward pass adds.
    new: Cell<i64>,
    /// The number of tokens for which memory is allocated at first.
    room: Cell<i64>,
    /// Whether the running forward pass has called [`Context::past`] or [`Context::places`], and so
    /// knows the positions of its tokens.
    asked: Cell<bool>,
    /// The keys and values of each attention layer, by the layer's path.
    layers: RefCell<BTreeMap<String, Layer>>,
}

/// The cached keys and values of one attention layer.
struct Layer {
    /// Keys and values, `[N, kv_heads, room, E]` each.
    tensors: [Tensor; 2],
    /// Whether the layer has added its keys and values in the running forward pass.
    ran: bool,
}

impl fmt::Debug for KvCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KvCache").field("tokens", &self.tokens()).finish_non_exhaustive()
    }
}

impl KvCache {
    /// Creates an empty cache.
    pub fn new() -> Self {
        Self::default()
    }

    /// Creates an empty cache whose first forward pass allocates memory for this number of tokens.
    /// More memory is allocated only when the cache gets more tokens than that.
    pub fn with_room(tokens: i64) -> Self {
        let cache = Self::default();
        cache.0.room.set(tokens);
        cache
    }

    /// Returns the number of tokens whose keys and values the cache holds.
    pub fn tokens(&self) -> i64 {
        self.0.past.get()
    }

    /// Removes all tokens.
    pub fn clear(&mut self) {
        self.0.past.set(0);
        self.0.layers.borrow_mut().clear();
    }

    /// Runs `model` on the tokens `ids`, `[N, L]`, which follow the cached tokens. The model runs
    /// under the policy of `cx` and without gradients. Returns the model's output, for example `[N,
    /// L, vocabulary]`.
    ///
    /// # Errors
    /// When [`extend_with`](Self::extend_with) would fail.
    pub fn extend<M: Forward<Input = (&'static Tensor,)> + ?Sized>(
        &mut self,
        model: &M,
        ids: &Tensor,
        cx: Context,
    ) -> Result<M::Output> {
        let &[_, length] = ids.size().as_slice() else {
            return Err(refused(format!("the ids are {:?}, but must be [N, L]", ids.size())));
        };
        self.extend_with(length, cx, |cx| model.forward_with((ids,), cx))
    }

    /// Extends the cache as [`extend`](Self::extend) does, but for models whose input is not a
    /// single tensor. `run` must run the model once, on the next `length` tokens, with the context
    /// that it is given.
    ///
    /// # Errors
    /// - When `run` fails, `length` is below 1, or `cx` is a training context.
    /// - When no attention layer used the cache.
    /// - When an attention layer is not causal, ran twice, did not run in every forward pass so far,
    ///   or changed its batch size, heads, width or dtype.
    /// - When there are cached tokens, but the model called neither [`Context::past`] nor
    ///   [`Context::places`], because a model that counts positions from 0 would use wrong positions
    ///   for the new tokens.
    ///
    /// After an error, the cache has the tokens that it had before the call.
    pub fn extend_with<T>(
        &mut self,
        length: i64,
        cx: Context,
        run: impl FnOnce(&Context) -> Result<T>,
    ) -> Result<T> {
        if length < 1 {
            return Err(refused(format!(
                "length is {length}, but a pass must have at least 1 token"
            )));
        }
        if cx.is_training() {
            return Err(refused(
                "a training pass cannot use a cache: use a context without training".to_owned(),
            ));
        }
        self.0.begin(length);
        let cx = cx.with_cache(Rc::clone(&self.0));
        let _autocast = cx.policy().autocast()?;
        let result = no_grad(|| run(&cx)).and_then(|output| self.0.end().map(|()| output));
        if result.is_err() {
            self.0.undo();
        }
        result
    }
}

impl Entries {
    fn begin(&self, length: i64) {
        self.new.set(length);
        self.asked.set(false);
        for layer in self.layers.borrow_mut().values_mut() {
            layer.ran = false;
        }
    }

    /// Ends the forward pass. Checks that every attention layer has added the keys and values of
    /// the new tokens, and counts these tokens as cached.
    fn end(&self) -> Result<()> {
        let layers = self.layers.borrow();
        if layers.is_empty() {
            return Err(refused(
                "no attention layer of the model used the cache: call `causal_attention`, or a \
                 MultiheadAttention with `causal`"
                    .to_owned(),
            ));
        }
        if let Some((path, _)) = layers.iter().find(|(_, layer)| !layer.ran) {
            return Err(refused(format!(
                "the attention `{path}` ran in an earlier pass, but not in this one"
            )));
        }
        if self.past.get() > 0 && !self.asked.get() {
            return Err(refused(format!(
                "the model did not ask for the positions of its tokens, although {} tokens came \
                 before: take the positions from `cx.places(ids)`; if the model needs no \
                 positions, call `cx.past()`",
                self.past.get()
            )));
        }
        self.past.set(self.past.get() + self.new.get());
        Ok(())
    }

    /// Removes the keys and values that a failed forward pass has added. After a failed first pass,
    /// removes the entries of all layers, so that the next pass may have another batch size or
    /// dtype. After a later pass there is nothing to remove, because `past` does not count the
    /// added tokens, and the next pass overwrites them.
    fn undo(&self) {
        if self.past.get() == 0 {
            self.layers.borrow_mut().clear();
        }
    }

    /// Returns the number of cached tokens, as [`KvCache::tokens`] does.
    pub(super) fn tokens(&self) -> i64 {
        self.past.get()
    }

    /// Returns the number of cached tokens, and remembers that the model has asked for the
    /// positions of its tokens.
    pub(in crate::nn) fn past(&self) -> i64 {
        self.asked.set(true);
        self.past.get()
    }

    /// Appends the keys and values `[N, kv_heads, new, E]` of the attention layer at `path`.
    /// Returns the keys and values of all tokens.
    pub(super) fn append(&self, path: &str, added: [&Tensor; 2]) -> Result<[Tensor; 2]> {
        let (past, new) = (self.past.get(), self.new.get());
        let refuse = |why: String| Err(refused(format!("the attention `{path}` {why}")));
        for tensor in added {
            let size = tensor.size();
            if !matches!(size.as_slice(), [_, _, length, _] if *length == new) {
                return refuse(format!(
                    "has keys or values {size:?} in a pass of {new} tokens: they must be [N, kv_heads, {new}, E]"
                ));
            }
        }
        let mut layers = self.layers.borrow_mut();
        let layer = match layers.entry(path.to_owned()) {
            Entry::Occupied(layer) => layer.into_mut(),
            Entry::Vacant(_) if past > 0 => {
                return refuse("did not run in an earlier pass".to_owned());
            }
            Entry::Vacant(place) => {
                let room = self.room.get().max(new);
                let [keys, values] = added;
                let tensors = [empty(keys, room)?, empty(values, room)?];
                place.insert(Layer { tensors, ran: false })
            }
        };
        if layer.ran {
            return refuse(
                "ran twice in one pass: run each attention through a `Child` with its own name"
                    .to_owned(),
            );
        }
        let mut all = Vec::new();
        for (held, added) in layer.tensors.iter_mut().zip(added) {
            if !is_alike(held, added) {
                return refuse(format!(
                    "has keys or values of dtype {} and shape {:?} in the cache, but added {} of \
                     shape {:?}: a cache is for one batch of sequences under one precision",
                    dtype_name(held.kind()),
                    held.f_narrow(2, 0, past)?.size(),
                    dtype_name(added.kind()),
                    added.size()
                ));
            }
            let room = held.size()[2];
            if room < past + new {
                let larger = empty(added, (past + new).max(2 * room))?;
                larger.f_narrow(2, 0, past)?.f_copy_(&held.f_narrow(2, 0, past)?)?;
                *held = larger;
            }
            held.f_narrow(2, past, new)?.f_copy_(added)?;
            all.push(held.f_narrow(2, 0, past + new)?);
        }
        layer.ran = true;
        match <[Tensor; 2]>::try_from(all) {
            Ok(all) => Ok(all),
            Err(_) => refuse("has neither keys nor values".to_owned()),
        }
    }
}

/// Allocates memory for the keys or values of `room` tokens. Batch size, heads, width, dtype and
/// device are those of `tensor`.
fn empty(tensor: &Tensor, room: i64) -> Result<Tensor> {
    let mut size = tensor.size();
    size[2] = room;
    Ok(Tensor::f_empty(size, (tensor.kind(), tensor.device()))?)
}

/// Returns whether two tensors have the same batch size, heads, width, dtype and device. The
/// numbers of tokens (dimension 2) may differ.
fn is_alike(one: &Tensor, other: &Tensor) -> bool {
    let (mut a, mut b) = (one.size(), other.size());
    (a[2], b[2]) = (0, 0);
    a == b && one.kind() == other.kind() && one.device() == other.device()
}

pub(super) fn refused(why: String) -> Error {
    Error::config(format!("KV cache: {why}"))
}

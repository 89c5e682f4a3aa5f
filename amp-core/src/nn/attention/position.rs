//! Positions of tokens in attention: rotary embeddings, and biases that depend on distance.

use tch::{Device, Kind, Tensor};

use crate::{
    Error, Result,
    nn::{Context, Module, Visit, Visitor},
    precision::f32_or_f64,
};

/// Which two elements of a head form a pair that is rotated. The setting must be the one with which
/// the weights were trained; otherwise the results are wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RotaryPairing {
    /// Neighbouring elements form a pair: (x₀, x₁), (x₂, x₃), and so on. The paper
    /// (arXiv:2104.09864), GPT-J and Meta's own Llama files use this pairing.
    Interleaved,
    /// An element of the first half of the head and the element at the same index of the second
    /// half form a pair: (x₀, x_{D/2}), and so on, where D is the width of the head. GPT-NeoX uses
    /// this pairing, and so does Llama in the `transformers` library, which calls it `rotate_half`.
    HalfRotated,
}

/// The options of a [`RotaryEmbedding`].
#[derive(Debug, Clone, Copy)]
pub struct RotaryEmbeddingConfig {
    /// The width of a head: the number of elements that are rotated. It must be even.
    pub dim: i64,
    /// Which two elements form a pair that is rotated.
    pub pairing: RotaryPairing,
    /// The base of the angles: pair i at position p is rotated by the angle p·base^(−2i/dim). Llama
    /// 3 uses 500000.
    pub base: f64,
}

impl RotaryEmbeddingConfig {
    /// Returns options with 10000 as base.
    pub fn new(dim: i64, pairing: RotaryPairing) -> Self {
        Self { dim, pairing, base: 10_000.0 }
    }
}

/// Rotary position embedding (Su et al., arXiv:2104.09864). In a head of width `D` at position `p`,
/// the pair `i` of elements is rotated by the angle p·base^(−2i/D). Apply the embedding to queries
/// and keys, but not to values.
///
/// The input is `[…, L, D]`, and the output has the same shape and dtype. The angles are computed
/// in f64, and the rotation in at least f32. In [`Module::forward`], the first of the L tokens has
/// the position 0.
///
/// ```
/// use amp_core::{
///     nn::{RotaryEmbedding, RotaryEmbeddingConfig, RotaryPairing},
///     tch::{Device, Kind, Tensor},
/// };
///
/// let rope =
///     RotaryEmbedding::new(RotaryEmbeddingConfig::new(64, RotaryPairing::HalfRotated))?;
/// let queries = Tensor::ones([2, 8, 10, 64], (Kind::Float, Device::Cpu));
/// // 100 tokens are cached, so these 10 tokens have the positions 100 to 109.
/// assert_eq!(rope.rotate(&queries, 100)?.size(), queries.size());
/// # Ok::<(), amp_core::Error>(())
/// ```
#[derive(Debug, Clone, Copy)]
pub struct RotaryEmbedding {
    config: RotaryEmbeddingConfig,
}

impl RotaryEmbedding {
    /// Creates the embedding for heads of this width.
    ///
    /// # Errors
    /// When `dim` is odd or below 2, or `base` is not above 0.
    pub fn new(config: RotaryEmbeddingConfig) -> Result<Self> {
        let RotaryEmbeddingConfig { dim, base, .. } = config;
        if dim < 2 || dim % 2 != 0 {
            return Err(Error::config(format!(
                "rotary embedding: the width of a head is {dim}, but must be even and at least 2"
            )));
        }
        if !(base > 0.0 && base.is_finite()) {
            return Err(Error::config(format!("rotary embedding: base {base} is not above 0")));
        }
        Ok(Self { config })
    }

    /// Rotates queries or keys `[…, L, D]`. The first of the L tokens has the position `first`, the
    /// next has `first + 1`, and so on.
    ///
    /// # Errors
    /// When the last dimension is not the width of a head.
    pub fn rotate(&self, x: &Tensor, first: i64) -> Result<Tensor> {
        let RotaryEmbeddingConfig { pairing, base, .. } = self.config;
        let size = x.size();
        let &[.., length, dim] = size.as_slice() else { return Err(self.refuse(&size)) };
        if dim != self.config.dim {
            return Err(self.refuse(&size));
        }
        let options = (Kind::Double, x.device());
        let places = Tensor::f_arange_start(first, first + length, options)?;
        let exponents = Tensor::f_arange(dim / 2, options)?;
        let rates = exponents.f_mul_scalar(-2.0 * base.ln() / dim as f64)?.f_exp()?;
        let angles = places.f_unsqueeze(1)?.f_mul(&rates)?;
        let kind = f32_or_f64(x.kind());
        let (cos, sin) = (angles.f_cos()?.f_to_kind(kind)?, angles.f_sin()?.f_to_kind(kind)?);
        let wide = x.f_to_kind(kind)?;
        let (one, other) = match pairing {
            RotaryPairing::Interleaved => {
                let mut pairs = size[..size.len() - 1].to_vec();
                pairs.extend([dim / 2, 2]);
                let pairs = wide.f_reshape(pairs)?;
                (pairs.f_select(-1, 0)?, pairs.f_select(-1, 1)?)
            }
            RotaryPairing::HalfRotated => {
                (wide.f_narrow(-1, 0, dim / 2)?, wide.f_narrow(-1, dim / 2, dim / 2)?)
            }
        };
        let rotated = [
            one.f_mul(&cos)?.f_sub(&other.f_mul(&sin)?)?,
            other.f_mul(&cos)?.f_add(&one.f_mul(&sin)?)?,
        ];
        let rotated = match pairing {
            RotaryPairing::Interleaved => Tensor::f_stack(&rotated, -1)?.f_reshape(&size)?,
            RotaryPairing::HalfRotated => Tensor::f_cat(&rotated, -1)?,
        };
        Ok(rotated.f_to_kind(x.kind())?)
    }

    fn refuse(&self, size: &[i64]) -> Error {
        Error::config(format!(
            "rotary embedding: the input is {size:?}, but must be […, length, {}]",
            self.config.dim
        ))
    }
}

impl Visit for RotaryEmbedding {
    fn visit(&self, _: &mut dyn Visitor) {}
}

impl Module for RotaryEmbedding {
    fn forward(&self, input: &Tensor, _: &Context) -> Result<Tensor> {
        self.rotate(input, 0)
    }
}

/// Returns the slopes of ALiBi (Press et al., arXiv:2108.12409), one for each head. If the number n
/// of heads is a power of two, the slopes are 2^(−8i/n) for i from 1 to n. Otherwise, let m be the
/// largest power of two below n. The first m slopes are the slopes for m heads. The other n − m
/// slopes are the first, third, fifth, … slope for 2m heads.
pub fn alibi_slopes(num_heads: i64) -> Vec<f64> {
    let of_power = |count: i64| (1..=count).map(move |i| (-8.0 * i as f64 / count as f64).exp2());
    if num_heads < 1 {
        return Vec::new();
    }
    let power = 1 << num_heads.ilog2();
    let rest = usize::try_from(num_heads - power).unwrap_or(0);
    of_power(power).chain(of_power(2 * power).step_by(2).take(rest)).collect()
}

/// Computes the ALiBi bias −slope·|i − j| for each head, query i and key j. The result is
/// `[1, num_heads, length, length]`, in f32 on the CPU. Use it as
/// [`AttentionMask::attn_mask`](super::AttentionMask) or in
/// [`scaled_dot_product_attention`](super::scaled_dot_product_attention). Store it in a `#[buffer]`
/// of the model, so that it moves to the device with the model:
///
/// ```no_run,standalone_crate
/// use amp_core::{
///     nn::{AttentionMask, alibi_bias},
///     prelude::*,
/// };
///
/// #[derive(Module)]
/// #[forward(|x| self.attention.attend(x, x, x, &AttentionMask::of(&self.bias), cx))]
/// struct Positioned {
///     #[layer(multihead_attention(64, 8, causal = true))]
///     attention: MultiheadAttention,
///     #[buffer(init = alibi_bias(8, 128)?)]
///     bias: Tensor,
/// }
/// # fn main() {}
/// ```
///
/// # Errors
/// When there are no heads, or the length is negative.
pub fn alibi_bias(num_heads: i64, length: i64) -> Result<Tensor> {
    if num_heads < 1 || length < 0 {
        return Err(Error::config(format!(
            "alibi_bias({num_heads}, {length}): there must be at least one head, and the length \
             cannot be negative"
        )));
    }
    let slopes = Tensor::f_from_slice(&alibi_slopes(num_heads))?.f_view([num_heads, 1, 1])?;
    let places = Tensor::f_arange(length, (Kind::Double, Device::Cpu))?;
    let distance = places.f_unsqueeze(1)?.f_sub(&places)?.f_abs()?;
    Ok(slopes.f_mul(&distance)?.f_neg()?.f_to_kind(Kind::Float)?.f_unsqueeze(0)?)
}

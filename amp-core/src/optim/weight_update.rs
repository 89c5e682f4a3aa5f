//! How 16-bit weights take an update that is finer than their spacing.

use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use super::Moments;
use crate::{Result, named::named};

/// How an optimizer writes to 16-bit parameters (those of the `*-true` precisions).
///
/// bfloat16 has 8 significant bits, so a weight near 1 moves by at least 2⁻⁸ upwards or not at
/// all: rounded to nearest, smaller updates are lost, however often they come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum WeightUpdate {
    /// As PyTorch: each update is rounded to the nearest weight, and the running averages have
    /// the parameters' dtype where its kernels can work with that.
    #[default]
    RoundToNearest,
    /// The optimizer steps f32 copies, kept beside the weights, which are those copies rounded.
    /// They are taken when the optimizer is built: weights that are written to later are
    /// overwritten in the next step. The running averages are f32.
    MasterWeights,
    /// The step is taken in f32 and rounded up or down at random, so that the weight's
    /// expectation is the f32 result. No copies are kept; the running averages are f32. For
    /// bfloat16 alone. Draws from libtorch's generator of the parameters' device.
    StochasticRounding,
}

/// How an optimizer keeps what it keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Storage {
    /// 16-bit weights.
    pub weights: WeightUpdate,
    /// Running averages.
    pub moments: Moments,
}

impl From<WeightUpdate> for Storage {
    fn from(weights: WeightUpdate) -> Self {
        Self { weights, moments: Moments::Full }
    }
}

impl From<Moments> for Storage {
    fn from(moments: Moments) -> Self {
        Self { weights: WeightUpdate::default(), moments }
    }
}

named!(WeightUpdate, "weight update", {
    RoundToNearest => "round-to-nearest",
    MasterWeights => "master-weights",
    StochasticRounding => "stochastic-rounding",
});

/// Whether parameters of this dtype can be stepped in f32 instead.
pub(super) fn is_half(kind: Kind) -> bool {
    matches!(kind, Kind::Half | Kind::BFloat16)
}

/// A copy in f32, outside the graph.
pub(super) fn wide(tensor: &Tensor) -> Result<Tensor> {
    Ok(tensor.f_detach()?.f_to_kind(Kind::Float)?)
}

/// Writes f32 values into a tensor of its own dtype, rounded to nearest.
pub(super) fn write(to: &Tensor, from: &Tensor) -> Result<()> {
    tch::no_grad(|| to.shallow_clone().f_copy_(from))?;
    Ok(())
}

/// Writes f32 values into a bf16 tensor, rounded up with the probability of the part that is cut
/// off: 16 random bits are added below those that stay. An infinity or NaN stays what it is.
pub(super) fn write_stochastically(to: &Tensor, from: &Tensor) -> Result<()> {
    let bits = from.f_view_dtype(Kind::Int)?;
    let noise = bits.f_randint_like(1 << 16)?;
    // Cleared, since the cast to bf16 would round them again.
    let rounded = bits.f_add(&noise)?.f_bitwise_and(-(1_i64 << 16))?.f_view_dtype(Kind::Float)?;
    // A NaN that has all bits, as CUDA's have, would become zero.
    write(to, &from.f_where_self(&from.f_isnan()?, &rounded)?)
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;

    #[test]
    fn what_is_not_finite_stays_what_it_is() -> Result<()> {
        let bits = [i32::MAX, 0x7fc0_0000, -1, 0x7f80_0000, -0x80_0000];
        let from = Tensor::f_from_slice(&bits)?.f_view_dtype(Kind::Float)?;
        let to = Tensor::f_zeros([5], (Kind::BFloat16, Device::Cpu))?;
        write_stochastically(&to, &from)?;
        let seen = Vec::<f32>::try_from(to.f_to_kind(Kind::Float)?)?;
        assert!(seen[..3].iter().all(|value| value.is_nan()), "{seen:?}");
        assert_eq!(seen[3..], [f32::INFINITY, f32::NEG_INFINITY]);
        Ok(())
    }
}
